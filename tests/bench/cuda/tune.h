// fewbit-bench tune: a whole step of tuning (teacher and student forward, backward, optimizer) of
// models of published shapes with random weights, through the tuner's own Trainer.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/cuda/random_layers.h"

namespace fewbit::bench {

inline constexpr char kTuneUsage[] =
    "       fewbit-bench tune [--shape=NAME] [--windows=16] [--context=512] [--steps=5]\n"
    "         [--layers=N] [--factors=tf32,bf16] [--low_memory] [--csv] [--profile] "
    "[--share4=0.25] "
    "[--outliers=0.002]\n";

struct TuneBenchOptions {
  std::string shape = "llama-2-7b";
  std::vector<int> windows = {16};              // per step
  int context = 512;                            // tokens per window
  std::vector<std::string> factors = {"tf32"};  // of large products; or "bf16"
  int steps = 5;                                // that are measured, after one that is not
  int layers = 0;                               // of the shape's; 0: all
  WeightMix mix;
  bool low_memory = false;  // one layer of each model on the device at a time
  bool csv = false;
  bool profile = false;  // prints where a step's time goes instead
};

bool ParseTune(const std::string& argument, TuneBenchOptions* options);

// 0, 1 if a measurement failed, or 2 for options that cannot be served.
int RunTune(const TuneBenchOptions& options);

}  // namespace fewbit::bench
