#include "runtime/eval/score_rows.h"

#include <algorithm>
#include <cmath>

#include "runtime/eval/divergence.h"

namespace fewbit {

int Argmax(std::span<const float> row) {
  return static_cast<int>(std::max_element(row.begin(), row.end()) - row.begin());
}

// Rows are shared out, each position has a place of its own.
void RowScores::Add(std::span<const float> logits, std::span<const float> reference,
                    std::span<const TokenId> targets, ThreadTeam* team) {
  const int rows = static_cast<int>(targets.size());
  if (rows == 0) return;
  const size_t vocab = logits.size() / targets.size();
  positions_.assign(targets.size(), Position{});
  compared_ = !reference.empty();
  team->Run([&](int rank) {
    const Share share = ShareOf(rows, 1, rank, team->size());
    for (int r = share.begin; r < share.end; ++r) {
      Position& position = positions_[r];
      const std::span<const float> row = logits.subspan(r * vocab, vocab);
      const double norm = LogSumExp(row);
      position.nll = norm - static_cast<double>(row[ToInt(targets[r])]);
      if (reference.empty()) continue;
      const std::span<const float> other = reference.subspan(r * vocab, vocab);
      const double other_norm = LogSumExp(other);
      position.reference_nll = other_norm - static_cast<double>(other[ToInt(targets[r])]);
      position.kl = KlDivergence(other, other_norm, row, norm);
      position.agree = Argmax(row) == Argmax(other);
    }
  });
  for (const Position& position : positions_) {
    nll_ += position.nll;
    reference_nll_ += position.reference_nll;
    kl_ += position.kl;
    agree_ += position.agree ? 1 : 0;
  }
  tokens_ += rows;
}

TextScore RowScores::Score() const {
  const double tokens = static_cast<double>(tokens_);
  TextScore score;
  score.tokens = tokens_;
  score.nll = nll_ / tokens;
  score.perplexity = std::exp(score.nll);
  if (compared_) {
    score.reference_perplexity = std::exp(reference_nll_ / tokens);
    score.kl_divergence = kl_ / tokens;
    score.top1_agreement = static_cast<double>(agree_) / tokens;
  }
  return score;
}

}  // namespace fewbit
