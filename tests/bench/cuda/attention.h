// fewbit-bench attention: everything between the qkv and the o layer, time per decoder layer.
#pragma once

#include <string>
#include <vector>

#include "kernels/kv_layout.h"

namespace fewbit::bench {

struct AttentionOptions {
  std::string shape = "llama-2-7b";
  std::vector<int> batch = {1, 16, 64};
  std::vector<int> context = {512, 4096, 16384};
  std::vector<int> prefill = {2048};  // tokens of one prompt
  std::vector<kv::KvType> kv = {kv::KvType::kF16, kv::KvType::kI8};
  bool csv = false;
  int repeats = 15;
};

// Prints the table; a process exit status.
int RunAttention(const AttentionOptions& options);

// Arguments behind "attention"; false if one cannot be read.
bool ParseAttention(const std::string& argument, AttentionOptions* options);
inline constexpr char kAttentionUsage[] =
    "       fewbit-bench attention [--shape=NAME] [--batch=1,16,64] [--context=512,4096]\n"
    "         [--prefill=2048] [--kv=f16,bf16,i8] [--csv] [--repeats=N]\n";

}  // namespace fewbit::bench
