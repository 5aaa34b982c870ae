// Coordinate descent on codes and scales after error feedback: one at a time, each code, sub-scale
// and d of a row moves to the value that is best for the layer's output given all others. Error
// feedback decides each channel once, knowing nothing of how later ones will be rounded; this takes
// the decisions again. (Descent on codes: e.g. CDQuant, arXiv 2406.17542; on the scales as a
// least-squares refit.) Symmetric levels only.
//
// Here is one tile: what lowers (w^ - w)^T H (w^ - w) of each row when only its channels move.
#pragma once

#include "runtime/quantize/methods.h"
#include "runtime/quantize/tile_codes.h"

namespace fewbit {

// A tile of sixteen rows; arrays are [channels][16 rows].
struct DescentTile {
  TileCodes codes;
  TileFit fit;
  alignas(64) float slope[kMaxTileChannels * kLanes];   // H (w^ - w), half the gradient
  alignas(64) float change[kMaxTileChannels * kLanes];  // of w^ so far
  // By how much the weights move with d; what that does to the slopes.
  alignas(64) float direction[kMaxTileChannels * kLanes];
  alignas(64) float bend[kMaxTileChannels * kLanes];
};

// Thread rule: immutable.
class CodeDescent {
 public:
  // `hessian` [channels, channels]: of the tile's channels, with the damping of error feedback; it
  // outlives the object.
  CodeDescent(const LaneKernels& kernels, const float* hessian, int channels)
      : kernels_(kernels), hessian_(hessian), channels_(channels) {}

  // Sub-scales and, if they are to move, codes, strip by strip. Leaves `direction`.
  void MoveStrips(Descent moves, DescentTile* tile) const;

  // The best d of each row for its codes and sub-scales; wants bend = hessian * direction.
  void MoveTileScales(DescentTile* tile) const;

 private:
  void SpreadInStrip(int strip, int k, const float* change, DescentTile* tile) const;
  void SpreadStrip(int strip, const float* changes, DescentTile* tile) const;
  void MoveSubScale(int strip, float* changes, DescentTile* tile) const;
  void MoveCodes(int strip, float* changes, DescentTile* tile) const;
  const float* Row(int channel) const {
    return hessian_ + static_cast<size_t>(channel) * channels_;
  }

  const LaneKernels& kernels_;
  const float* const hessian_;
  const int channels_;
};

}  // namespace fewbit
