// What calibration knows about the inputs x of one linear layer, as means over tokens.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "runtime/quantize/scratch_floats.h"
#include "runtime/thread_team.h"

namespace fewbit {

// The Hessian [K, K], symmetric, in the lower triangle of a square of floats; the upper one is
// where it is factored, so that both together take K x K floats. Memory is taken where it is
// written: until it is factored, half of that. Thread rule: one caller at a time.
class HessianMatrix {
 public:
  HessianMatrix() = default;  // empty
  explicit HessianMatrix(int size);

  int size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // Row i of the square [K].
  float* row(int i) { return square_.values().data() + static_cast<size_t>(i) * size_; }
  const float* row(int i) const { return square_.values().data() + static_cast<size_t>(i) * size_; }
  float at(int i, int j) const { return i >= j ? row(i)[j] : row(j)[i]; }
  double MeanDiagonal() const;  // 1 if that is not positive

  // Puts channels[i], numbered as at the beginning, in the i-th place, in both triangles.
  void Arrange(std::span<const int> channels, ThreadTeam* team);

 private:
  void FillUpper(std::span<const int> places, int first);
  void MirrorUpper(int first);

  int size_ = 0;
  ScratchFloats square_;
  std::vector<int> channels_;  // by place; empty: as at the beginning
};

// Rows of a weight matrix with K columns that are quantized together, a multiple of 16: few, unless
// K is so large that reading the Hessian takes longer than what many small panels gain.
constexpr int PanelRows(int cols) { return cols >= 8192 ? 64 : 32; }

struct Hessian {
  std::vector<float> diagonal;  // [K] mean of x_k^2
  HessianMatrix matrix;         // mean of x_i x_j; only for methods with error feedback
  // How far the inputs are from z, those in the original model, in one of two forms or, where that
  // is not wanted or z = x, in none:
  // [K, K] mean of x_i (z_j - x_j);
  ScratchFloats drift;
  // for the input of one matrix W with fewer rows than columns: [panels][K][PanelRows(K)] mean of
  // x_i (W (z - x))_r for the rows r of each panel, 0 behind the last.
  ScratchFloats misses;
};

}  // namespace fewbit
