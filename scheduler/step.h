// The PODs that cross from the scheduler to the runtime and back, and the events that leave the
// engine.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "scheduler/ids.h"
#include "scheduler/request.h"

namespace fewbit {

struct Sequence;

struct TokenLogprob {
  TokenId token{};
  float logprob = 0.0f;
};

// What a row without usable logits (not a number, infinite) becomes: the scheduler ends that one
// request with kError.
inline constexpr TokenId kNoToken{-1};

// One row of logits turned into a token. For a scored prompt row `token` is the prompt's own next
// token.
struct SampledToken {
  TokenId token{};
  float logprob = 0.0f;  // natural log, of the distribution before temperature and truncation
  int32_t rank = 0;      // 1 = most likely
  int32_t num_top = 0;
  std::array<TokenLogprob, kMaxTopLogprobs> top{};  // the num_top most likely tokens, best first
};

enum class FinishReason : uint8_t {
  kNone,
  kLength,     // max_new_tokens
  kStopToken,  // a stop or end-of-text id; the id is the last token of the request
  kTimeLimit,  // time_limit passed: not an error
  kCancelled,  // Engine::Cancel: the client left, or the emitter found a stop string
  kDeadline,   // deadline passed: an error
  kDrained,    // the server's drain deadline passed: ends with what there is
  kError,      // the executor failed the step, or could not turn this request's logits into a token
};

// The share of one sequence in a step: tokens [first_position, first_position + num_tokens). While
// an older step in flight still draws it, a decoding sequence's token is known to the device only.
struct PlannedSequence {
  const Sequence* sequence = nullptr;  // tokens are added until the step is applied, none changes
  int32_t first_position = 0;
  int32_t num_tokens = 0;  // at least 1
  bool sample = false;     // the logits of the last token become the next token
  int32_t score_tokens =
      0;  // the first so many rows score the prompt: row p scores the prompt's token p + 1
};

// One step, owned by the scheduler from PlanStep until ApplyStep has consumed it. The rows of
// logits it wants, in order: per sequence the score_tokens first, then the sampled one.
struct StepPlan {
  std::vector<PlannedSequence> sequences;  // each sequence at most once
  int32_t num_tokens = 0;                  // at most the step's token budget
  int32_t num_prefill_tokens = 0;          // those of them that belong to prompts
  int32_t num_rows = 0;
};

// What a request cost, filled on its final event. Milliseconds are wall-clock.
struct RequestTiming {
  double queue_wait_ms = 0.0;
  double prefill_ms = 0.0;  // first scheduled -> first token
  double decode_ms = 0.0;   // first token -> last token
  int32_t prompt_tokens = 0;
  int32_t generated_tokens = 0;
};

// What the engine tells about a request. Events of one request arrive in order; exactly one has
// kFinished, and it is last.
struct TokenEvent {
  enum class Kind : uint8_t { kPromptLogprob, kToken, kFinished };
  Kind kind = Kind::kToken;
  RequestId request{};
  SampledToken token;                                // kPromptLogprob, kToken
  FinishReason finish_reason = FinishReason::kNone;  // kFinished
  RequestTiming timing;                              // kFinished
  absl::Time time;                                   // when the step that made it was collected
};

}  // namespace fewbit
