#include "runtime/quantize/sensitivity_probe.h"

#include <algorithm>
#include <utility>

#include "runtime/eval/divergence.h"
#include "runtime/models/decoder.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kLogitRows = 64;  // of one product with the head

}  // namespace

SensitivityProbe::SensitivityProbe(const ModelSpec& spec, const Matrix& embedding,
                                   CalibrationWindows windows, TeamProducts* products, cpu::Isa isa,
                                   ScratchFloats hidden)
    : spec_(spec),
      windows_(std::move(windows)),
      team_(products->team()),
      isa_(isa),
      linear_(products, isa),
      hidden_(std::move(hidden)) {
  FEWBIT_CHECK_EQ(hidden_.size(), windows_.tokens.size() * spec.hidden_size);
  EmbedWindows(spec, embedding, windows_, &hidden_);
}

void SensitivityProbe::Copy(ScratchFloats* from, ScratchFloats* to) const {
  constexpr size_t kPart = 4 << 20;
  for (size_t begin = 0; begin < from->size(); begin += kPart) {
    const size_t count = std::min(kPart, from->size() - begin);
    std::copy_n(from->values().begin() + static_cast<std::ptrdiff_t>(begin), count,
                to->values().begin() + static_cast<std::ptrdiff_t>(begin));
    from->Release(begin, count);
    to->Release(begin, count);
  }
}

absl::Status SensitivityProbe::Branch(const LayerWeights& altered) {
  absl::StatusOr<ScratchFloats> variant = ScratchFloats::Like(hidden_);
  if (!variant.ok()) return variant.status();
  Copy(&hidden_, &*variant);
  LayerByLayer runner(spec_, team_, isa_, &linear_);
  RunWindows(spec_, altered, windows_.context, &*variant, &runner);
  variants_.push_back(*std::move(variant));
  return absl::OkStatus();
}

void SensitivityProbe::Advance(const LayerWeights& weights) {
  LayerByLayer runner(spec_, team_, isa_, &linear_);
  for (size_t v = 0; v < advanced_; ++v) {
    RunWindows(spec_, weights, windows_.context, &variants_[v], &runner);
  }
  RunWindows(spec_, weights, windows_.context, &hidden_, &runner);
  advanced_ = variants_.size();
}

absl::Status SensitivityProbe::Mark() {
  if (marked_.empty()) {
    absl::StatusOr<ScratchFloats> place = ScratchFloats::Like(hidden_);
    if (!place.ok()) return place.status();
    marked_ = *std::move(place);
  }
  Copy(&hidden_, &marked_);
  return absl::OkStatus();
}

void SensitivityProbe::ReturnToMark() {
  Copy(&marked_, &hidden_);
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
    ComputeLogits(spec_, final_norm, head, hidden_.values().data() + offset, rows, team_, isa_,
                  original.data(), &linear_);
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
      ComputeLogits(spec_, final_norm, head, variants_[v].values().data() + offset, rows, team_,
                    isa_, variant.data(), &linear_);
      for_rows([&](int r) {
        const std::span<const float> row = row_of(variant, r);
        of_rows[r] = KlDivergence(row_of(original, r), norms[r], row, LogSumExp(row));
      });
      for (int r = 0; r < rows; ++r) sums[v] += of_rows[r];
      variants_[v].Release(offset, static_cast<size_t>(rows) * spec_.hidden_size);
    }
    hidden_.Release(offset, static_cast<size_t>(rows) * spec_.hidden_size);
  }
  for (double& sum : sums) sum /= tokens;
  return sums;
}

}  // namespace fewbit
