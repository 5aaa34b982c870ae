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

// One row of logits that is wanted, and what to do with it. Pointers live until the step is
// collected.
struct SampleRow {
  enum class Kind : uint8_t { kSample, kScorePrompt };
  Kind kind = Kind::kSample;
  int32_t token_row = 0;  // index in T of the token whose logits these are
  int32_t position = 0;   // position of the token to be drawn: the generator's counter
  const Request* request = nullptr;
  std::span<const TokenId> context;  // every token known so far, prompt first; for kScorePrompt
                                     // context[position] is the target
  int32_t num_prompt_tokens = 0;     // context beyond this is output (for the penalties)
  bool forbid_stop = false;          // min_new_tokens not reached: mask request->stop_token_ids
};

struct ForwardBatch {
  std::vector<TokenId> token_ids;  // [T]
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
// and requests, which the scheduler keeps unchanged until the step is applied. `block_tokens` is
// SchedulerLimits::block_tokens.
void BuildBatch(const StepPlan& plan, int32_t block_tokens, ForwardBatch* batch);

}  // namespace fewbit
