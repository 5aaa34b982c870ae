#include "runtime/quantize/error_feedback.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/quant_layout.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

// Rows of the panel that is factored by one thread before all threads update the rest.
constexpr int kPanel = 32;
// Columns that such a panel stays in a processor's cache for.
constexpr int kTileColumns = 512;
// Columns of the inverse that share one pass over the factor.
constexpr int kColumns = 16;

// Upper triangles [n, n] are stored without what is below them, half the memory for large n: row i
// is where its column 0 would be, and begins at column i.
template <typename T>
T* Row(T* triangle, int n, int i) {
  return triangle + static_cast<size_t>(i) * n - static_cast<size_t>(i) * (i + 1) / 2;
}
size_t TriangleSize(int n) { return static_cast<size_t>(n) * (n + 1) / 2; }

// The upper triangle of a [n, n] -> R with R^T R = a, in place. Each element has one order of
// summation, whatever the team. False where a pivot is not positive.
bool Cholesky(int n, ThreadTeam* team, const LaneKernels& kernels, std::vector<double>* a) {
  const auto row = [&](int i) { return Row(a->data(), n, i); };
  // Takes rows [begin, end) of R out of row i of what is left, for the columns [from, to).
  const auto update = [&](int i, int begin, int end, int from, int to) {
    const double* rows[kPanel];
    double factors[kPanel];
    for (int k = begin; k < end; ++k) {
      rows[k - begin] = row(k) + from;
      factors[k - begin] = row(k)[i];
    }
    kernels.subtract_scaled(row(i) + from, rows, factors, end - begin, to - from);
  };
  for (int begin = 0; begin < n; begin += kPanel) {
    const int end = std::min(begin + kPanel, n);
    for (int k = begin; k < end; ++k) {
      update(k, begin, k, k, n);
      const double pivot = row(k)[k];
      if (!(pivot > 0.0)) return false;
      const double root = std::sqrt(pivot);
      for (int j = k; j < n; ++j) row(k)[j] /= root;
    }
    team->Run([&](int rank) {
      for (int from = end; from < n; from += kTileColumns) {
        const int to = std::min(from + kTileColumns, n);
        // Every size()-th row: early rows are longer.
        for (int i = end + rank; i < to; i += team->size()) {
          update(i, begin, end, std::max(i, from), to);
        }
      }
    });
  }
  return true;
}

// Calls store(i, c, value) for every element i >= c of the inverse of R^T, columns shared out among
// the team.
template <typename Store>
void InvertTransposed(int n, const std::vector<double>& r, ThreadTeam* team,
                      const LaneKernels& kernels, const Store& store) {
  const int blocks = (n + kColumns - 1) / kColumns;
  team->Run([&](int rank) {
    std::vector<double> rest(static_cast<size_t>(kColumns) * n);
    const double* rows[kPanel];
    double values[kPanel];
    for (int block = rank; block < blocks; block += team->size()) {
      const int first = block * kColumns;
      const int last = std::min(first + kColumns, n);
      std::fill(rest.begin(), rest.end(), 0.0);
      for (int c = first; c < last; ++c) rest[static_cast<size_t>(c - first) * n + c] = 1.0;
      for (int begin = first; begin < n; begin += kPanel) {
        const int end = std::min(begin + kPanel, n);
        for (int c = first; c < std::min(last, end); ++c) {
          double* column = rest.data() + static_cast<size_t>(c - first) * n;
          const int top = std::max(begin, c);  // above it the column is 0
          for (int i = top; i < end; ++i) {
            const double* row = Row(r.data(), n, i);
            const double value = column[i] / row[i];
            store(i, c, value);
            values[i - top] = value;
            rows[i - top] = row + end;
            const double* within = row + i + 1;
            kernels.subtract_scaled(column + i + 1, &within, &value, 1, end - i - 1);
          }
          kernels.subtract_scaled(column + end, rows, values, end - top, n - end);
        }
      }
    }
  });
}

}  // namespace

// With the order of channels turned round, H = L L^T gives H^-1 = L^-T L^-1, and L^-1 read
// backwards is the wanted upper factor U of H^-1 = U^T U. So one Cholesky factorization and one
// triangular inversion, no explicit H^-1.
absl::StatusOr<std::unique_ptr<ErrorFeedback>> ErrorFeedback::Create(
    const std::vector<float>& hessian, std::span<const int> channels, ThreadTeam* team,
    const LaneKernels& kernels) {
  const int n = static_cast<int>(channels.size());
  FEWBIT_CHECK(hessian.size() == static_cast<size_t>(n) * n) << "K = " << n;
  double mean = 0.0;
  for (int i = 0; i < n; ++i) mean += hessian[static_cast<size_t>(i) * n + i];
  mean = mean > 0.0 ? mean / n : 1.0;
  std::vector<double> factor(TriangleSize(n));
  for (int i = 0; i < n; ++i) {
    const float* row = hessian.data() + static_cast<size_t>(channels[n - 1 - i]) * n;
    double* out = Row(factor.data(), n, i);
    for (int j = i; j < n; ++j) out[j] = row[channels[n - 1 - j]];
    out[i] += kHessianDamping * mean;
  }
  if (!Cholesky(n, team, kernels, &factor)) {
    return absl::InternalError(
        absl::StrCat("the ", n, " x ", n, " Hessian is not positive definite"));
  }
  auto feedback = std::unique_ptr<ErrorFeedback>(new ErrorFeedback);
  feedback->size_ = n;
  feedback->upper_.resize(TriangleSize(n));
  feedback->weights_.resize(n);
  InvertTransposed(n, factor, team, kernels, [&](int i, int c, double value) {
    // L^-1 at (i, c) is U at (n-1-i, n-1-c).
    Row(feedback->upper_.data(), n, n - 1 - i)[n - 1 - c] = static_cast<float>(value);
  });
  for (int i = 0; i < n; ++i) {
    float* row = Row(feedback->upper_.data(), n, i);
    const float pivot = row[i];
    feedback->weights_[i] = 1.0f / (pivot * pivot);
    for (int j = i; j < n; ++j) row[j] /= pivot;
  }
  return feedback;
}

void ErrorFeedback::SpreadInStrip(const LaneKernels& kernels, int i, const float* errors,
                                  float* work) const {
  const int end = (i / kGroup + 1) * kGroup;
  kernels.subtract_outer(work + static_cast<size_t>(i + 1) * kLanes, errors,
                         Row(upper_.data(), size_, i) + i + 1, end - i - 1);
}

void ErrorFeedback::SpreadStrip(const LaneKernels& kernels, int strip, const float* errors,
                                float* work) const {
  const int begin = strip * kGroup, end = begin + kGroup;
  const float* rows[kGroup];
  for (int k = 0; k < kGroup; ++k) rows[k] = Row(upper_.data(), size_, begin + k) + end;
  kernels.subtract_outers(work + static_cast<size_t>(end) * kLanes, errors, rows, kGroup,
                          size_ - end);
}

// Strip by strip, and within a strip channel by channel.
void ErrorFeedback::Solve(const LaneKernels& kernels, float* rows) const {
  // H^-1 = U^T U; row i of U is row i of upper_ times U_ii, and weights_ has 1 / U_ii^2.
  const auto channel = [rows](int i) { return rows + static_cast<size_t>(i) * kLanes; };
  const auto row = [this](int i) { return Row(upper_.data(), size_, i); };
  const float* later[kGroup];
  for (int begin = 0; begin < size_; begin += kGroup) {
    const int end = begin + kGroup;
    float sums[kGroup * kLanes] = {};
    for (int i = begin; i < end; ++i) {
      const float* own = row(i) + i;
      kernels.add_inners(sums + (i - begin) * kLanes, &own, channel(i), 1, end - i);
      later[i - begin] = row(i) + end;
    }
    kernels.add_inners(sums, later, channel(end), kGroup, size_ - end);
    for (int i = begin; i < end; ++i) {
      for (int l = 0; l < kLanes; ++l) {
        channel(i)[l] = sums[(i - begin) * kLanes + l] / weights_[i];
      }
    }
  }
  for (int begin = size_ - kGroup; begin >= 0; begin -= kGroup) {
    const int end = begin + kGroup;
    float negative[kGroup * kLanes];  // the last channel first
    for (int i = 0; i < kGroup; ++i) {
      for (int l = 0; l < kLanes; ++l) negative[i * kLanes + l] = -channel(end - 1 - i)[l];
      later[i] = row(end - 1 - i) + end;
    }
    for (int i = end - 1; i >= begin; --i) {
      kernels.subtract_outer(channel(i + 1), negative + (end - 1 - i) * kLanes, row(i) + i + 1,
                             end - i - 1);
    }
    kernels.subtract_outers(channel(end), negative, later, kGroup, size_ - end);
  }
}

void RefitSubScale(const LaneKernels& kernels, const TileBlock& block, int strip, TileFit* fit) {
  constexpr int kSubScales = quant::kMaxSubScale + 1;
  alignas(64) float steps[kSubScales * kLanes];
  alignas(64) float errors[kSubScales * kLanes];
  for (int s = 0; s < kSubScales; ++s) {
    for (int l = 0; l < kLanes; ++l) steps[s * kLanes + l] = static_cast<float>(s) * fit->d[l];
  }
  kernels.symmetric_errors(block.bits, block.w[strip], block.h[strip], steps, kSubScales, errors);
  for (int l = 0; l < kLanes; ++l) {
    int best = 0;
    for (int s = 1; s < kSubScales; ++s) {
      if (errors[s * kLanes + l] < errors[best * kLanes + l]) best = s;
    }
    fit->sub[strip][l] = static_cast<uint8_t>(best);
  }
}

}  // namespace fewbit
