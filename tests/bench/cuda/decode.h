// fewbit-bench decode: tokens per second of whole models of published shapes with random packed
// weights, through the engine that serves: scheduler, steps in flight, sampling.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/cuda/random_layers.h"

namespace fewbit::bench {

struct DecodeOptions {
  std::string shape = "llama-2-7b";
  std::vector<int> batches = {1, 16, 64};
  int context = 512;  // tokens of a sequence half way through what is measured
  int steps = 128;    // that are measured
  std::vector<std::string> kv = {"f16"};
  int lm_head_bits = 8;
  int prefill = 2048;            // tokens of the prompts of the prefill measurement; 0: none
  std::vector<int> first_token;  // prompts whose first token is timed, instead of all rates
  int layers = 0;                // of the shape's; 0: all. For profiles and sanitizers
  WeightMix mix;
  bool csv = false;
  bool graphs = true;
  bool greedy = false;   // else temperature 1
  bool profile = false;  // prints where a decode step's time goes instead of rates
};

// 0, 1 if a measurement failed, or 2 for options that cannot be served.
int RunDecode(const DecodeOptions& options);

}  // namespace fewbit::bench
