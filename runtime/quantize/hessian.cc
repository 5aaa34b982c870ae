#include "runtime/quantize/hessian.h"

#include <algorithm>
#include <cstdint>

#include "runtime/products/pieces.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kBlock = 16;  // rows and columns that are rearranged together

}  // namespace

HessianMatrix::HessianMatrix(int size)
    : size_(size), square_(ScratchFloats::InMemory(static_cast<size_t>(size) * size)) {}

double HessianMatrix::MeanDiagonal() const {
  double sum = 0.0;
  for (int i = 0; i < size_; ++i) sum += row(i)[i];
  return sum > 0.0 ? sum / size_ : 1.0;
}

void HessianMatrix::Arrange(std::span<const int> channels, ThreadTeam* team) {
  FEWBIT_CHECK_EQ(channels.size(), static_cast<size_t>(size_));
  std::vector<int> place_of(size_), places(size_);
  for (int i = 0; i < size_; ++i) place_of[channels_.empty() ? i : channels_[i]] = i;
  std::vector<float> diagonal(size_);
  for (int i = 0; i < size_; ++i) {
    places[i] = place_of[channels[i]];
    diagonal[i] = row(places[i])[places[i]];
  }
  const int64_t blocks = Pieces(size_, kBlock);
  ForPieces(team, blocks, 1,
            [&](int, int64_t b, int64_t) { FillUpper(places, static_cast<int>(b) * kBlock); });
  ForPieces(team, blocks, 1,
            [&](int, int64_t b, int64_t) { MirrorUpper(static_cast<int>(b) * kBlock); });
  for (int i = 0; i < size_; ++i) row(i)[i] = diagonal[i];
  channels_.assign(channels.begin(), channels.end());
}

// The rows [first, first + kBlock) of the upper triangle, from the lower one.
void HessianMatrix::FillUpper(std::span<const int> places, int first) {
  const int last = std::min(first + kBlock, size_);
  for (int begin = first; begin < size_; begin += kBlock) {
    const int end = std::min(begin + kBlock, size_);
    for (int i = first; i < last; ++i) {
      float* out = row(i);
      for (int j = std::max(begin, i + 1); j < end; ++j) out[j] = at(places[i], places[j]);
    }
  }
}

// The rows [first, first + kBlock) of the lower triangle, from the upper one.
void HessianMatrix::MirrorUpper(int first) {
  const int last = std::min(first + kBlock, size_);
  for (int begin = 0; begin < last; begin += kBlock) {
    for (int i = first; i < last; ++i) {
      for (int j = begin; j < std::min(begin + kBlock, i); ++j) row(i)[j] = row(j)[i];
    }
  }
}

}  // namespace fewbit
