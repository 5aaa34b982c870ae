// The immutable specification of one generation request, in token ids. Made and validated by the
// server's codec, owned by the engine thread from Engine::Submit on. It holds no text and no
// counters (sequence.h has those).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "scheduler/ids.h"

namespace fewbit {

// How the next token is drawn from the logits; the order of operations is stated in
// runtime/sampler.h. Ranges are the codec's to check: here they are facts.
struct SamplingParams {
  float temperature = 0.0f;         // 0: greedy
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // (0, 1], 1: off
  float min_p = 0.0f;               // [0, 1), 0: off
  float repetition_penalty = 1.0f;  // > 0, 1: off; over prompt and output
  float presence_penalty = 0.0f;    // over output only
  float frequency_penalty = 0.0f;   // over output only
  uint64_t seed = 0;                // keys the counter-based generator together with the position
  std::vector<std::pair<TokenId, float>> logit_bias;
};

struct Request {
  RequestId id{};
  std::vector<TokenId> prompt;  // at least one token
  int32_t max_new_tokens = 0;   // at least 1; prompt + max_new_tokens fits the context
  int32_t min_new_tokens = 0;   // end-of-text and stop ids are not sampled before this many tokens
  SamplingParams sampling;
  std::vector<TokenId> stop_token_ids;  // end-of-text ids included unless ignore_eos was asked for
  bool want_logprobs = false;           // of each generated token
  int32_t num_top_logprobs = 0;         // alternatives per generated token, at most kMaxTopLogprobs
  bool want_prompt_logprobs = false;    // of each prompt token but the first
  absl::Time arrival;
  absl::Time deadline = absl::InfiniteFuture();    // passed: the request fails
  absl::Time time_limit = absl::InfiniteFuture();  // passed: the request ends with what there is
};

inline constexpr int32_t kMaxTopLogprobs = 20;

}  // namespace fewbit
