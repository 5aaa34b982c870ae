#include "runtime/eval/evaluate.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/eval/score_rows.h"
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

// One window through the model (and the reference): window[i] predicts window[i + 1].
absl::Status ScoreWindow(std::span<const TokenId> window, SequenceRunner* runner,
                         SequenceRunner* reference, ThreadTeam* team, RowScores* scores) {
  runner->Reset();
  if (reference != nullptr) reference->Reset();
  for (size_t begin = 0; begin + 1 < window.size(); begin += SequenceRunner::kMaxStep) {
    const size_t count = std::min<size_t>(SequenceRunner::kMaxStep, window.size() - 1 - begin);
    const std::span<const TokenId> inputs = window.subspan(begin, count);
    const auto logits = runner->Step(inputs);
    if (!logits.ok()) return Annotated("model", logits.status());
    absl::StatusOr<std::span<const float>> other{std::span<const float>()};
    if (reference != nullptr) other = reference->Step(inputs);
    if (!other.ok()) return Annotated("reference", other.status());
    scores->Add(*logits, *other, window.subspan(begin + 1, count), team);
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
  RowScores scores;
  std::vector<TokenId> window;
  for (size_t w = 0; w < windows->size(); ++w) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
      return absl::CancelledError("stopped");
    }
    if (progress) progress(static_cast<int>(w), static_cast<int>(windows->size()));
    windows->Get(w, &window);
    const absl::Status status =
        ScoreWindow(window, runner->get(), reference_runner.get(), team, &scores);
    if (!status.ok()) return status;
  }
  TextScore score = scores.Score();
  score.windows = static_cast<int>(windows->size());
  score.stride = static_cast<int>(windows->stride());
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
