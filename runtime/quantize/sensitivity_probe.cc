#include "runtime/quantize/sensitivity_probe.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/models/decoder.h"

namespace fewbit {
namespace {

constexpr int kLogitRows = 64;  // of one product with the head

// The log of the sum of exp over a row.
double LogSum(const float* logits, int vocab) {
  const float top = *std::max_element(logits, logits + vocab);
  double sum = 0.0;
  for (int i = 0; i < vocab; ++i) sum += std::exp(logits[i] - top);
  return top + std::log(sum);
}

double RowDivergence(const float* original, const float* variant, int vocab) {
  const double log_original = LogSum(original, vocab);
  const double log_variant = LogSum(variant, vocab);
  double sum = 0.0;
  for (int i = 0; i < vocab; ++i) {
    const float log_p = original[i] - static_cast<float>(log_original);
    sum += std::exp(log_p) * (log_p - (variant[i] - static_cast<float>(log_variant)));
  }
  return sum;
}

}  // namespace

SensitivityProbe::SensitivityProbe(const ModelSpec& spec, const Matrix& embedding,
                                   CalibrationWindows windows, ThreadTeam* team, cpu::Isa isa)
    : spec_(spec),
      windows_(std::move(windows)),
      team_(team),
      isa_(isa),
      hidden_(windows_.tokens.size() * spec.hidden_size) {
  EmbedTokens(embedding, windows_.tokens, hidden_.data());
}

void SensitivityProbe::Branch(const LayerWeights& altered) {
  variants_.push_back(hidden_);
  RunWindows(spec_, altered, windows_.context, variants_.back(), team_, isa_, nullptr);
}

void SensitivityProbe::Advance(const LayerWeights& weights) {
  for (size_t v = 0; v < advanced_; ++v) {
    RunWindows(spec_, weights, windows_.context, variants_[v], team_, isa_, nullptr);
  }
  RunWindows(spec_, weights, windows_.context, hidden_, team_, isa_, nullptr);
  advanced_ = variants_.size();
}

void SensitivityProbe::ReturnToMark() {
  hidden_ = marked_;
  variants_.clear();
  advanced_ = 0;
}

std::vector<double> SensitivityProbe::Divergences(std::span<const float> final_norm,
                                                  const Matrix& head) {
  const int tokens = static_cast<int>(windows_.tokens.size());
  const int vocab = spec_.vocab_size;
  std::vector<float> original(static_cast<size_t>(kLogitRows) * vocab), variant(original.size());
  std::vector<double> of_rows(kLogitRows), sums(variants_.size(), 0.0);
  for (int begin = 0; begin < tokens; begin += kLogitRows) {
    const int rows = std::min(kLogitRows, tokens - begin);
    const size_t offset = static_cast<size_t>(begin) * spec_.hidden_size;
    ComputeLogits(spec_, final_norm, head, hidden_.data() + offset, rows, team_, isa_,
                  original.data());
    for (size_t v = 0; v < variants_.size(); ++v) {
      ComputeLogits(spec_, final_norm, head, variants_[v].data() + offset, rows, team_, isa_,
                    variant.data());
      team_->Run([&](int rank) {
        const Share share = ShareOf(rows, 1, rank, team_->size());
        for (int r = share.begin; r < share.end; ++r) {
          const size_t row = static_cast<size_t>(r) * vocab;
          of_rows[r] = RowDivergence(original.data() + row, variant.data() + row, vocab);
        }
      });
      for (int r = 0; r < rows; ++r) sums[v] += of_rows[r];
    }
  }
  for (double& sum : sums) sum /= tokens;
  return sums;
}

}  // namespace fewbit
