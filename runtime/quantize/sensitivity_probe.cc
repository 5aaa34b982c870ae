#include "runtime/quantize/sensitivity_probe.h"

#include <algorithm>
#include <utility>

#include "runtime/eval/divergence.h"
#include "runtime/models/decoder.h"

namespace fewbit {
namespace {

constexpr int kLogitRows = 64;  // of one product with the head

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
  std::vector<double> norms(kLogitRows), of_rows(kLogitRows), sums(variants_.size(), 0.0);
  for (int begin = 0; begin < tokens; begin += kLogitRows) {
    const int rows = std::min(kLogitRows, tokens - begin);
    const size_t offset = static_cast<size_t>(begin) * spec_.hidden_size;
    ComputeLogits(spec_, final_norm, head, hidden_.data() + offset, rows, team_, isa_,
                  original.data());
    const auto row_of = [&](const std::vector<float>& logits, int r) {
      return std::span(logits).subspan(static_cast<size_t>(r) * vocab, vocab);
    };
    const auto for_rows = [&](const auto& fn) {
      team_->Run([&](int rank) {
        const Share share = ShareOf(rows, 1, rank, team_->size());
        for (int r = share.begin; r < share.end; ++r) fn(r);
      });
    };
    for_rows([&](int r) { norms[r] = LogSumExp(row_of(original, r)); });
    for (size_t v = 0; v < variants_.size(); ++v) {
      ComputeLogits(spec_, final_norm, head, variants_[v].data() + offset, rows, team_, isa_,
                    variant.data());
      for_rows([&](int r) {
        const std::span<const float> row = row_of(variant, r);
        of_rows[r] = KlDivergence(row_of(original, r), norms[r], row, LogSumExp(row));
      });
      for (int r = 0; r < rows; ++r) sums[v] += of_rows[r];
    }
  }
  for (double& sum : sums) sum /= tokens;
  return sums;
}

}  // namespace fewbit
