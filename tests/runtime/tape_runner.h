// A model in double, run forward and backward through LayerTape and HeadLoss on any device: for
// tests of the passes and of the devices' operators.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/tune/device_array.h"
#include "runtime/tune/layer_tape.h"
#include "tests/runtime/double_decoder.h"

namespace fewbit::testing {

// Everything that one step of tuning computes.
struct TapeResult {
  std::vector<float> hidden;  // [T, E] after the last layer
  tune::LossSums sums;
  std::vector<float> d_hidden;  // [T, E] of the embedded tokens
  // By the names of DoubleModel::ForEachTuned.
  std::map<std::string, std::vector<float>> gradients;
};

// Uploads a model; Run may be called often. Thread rule: one caller at a time.
class TapeRunner {
 public:
  // `ops` outlives the runner. `head_rows`: rows of logits at once.
  TapeRunner(const DoubleModel& student, tune::Ops* ops, int windows, int context, int head_rows,
             int64_t score_bytes = tune::LayerTape::kScoreBytes);

  // hidden, teacher_hidden [windows * context, E]: before the first, behind the last layer. The
  // teacher's head and final norm are those of `teacher`. The gradients are of scale * KL.
  TapeResult Run(const Doubles& hidden, const DoubleModel& teacher, const Doubles& teacher_hidden,
                 float scale);

 private:
  tune::DeviceArray<float> Zeros(size_t size);
  const float* Keep(const Doubles& values);
  float* KeepGradient(const std::string& name, size_t size);

  const ModelSpec spec_;
  tune::Ops* const ops_;
  const int rows_;
  std::unique_ptr<tune::LayerTape> tape_;
  std::unique_ptr<tune::HeadLoss> loss_;
  std::deque<tune::DeviceArray<float>> kept_;
  std::vector<tune::LayerParams> layers_;
  std::vector<tune::NormGradients> norms_;
  tune::HeadParams head_;
  float* d_final_norm_ = nullptr;
  std::map<std::string, tune::DeviceArray<float>> gradients_;
};

}  // namespace fewbit::testing
