#include "runtime/quantize/error_feedback.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/products/pieces.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kTileRows = 128;  // of the factor, that one thread updates

// c += factor * a b, everything in row-major order.
struct Update {
  int m, n, k;
  TileOperand a, b;
  float* c;
  int64_t stride;
};
TileProduct Subtract(const Update& update) {
  TileProduct product;
  product.m = update.m;
  product.n = update.n;
  product.k = update.k;
  product.a = update.a;
  product.b = update.b;
  product.alpha = -1.0f;
  product.beta = 1.0f;
  product.c = update.c;
  product.c_row_stride = update.stride;
  return product;
}

}  // namespace

ErrorFeedback::ErrorFeedback(HessianMatrix* hessian)
    : hessian_(*hessian),
      size_(hessian->size()),
      weights_(size_),
      roots_(size_),
      inverses_(static_cast<size_t>(Pieces(size_, kBlock)) * kBlock * kBlock) {}

absl::StatusOr<std::unique_ptr<ErrorFeedback>> ErrorFeedback::Create(HessianMatrix* hessian,
                                                                     TeamProducts* products) {
  FEWBIT_CHECK(!hessian->empty());
  auto feedback = std::unique_ptr<ErrorFeedback>(new ErrorFeedback(hessian));
  if (!feedback->Factor(products)) {
    return absl::InternalError(absl::StrCat("the ", hessian->size(), " x ", hessian->size(),
                                            " Hessian has values that are not finite"));
  }
  return feedback;
}

// Blocks of columns from the last to the first: what the later ones explain is taken out, the block
// on the diagonal is factored as C C^T with C upper triangular, and the rows above are divided by
// C^T. At the end U = C sqrt(D)^-1.
bool ErrorFeedback::Factor(TeamProducts* products) {
  const double damping = kHessianDamping * hessian_.MeanDiagonal();
  std::vector<float> block(static_cast<size_t>(kBlock) * kBlock);
  for (int begin = (size_ - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
    const int end = std::min(begin + kBlock, size_);
    for (int i = begin; i < end; ++i) {
      for (int j = begin; j < end; ++j) {
        block[(i - begin) * kBlock + j - begin] = hessian_.row(std::min(i, j))[std::max(i, j)];
      }
      block[(i - begin) * (kBlock + 1)] += static_cast<float>(damping);
    }
    SubtractLater(begin, end, products, block.data());
    if (!FactorBlock(begin, end, damping, block.data())) return false;
    DivideByBlock(begin, end, inverse(begin), products);
  }
  ToUnitDiagonal(products);
  return true;
}

// `diagonal` [kBlock, kBlock]: the block on the diagonal, whose place also holds a part of H.
void ErrorFeedback::SubtractLater(int begin, int end, TeamProducts* products,
                                  float* diagonal) const {
  if (end == size_) return;
  const int columns = end - begin, later = size_ - end;
  const auto rows = [&](int row) { return TileOperand{hessian_.row(row) + end, size_, false}; };
  TileOperand right = rows(begin);
  right.transposed = true;
  std::vector<TileProduct> tiles;
  tiles.push_back(Subtract({columns, columns, later, rows(begin), right, diagonal, kBlock}));
  for (int row = 0; row < begin; row += kTileRows) {
    tiles.push_back(Subtract({std::min(kTileRows, begin - row), columns, later, rows(row), right,
                              hessian_.row(row) + begin, size_}));
  }
  products->Multiply(tiles);
}

// In double: C of `block` into the upper triangle of its place, C^-1 into inverse(begin). Each
// pivot is at least the damping, but for rounding: `floor`.
bool ErrorFeedback::FactorBlock(int begin, int end, double floor, float* block) {
  const int n = end - begin;
  double c[kBlock][kBlock] = {}, inverted[kBlock][kBlock] = {};
  for (int j = n - 1; j >= 0; --j) {
    double pivot = block[j * kBlock + j];
    for (int l = j + 1; l < n; ++l) pivot -= c[j][l] * c[j][l];
    if (!std::isfinite(pivot)) return false;
    c[j][j] = std::sqrt(std::max(pivot, floor));
    for (int r = 0; r < j; ++r) {
      double sum = block[r * kBlock + j];
      for (int l = j + 1; l < n; ++l) sum -= c[r][l] * c[j][l];
      c[r][j] = sum / c[j][j];
    }
  }
  for (int j = 0; j < n; ++j) {
    inverted[j][j] = 1.0 / c[j][j];
    for (int r = j - 1; r >= 0; --r) {
      double sum = 0.0;
      for (int l = r + 1; l <= j; ++l) sum -= c[r][l] * inverted[l][j];
      inverted[r][j] = sum / c[r][r];
    }
  }
  for (int r = 0; r < n; ++r) {
    roots_[begin + r] = static_cast<float>(c[r][r]);
    weights_[begin + r] = static_cast<float>(c[r][r] * c[r][r]);
    for (int j = r + 1; j < n; ++j) {
      hessian_.row(begin + r)[begin + j] = static_cast<float>(c[r][j]);
    }
    for (int j = 0; j < n; ++j) {
      inverse(begin)[r * kBlock + j] = static_cast<float>(inverted[r][j]);
    }
  }
  return true;
}

// The rows above the block times C^-T.
void ErrorFeedback::DivideByBlock(int begin, int end, const float* inverse,
                                  TeamProducts* products) const {
  const int columns = end - begin;
  ForPieces(products->team(), begin, kTileRows, [&](int rank, int64_t first, int64_t last) {
    std::vector<float> old(static_cast<size_t>(last - first) * columns);
    for (int64_t i = first; i < last; ++i) {
      std::copy_n(hessian_.row(static_cast<int>(i)) + begin, columns,
                  old.data() + (i - first) * columns);
    }
    TileProduct product;
    product.m = static_cast<int>(last - first);
    product.n = product.k = columns;
    product.a = {old.data(), columns, false};
    product.b = {inverse, kBlock, true};
    product.c = hessian_.row(static_cast<int>(first)) + begin;
    product.c_row_stride = size_;
    products->multiplier(rank).Multiply(product);
  });
}

void ErrorFeedback::ToUnitDiagonal(TeamProducts* products) {
  std::vector<float> factors(size_);
  for (int i = 0; i < size_; ++i) factors[i] = 1.0f / roots_[i];
  ForPieces(products->team(), size_, kBlock, [&](int, int64_t first, int64_t last) {
    for (int i = static_cast<int>(first); i < last; ++i) {
      float* row = hessian_.row(i);
      for (int j = i + 1; j < size_; ++j) row[j] *= factors[j];
      float* inverted = inverse(static_cast<int>(first)) + (i - first) * kBlock;
      for (int j = 0; j < kBlock; ++j) inverted[j] *= roots_[i];
    }
  });
}

void ErrorFeedback::Collect(TileMultiplier* multiplier, int begin, int end, const float* errors,
                            int rows, float* result) const {
  if (begin == 0) {
    std::fill_n(result, static_cast<size_t>(end) * rows, 0.0f);
    return;
  }
  TileProduct product;
  product.m = end - begin;
  product.n = rows;
  product.k = begin;
  product.a = {hessian_.row(0) + begin, size_, true};
  product.b = {errors, rows, false};
  product.c = result;
  product.c_row_stride = rows;
  multiplier->Multiply(product);
}

void ErrorFeedback::SpreadInStrip(const LaneKernels& kernels, int i, const float* errors,
                                  float* next) const {
  const int end = (i / kGroup + 1) * kGroup;
  kernels.subtract_outer(next, errors, hessian_.row(i) + i + 1, end - i - 1);
}

void ErrorFeedback::SpreadStrip(const LaneKernels& kernels, int strip, const float* errors, int end,
                                float* next) const {
  const int begin = strip * kGroup, first = begin + kGroup;
  const float* rows[kGroup];
  for (int k = 0; k < kGroup; ++k) rows[k] = hessian_.row(begin + k) + first;
  kernels.subtract_outers(next, errors, rows, kGroup, end - first);
}

// U (D (U^T x)) = panel, block by block.
void ErrorFeedback::Solve(TileMultiplier* multiplier, int rows, float* panel) const {
  std::vector<float> old(static_cast<size_t>(kBlock) * rows);
  const auto channel = [&](int i) { return panel + static_cast<size_t>(i) * rows; };
  const auto take_out = [&](int begin, int count, int from, int terms, bool transposed) {
    if (terms == 0) return;
    const TileOperand a = transposed ? TileOperand{hessian_.row(from) + begin, size_, true}
                                     : TileOperand{hessian_.row(begin) + from, size_, false};
    multiplier->Multiply(
        Subtract({count, rows, terms, a, {channel(from), rows, false}, channel(begin), rows}));
  };
  const auto invert = [&](int begin, int count, bool transposed) {
    std::copy_n(channel(begin), static_cast<size_t>(count) * rows, old.data());
    TileProduct product;
    product.m = product.k = count;
    product.n = rows;
    product.a = {inverse(begin), kBlock, transposed};
    product.b = {old.data(), rows, false};
    product.c = channel(begin);
    product.c_row_stride = rows;
    multiplier->Multiply(product);
  };
  for (int begin = (size_ - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
    const int end = std::min(begin + kBlock, size_);
    take_out(begin, end - begin, end, size_ - end, false);
    invert(begin, end - begin, false);
  }
  for (int i = 0; i < size_; ++i) {
    for (int r = 0; r < rows; ++r) channel(i)[r] /= weights_[i];
  }
  for (int begin = 0; begin < size_; begin += kBlock) {
    const int end = std::min(begin + kBlock, size_);
    take_out(begin, end - begin, 0, begin, true);
    invert(begin, end - begin, true);
  }
}

}  // namespace fewbit
