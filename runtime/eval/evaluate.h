// What fewbit-eval measures: perplexity over windows of a text, the distance of one model from
// another, logits and greedy continuations. On token ids; its program is server/tools/eval_main.cc.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/thread_team.h"
#include "scheduler/ids.h"

namespace fewbit {

// INVALID_ARGUMENT names the first id outside the vocabulary; `what` they belong to.
absl::Status CheckIds(std::span<const TokenId> ids, int vocab_size, const char* what);

struct TextOptions {
  int context = 512;    // tokens per window, BOS included
  int max_windows = 0;  // 0: all
};

struct TextScore {
  int64_t tokens = 0;  // predictions scored
  int windows = 0;
  int stride = 0;           // text tokens per window; windows do not overlap
  double nll = 0.0;         // mean negative log-likelihood of the next token, nats
  double perplexity = 0.0;  // exp(nll)
  // Against a reference model, if one was given.
  double reference_perplexity = 0.0;
  double kl_divergence = 0.0;   // mean over positions of KL(reference || model), nats
  double top1_agreement = 0.0;  // share of positions where both rate the same token highest
};

// Scores windows that do not overlap, each begun with BOS (where the model has one): [BOS] and
// context - 1 tokens of text, every token of text predicted, the one after BOS too. An incomplete
// window at the end is left out unless it is the only one. `reference` may be null. `progress`
// (windows done, of all) may be empty. *stop set: CANCELLED.
// INVALID_ARGUMENT: no token to predict, a context that a model does not take, an id outside the
// vocabulary, vocabularies that differ. DATA_LOSS: logits that are not finite.
absl::StatusOr<TextScore> ScoreText(const Model& model, const Model* reference,
                                    std::span<const TokenId> text, const TextOptions& options,
                                    ThreadTeam* team, const std::function<void(int, int)>& progress,
                                    const std::atomic<bool>* stop);

struct PromptResult {
  std::vector<float> logits;        // [prompt, V] if asked for
  std::vector<TokenId> greedy_ids;  // the most likely token each time (the lowest id among equals),
                                    // fed back; EOS does not end it
};

// INVALID_ARGUMENT: an empty prompt, an id outside the vocabulary, prompt and continuation beyond
// the context. DATA_LOSS: logits that are not finite.
absl::StatusOr<PromptResult> RunPrompt(const Model& model, std::span<const TokenId> prompt,
                                       int greedy, bool want_logits, ThreadTeam* team);

}  // namespace fewbit
