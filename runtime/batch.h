// The flat input and output of one executor step. Buffers are reused between steps: capacity is
// reserved once from the scheduler's limits, so building a batch allocates nothing. Letters as
// everywhere: T tokens in the step, S sequences, R rows whose logits are wanted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/ids.h"
#include "scheduler/request.h"
#include "scheduler/scheduler.h"
#include "scheduler/step.h"

namespace fewbit {

// In ForwardBatch::token_ids: the id that was sampled last for the sequence's slot, by a step that
// is launched and not collected. The host does not know it; the device keeps the last sampled id of
// every slot and puts it in. Where that id turns out to be kNoToken, or where the request turns out
// to have ended with it, nobody reads this step's row of the sequence: any id will do. Only
// executors with max_steps_in_flight > 1 meet it, always as the only token of its sequence.
inline constexpr TokenId kLastSampled{-2};

// One row of logits that is wanted, and what to do with it. Pointers live until the step is
// collected.
struct SampleRow {
  enum class Kind : uint8_t { kSample, kScorePrompt };
  Kind kind = Kind::kSample;
  int32_t token_row = 0;  // index in T of the token whose logits these are
  int32_t position = 0;   // position of the token to be drawn: the generator's counter
  int32_t slot = 0;       // of the row's sequence, as in ForwardBatch::slots
  const Request* request = nullptr;
  // Every token the host knew when the step was built, prompt first; for kScorePrompt
  // context[position] is the target. For kSample the context is `position` tokens long unless steps
  // in flight still draw the last ones: position - context.size() of them, which the device has
  // drawn for this slot when it comes to this step.
  std::span<const TokenId> context;
  int32_t num_prompt_tokens = 0;  // tokens from here to `position` are output (for the penalties)
  bool forbid_stop = false;       // min_new_tokens not reached: mask request->stop_token_ids

  // The first token of its request is drawn, and the context is the prompt: what a device keeps per
  // slot (counts for the penalties) starts anew here. A slot passes to another request only when no
  // step in flight names the last one.
  bool starts_request() const { return kind == Kind::kSample && position == num_prompt_tokens; }
};

struct ForwardBatch {
  std::vector<TokenId> token_ids;  // [T] in the vocabulary, or kLastSampled
  std::vector<int32_t> positions;  // [T]
  std::vector<int32_t> q_start;    // [S + 1] first token row of each sequence; q_start[S] = T
  std::vector<int32_t> kv_len;     // [S] tokens in the cache once this step has run
  std::vector<int32_t> slots;      // [S]
  std::vector<BlockId>
      block_table;                 // [S, block_table_stride]; -1 beyond ceil(kv_len / block_tokens)
  int32_t block_table_stride = 0;  // of this step: the blocks of its longest sequence
  std::vector<SampleRow> samples;  // [R] ascending token_row
};

struct StepResult {
  std::vector<SampledToken> tokens;  // [R] in the order of ForwardBatch::samples
};

// Room for every step within `limits`: BuildBatch allocates nothing afterwards.
void ReserveBatch(const SchedulerLimits& limits, ForwardBatch* batch);

// Flattens the plan into `batch`, replacing what it held. The rows point into the plan's sequences
// and requests, which the scheduler keeps until the step is applied: tokens are added, those there
// stay. Call it before any older step in flight is applied. `block_tokens` is
// SchedulerLimits::block_tokens.
void BuildBatch(const StepPlan& plan, int32_t block_tokens, ForwardBatch* batch);

}  // namespace fewbit
