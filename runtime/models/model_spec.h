// What a decoder-only model is, as numbers and flags: everything the decoder needs to know and
// nothing about files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/ids.h"

namespace fewbit {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3 };

struct RopeSpec {
  double theta = 10000.0;
  int32_t rotary_dim = 0;    // leading dimensions of a head that turn; the rest pass through
  bool interleaved = false;  // pairs (0,1),(2,3).. (GLM) instead of (i, i + rotary_dim/2)
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  int32_t original_max_positions = 0;
};

struct ModelSpec {
  std::string family;  // name of the arch_table row
  int32_t num_layers = 0;
  int32_t hidden_size = 0;   // E
  int32_t ffn_size = 0;      // F
  int32_t num_heads = 0;     // H
  int32_t num_kv_heads = 0;  // K
  int32_t head_dim = 0;      // D
  int32_t vocab_size = 0;    // V
  int32_t max_context = 0;   // tokens
  float rms_eps = 1e-5f;
  RopeSpec rope;
  int32_t sliding_window =
      0;  // 0: full attention; else a query sees this many tokens, itself included
  bool qkv_bias = false;
  bool qk_norm = false;  // RMSNorm over each head of q and k before rope
  bool tied_head = false;
  TokenId bos{-1};           // -1: none
  std::vector<TokenId> eos;  // config.json and generation_config.json together

  int32_t q_size() const { return num_heads * head_dim; }
  int32_t kv_size() const { return num_kv_heads * head_dim; }
};

}  // namespace fewbit
