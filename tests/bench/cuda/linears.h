// fewbit-bench linears: all linear layers of a model, time per token step.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/linear.h"
#include "tests/bench/cuda/random_layers.h"
#include "tests/bench/cuda/shapes.h"

namespace fewbit::bench {

struct LinearsOptions {
  std::string shape = "llama-2-7b";
  std::vector<int> m = {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096};
  bool csv = false;
  bool per_layer = false;     // also each of the four layers alone, in CSV as shape NAME/LAYER
  bool only_default = false;  // without the ablation and cuBLAS
  int repeats = 21;
  WeightMix mix;
  cuda::Tuning tuning;
};

// Prints the table; a process exit status.
int RunLinears(const LinearsOptions& options);

}  // namespace fewbit::bench
