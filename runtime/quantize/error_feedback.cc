#include "runtime/quantize/error_feedback.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/quant_layout.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr double kDamping = 0.01;

// Lower Cholesky factor in place, row by row (the upper part is left alone). Column j is finished
// by every rank for its own rows after row j is done, so each element has one fixed order of
// summation. Returns false where a pivot is not positive.
bool Cholesky(int n, ThreadTeam* team, std::vector<double>* a) {
  bool good = true;
  constexpr int kPanel = 32;
  for (int begin = 0; begin < n && good; begin += kPanel) {
    const int end = std::min(begin + kPanel, n);
    for (int j = begin; j < end; ++j) {
      double* row = a->data() + static_cast<size_t>(j) * n;
      for (int c = begin; c <= j; ++c) {
        const double* other = a->data() + static_cast<size_t>(c) * n;
        double sum = row[c];
        for (int k = begin; k < c; ++k) sum -= row[k] * other[k];
        if (c < j) {
          row[c] = sum / other[c];
        } else {
          if (!(sum > 0.0)) return false;
          row[c] = std::sqrt(sum);
        }
      }
    }
    team->Run([&](int rank) {
      // Interleaved rows: later rows have more work.
      for (int i = end + rank; i < n; i += team->size()) {
        double* row = a->data() + static_cast<size_t>(i) * n;
        for (int c = begin; c < end; ++c) {
          const double* other = a->data() + static_cast<size_t>(c) * n;
          double sum = row[c];
          for (int k = begin; k < c; ++k) sum -= row[k] * other[k];
          row[c] = sum / other[c];
        }
      }
      team->Barrier();
      for (int i = end + rank; i < n; i += team->size()) {
        double* row = a->data() + static_cast<size_t>(i) * n;
        for (int j = end; j <= i; ++j) {
          const double* other = a->data() + static_cast<size_t>(j) * n;
          double sum = 0.0;
          for (int k = begin; k < end; ++k) sum += row[k] * other[k];
          row[j] -= sum;
        }
      }
    });
  }
  return good;
}

}  // namespace

// With the order of channels turned round, H = L L^T gives H^-1 = L^-T L^-1, and L^-1 read
// backwards is the wanted upper factor U of H^-1 = U^T U. So one Cholesky factorization and one
// triangular inversion, no explicit H^-1.
absl::StatusOr<std::unique_ptr<ErrorFeedback>> ErrorFeedback::Create(
    const std::vector<float>& hessian, std::span<const int> channels, ThreadTeam* team,
    const LaneKernels& /*kernels*/) {
  const int n = static_cast<int>(channels.size());
  FEWBIT_CHECK(hessian.size() == static_cast<size_t>(n) * n) << "K = " << n;
  double mean = 0.0;
  for (int i = 0; i < n; ++i) mean += hessian[static_cast<size_t>(i) * n + i];
  mean = mean > 0.0 ? mean / n : 1.0;
  std::vector<double> factor(static_cast<size_t>(n) * n);
  for (int i = 0; i < n; ++i) {
    const float* row = hessian.data() + static_cast<size_t>(channels[n - 1 - i]) * n;
    double* out = factor.data() + static_cast<size_t>(i) * n;
    for (int j = 0; j < n; ++j) out[j] = row[channels[n - 1 - j]];
    out[i] += kDamping * mean;
  }
  if (!Cholesky(n, team, &factor)) {
    return absl::InternalError(
        absl::StrCat("the ", n, " x ", n, " Hessian is not positive definite"));
  }
  auto feedback = std::unique_ptr<ErrorFeedback>(new ErrorFeedback);
  feedback->size_ = n;
  feedback->upper_.assign(static_cast<size_t>(n) * n, 0.0f);
  feedback->weights_.resize(n);
  // Column c of L^-1 by forward substitution; columns are independent.
  team->Run([&](int rank) {
    std::vector<double> x(n);
    for (int c = rank; c < n; c += team->size()) {
      for (int i = c; i < n; ++i) {
        const double* row = factor.data() + static_cast<size_t>(i) * n;
        double sum = i == c ? 1.0 : 0.0;
        for (int k = c; k < i; ++k) sum -= row[k] * x[k];
        x[i] = sum / row[i];
        // L^-1 at (i, c) is U at (n-1-i, n-1-c).
        feedback->upper_[static_cast<size_t>(n - 1 - i) * n + (n - 1 - c)] =
            static_cast<float>(x[i]);
      }
    }
  });
  for (int i = 0; i < n; ++i) {
    float* row = feedback->upper_.data() + static_cast<size_t>(i) * n;
    const float pivot = row[i];
    feedback->weights_[i] = 1.0f / (pivot * pivot);
    for (int j = i; j < n; ++j) row[j] /= pivot;
  }
  return feedback;
}

void ErrorFeedback::Spread(const LaneKernels& kernels, int i, const float* errors,
                           float* work) const {
  const float* row = upper_.data() + static_cast<size_t>(i) * size_;
  kernels.subtract_outer(work + static_cast<size_t>(i + 1) * kLanes, errors, row + i + 1,
                         size_ - i - 1);
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
