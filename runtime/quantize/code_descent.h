// Coordinate descent on codes and scales after error feedback: one at a time, each code, sub-scale
// and d of a row moves to the value that is best for the layer's output given all others. Error
// feedback decides each channel once, knowing nothing of how later ones will be rounded; this takes
// the decisions again. (Descent on codes: e.g. CDQuant, arXiv 2406.17542; on the scales as a
// least-squares refit.) Symmetric levels only.
#pragma once

#include <span>
#include <vector>

#include "runtime/quantize/encoded_block.h"
#include "runtime/quantize/methods.h"

namespace fewbit {

// Lowers (w^ - w)^T H (w^ - w) of each row, H with the damping of error feedback. Thread rule:
// immutable.
class CodeDescent {
 public:
  // `hessian` [K, K] in source order and `places` [strips] outlive the object.
  CodeDescent(const std::vector<float>& hessian, std::span<const StripPlace> places,
              const LaneKernels& kernels);

  // `weights` [K channels in source order][16 rows].
  void Run(const std::vector<float>& weights, int sweeps, Descent moves, EncodedBlock* block) const;

 private:
  struct State;
  void SpreadInStrip(int source, int k, const float* change, State* state) const;
  void SpreadStrip(int source, const float* changes, State* state) const;
  void Spread(int source, const float* changes, State* state) const;
  void MoveSubScale(int strip, State* state) const;
  void MoveCodes(int strip, State* state) const;
  void MoveTileScales(int fit, int first_strip, int last_strip, State* state) const;
  const float* Row(int source) const {
    return hessian_.data() + static_cast<size_t>(source) * size_;
  }

  const std::vector<float>& hessian_;
  const std::span<const StripPlace> places_;
  const LaneKernels& kernels_;
  const int size_;
  float damping_ = 0.0f;
};

}  // namespace fewbit
