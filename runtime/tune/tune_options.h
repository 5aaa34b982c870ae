// What a tuning run is told, and what it tells.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/tune/trainer.h"
#include "runtime/tune/tuned_layer.h"

namespace fewbit::tune {

struct TuneOptions {
  std::string model_dir;      // the original
  std::string quantized_dir;  // made from it
  std::string out_dir;        // must not exist, or be empty
  std::string device = "auto";
  int threads = 0;  // of the CPU; 0: one per processor
  int steps = 800;
  int batch = 16;           // windows per step
  int context = 512;        // tokens per window
  int held_out = 32;        // windows to measure on, never trained on
  int evaluate_every = 50;  // steps
  int checkpoint_every = 100;
  // Learning rates at their peak: of sub-scales in steps of their grid, of the others relative to
  // what they were.
  double sub_scale_rate = 0.1;
  double second_order_rate = 0.002;
  double outlier_rate = 0.002;
  double norm_rate = 0.002;
  int own_windows = 0;      // that the original writes itself to be learned from
  double own_share = 0.5;   // of the windows of a step that are taken from these, if there are any
  double noise = 0.1;       // share of the tokens learned from that are replaced by others
  uint64_t seed = 0;        // which windows are drawn
  bool low_memory = false;  // only one layer of each model on the device
  bool restart = false;     // discard what an interrupted run left, whatever it was
  std::string program;      // name of the build; only the same one goes on with a run

  absl::Status Validate() const;  // INVALID_ARGUMENT names the option, its value and the limits
  // Warm-up over the first twentieth, then a cosine to 0. step from 1.
  StepRates RatesOf(int step) const;
  int64_t tokens_per_step() const { return int64_t{batch} * context; }
};

TuningText::Options TextOptionsOf(const TuneOptions& options, const ModelSpec& spec);

struct TunePoint {
  int step = 0;              // steps taken
  double training_kl = 0.0;  // mean over the steps since the last point; at step 0 none: NaN
  TuneLoss held_out;
};

struct TuneProgress {
  int step = 0;  // steps taken
  int steps = 0;
  double training_kl = 0.0;  // of the last step; NaN before the first
  double held_out_kl = 0.0;  // as measured last
  double best_held_out = 0.0;
  int resumed_step = 0;  // that an interrupted run had reached
};

struct TuneReport {
  std::vector<TunePoint> curve;
  TuneLoss before, after;  // held out
  int best_step = 0;       // whose state was written; 0: the input's
  int steps = 0;           // taken; below the options' when it stopped early
  int64_t tokens = 0;      // trained on, repetitions counted
  int64_t numbers[kNumTunedKinds] = {};
  std::string device;
  int64_t peak_bytes = 0;  // on the device
  int windows_at_once = 0;
  double average_bits = 0.0;  // linear layers, from the bytes in the file
};

}  // namespace fewbit::tune
