#include "runtime/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/eval/divergence.h"
#include "runtime/eval/sequence_runner.h"
#include "runtime/eval/windows.h"

namespace fewbit {

absl::Status CheckIds(std::span<const TokenId> ids, int vocab_size, const char* what) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ToInt(ids[i]) >= 0 && ToInt(ids[i]) < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(what, " token ", i, " has the id ", ToInt(ids[i]),
                     ", outside the model's vocabulary of ", vocab_size));
  }
  return absl::OkStatus();
}

namespace {

absl::Status Annotated(const char* which, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(which, ": ", status.message()));
}

int Argmax(std::span<const float> row) {
  return static_cast<int>(std::max_element(row.begin(), row.end()) - row.begin());
}

struct PositionScore {
  double nll = 0.0;
  double reference_nll = 0.0;
  double kl = 0.0;
  bool agree = false;
};

// Scores `targets` by logits [targets, V]; rows are shared out, each position has a place of its
// own.
void ScoreRows(std::span<const float> logits, std::span<const float> reference,
               std::span<const TokenId> targets, ThreadTeam* team, PositionScore* scores) {
  const int rows = static_cast<int>(targets.size());
  const size_t vocab = logits.size() / targets.size();
  team->Run([&](int rank) {
    const Share share = ShareOf(rows, 1, rank, team->size());
    for (int r = share.begin; r < share.end; ++r) {
      const std::span<const float> row = logits.subspan(r * vocab, vocab);
      const double norm = LogSumExp(row);
      scores[r].nll = norm - static_cast<double>(row[ToInt(targets[r])]);
      if (reference.empty()) continue;
      const std::span<const float> other = reference.subspan(r * vocab, vocab);
      const double other_norm = LogSumExp(other);
      scores[r].reference_nll = other_norm - static_cast<double>(other[ToInt(targets[r])]);
      scores[r].kl = KlDivergence(other, other_norm, row, norm);
      scores[r].agree = Argmax(row) == Argmax(other);
    }
  });
}

struct Sums {
  int64_t tokens = 0;
  double nll = 0.0;
  double reference_nll = 0.0;
  double kl = 0.0;
  int64_t agree = 0;
};

// One window through the model (and the reference): window[i] predicts window[i + 1].
absl::Status ScoreWindow(std::span<const TokenId> window, SequenceRunner* runner,
                         SequenceRunner* reference, ThreadTeam* team, Sums* sums) {
  runner->Reset();
  if (reference != nullptr) reference->Reset();
  std::vector<PositionScore> scores(SequenceRunner::kMaxStep);
  for (size_t begin = 0; begin + 1 < window.size(); begin += SequenceRunner::kMaxStep) {
    const size_t count = std::min<size_t>(SequenceRunner::kMaxStep, window.size() - 1 - begin);
    const std::span<const TokenId> inputs = window.subspan(begin, count);
    const auto logits = runner->Step(inputs);
    if (!logits.ok()) return Annotated("model", logits.status());
    absl::StatusOr<std::span<const float>> other{std::span<const float>()};
    if (reference != nullptr) other = reference->Step(inputs);
    if (!other.ok()) return Annotated("reference", other.status());
    ScoreRows(*logits, *other, window.subspan(begin + 1, count), team, scores.data());
    for (size_t i = 0; i < count; ++i) {
      sums->nll += scores[i].nll;
      sums->reference_nll += scores[i].reference_nll;
      sums->kl += scores[i].kl;
      sums->agree += scores[i].agree ? 1 : 0;
    }
    sums->tokens += static_cast<int64_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TextScore> ScoreText(const Model& model, const Model* reference,
                                    std::span<const TokenId> text, const TextOptions& options,
                                    ThreadTeam* team, const std::function<void(int, int)>& progress,
                                    const std::atomic<bool>* stop) {
  if (reference != nullptr && reference->spec.vocab_size != model.spec.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("the model has a vocabulary of ",
                                                   model.spec.vocab_size, ", the reference one of ",
                                                   reference->spec.vocab_size));
  }
  const absl::StatusOr<Windows> windows =
      Windows::Cut(text, model.spec.bos, model.spec.vocab_size, options);
  if (!windows.ok()) return windows.status();

  auto runner = SequenceRunner::Create(&model, team, options.context);
  if (!runner.ok()) return runner.status();
  std::unique_ptr<SequenceRunner> reference_runner;
  if (reference != nullptr) {
    auto created = SequenceRunner::Create(reference, team, options.context);
    if (!created.ok()) return created.status();
    reference_runner = *std::move(created);
  }
  Sums sums;
  std::vector<TokenId> window;
  for (size_t w = 0; w < windows->size(); ++w) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
      return absl::CancelledError("stopped");
    }
    if (progress) progress(static_cast<int>(w), static_cast<int>(windows->size()));
    windows->Get(w, &window);
    const absl::Status status =
        ScoreWindow(window, runner->get(), reference_runner.get(), team, &sums);
    if (!status.ok()) return status;
  }
  const double tokens = static_cast<double>(sums.tokens);
  TextScore score;
  score.tokens = sums.tokens;
  score.windows = static_cast<int>(windows->size());
  score.stride = static_cast<int>(windows->stride());
  score.nll = sums.nll / tokens;
  score.perplexity = std::exp(score.nll);
  if (reference != nullptr) {
    score.reference_perplexity = std::exp(sums.reference_nll / tokens);
    score.kl_divergence = sums.kl / tokens;
    score.top1_agreement = static_cast<double>(sums.agree) / tokens;
  }
  return score;
}

absl::StatusOr<PromptResult> RunPrompt(const Model& model, std::span<const TokenId> prompt,
                                       int greedy, bool want_logits, ThreadTeam* team) {
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt has no token");
  if (greedy < 0) {
    return absl::InvalidArgumentError(absl::StrCat("greedy is ", greedy, ", below 0 tokens"));
  }
  absl::Status status = CheckIds(prompt, model.spec.vocab_size, "prompt");
  if (!status.ok()) return status;
  const int64_t total = static_cast<int64_t>(prompt.size()) + greedy;
  if (total > model.spec.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and continuation are ", total,
                                                   " tokens, more than the model's context of ",
                                                   model.spec.max_context));
  }
  auto runner = SequenceRunner::Create(&model, team, static_cast<int>(total));
  if (!runner.ok()) return runner.status();
  const size_t vocab = model.spec.vocab_size;
  PromptResult result;
  absl::StatusOr<std::span<const float>> logits;
  for (size_t begin = 0; begin < prompt.size(); begin += SequenceRunner::kMaxStep) {
    const size_t count = std::min<size_t>(SequenceRunner::kMaxStep, prompt.size() - begin);
    logits = (*runner)->Step(prompt.subspan(begin, count));
    if (!logits.ok()) return Annotated("model", logits.status());
    if (want_logits) result.logits.insert(result.logits.end(), logits->begin(), logits->end());
  }
  for (int i = 0; i < greedy; ++i) {
    const TokenId next{Argmax(logits->last(vocab))};
    result.greedy_ids.push_back(next);
    if (i + 1 == greedy) break;
    logits = (*runner)->Step(std::span(&next, 1));
    if (!logits.ok()) return Annotated("model", logits.status());
  }
  return result;
}

}  // namespace fewbit
