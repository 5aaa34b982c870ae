// How much the model's answers suffer when one matrix alone is replaced: a few windows of text run
// through the layers once as they are, and once more per replaced matrix from its layer on. Only
// hidden states are kept, so the model may be streamed, and these may be in a file.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/linear.h"
#include "runtime/models/model.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/scratch_floats.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Thread rule: one caller at a time, which is not inside team->Run.
class SensitivityProbe {
 public:
  // Embeds the windows into `hidden`, of windows * context * E floats. `spec` and `products`
  // outlive the object.
  SensitivityProbe(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
                   TeamProducts* products, cpu::Isa isa, ScratchFloats hidden);

  // Begins a variant of the model: the layer that comes next is `altered` instead of itself. Takes
  // as many floats again; the errors are those of ScratchFloats::Like.
  absl::Status Branch(const LayerWeights& altered);

  // Runs the original and every variant begun in an earlier layer through the next layer.
  void Advance(const LayerWeights& weights);

  // After the last layer: for each variant, in the order of Branch, the mean over all positions of
  // KL(original || variant) of the next token, in nats.
  std::vector<double> Divergences(std::span<const float> final_norm, const Matrix& head);

  // Keeps where the original stands. ReturnToMark goes back there and forgets all variants.
  absl::Status Mark();
  void ReturnToMark();

 private:
  // Copies all numbers, a part at a time.
  void Copy(ScratchFloats* from, ScratchFloats* to) const;

  const ModelSpec& spec_;
  const CalibrationWindows windows_;
  ThreadTeam* const team_;
  const cpu::Isa isa_;
  DenseLinear linear_;
  ScratchFloats hidden_;                 // [windows * context, E], of the original
  ScratchFloats marked_;                 // likewise
  std::vector<ScratchFloats> variants_;  // likewise
  size_t advanced_ = 0;                  // variants begun before the layer that comes next
};

}  // namespace fewbit
