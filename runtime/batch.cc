#include "runtime/batch.h"

#include <algorithm>

#include "scheduler/check.h"
#include "scheduler/sequence.h"

namespace fewbit {
namespace {

int32_t CeilDiv(int32_t a, int32_t b) { return static_cast<int32_t>((int64_t{a} + b - 1) / b); }

// Appends the rows of one sequence: the scored prompt rows, then the sampled one. `first_row` is
// the sequence's first token row.
void AppendSamples(const PlannedSequence& planned, int32_t first_row, ForwardBatch* batch) {
  const Sequence& sequence = *planned.sequence;
  SampleRow row;
  row.slot = sequence.slot;
  row.request = sequence.request.get();
  row.context = sequence.tokens();
  row.num_prompt_tokens = sequence.num_prompt();
  for (int32_t i = 0; i < planned.score_tokens; ++i) {
    row.kind = SampleRow::Kind::kScorePrompt;
    row.token_row = first_row + i;
    row.position = planned.first_position + i + 1;
    batch->samples.push_back(row);
  }
  if (!planned.sample) return;
  row.kind = SampleRow::Kind::kSample;
  row.token_row = first_row + planned.num_tokens - 1;
  row.position = planned.first_position + planned.num_tokens;
  row.forbid_stop = row.position - row.num_prompt_tokens < sequence.request->min_new_tokens;
  batch->samples.push_back(row);
}

}  // namespace

void ReserveBatch(const SchedulerLimits& limits, ForwardBatch* batch) {
  const size_t tokens = static_cast<size_t>(limits.step_token_budget);
  const size_t sequences = static_cast<size_t>(limits.max_running);
  batch->token_ids.reserve(tokens);
  batch->positions.reserve(tokens);
  batch->q_start.reserve(sequences + 1);
  batch->kv_len.reserve(sequences);
  batch->slots.reserve(sequences);
  batch->block_table.reserve(sequences * CeilDiv(limits.max_context, limits.block_tokens));
  batch->samples.reserve(tokens);
}

void BuildBatch(const StepPlan& plan, int32_t block_tokens, ForwardBatch* batch) {
  batch->token_ids.clear();
  batch->positions.clear();
  batch->q_start.clear();
  batch->kv_len.clear();
  batch->slots.clear();
  batch->samples.clear();
  int32_t stride = 0;
  for (const PlannedSequence& planned : plan.sequences) {
    const Sequence& sequence = *planned.sequence;
    const int32_t first_row = static_cast<int32_t>(batch->token_ids.size());
    const int32_t end = planned.first_position + planned.num_tokens;
    for (int32_t p = planned.first_position; p < end; ++p) {
      batch->token_ids.push_back(p < sequence.num_tokens ? sequence.slot_tokens[p] : kLastSampled);
    }
    for (int32_t p = planned.first_position; p < end; ++p) batch->positions.push_back(p);
    batch->q_start.push_back(first_row);
    batch->kv_len.push_back(end);
    batch->slots.push_back(sequence.slot);
    stride = std::max(stride, CeilDiv(end, block_tokens));
    AppendSamples(planned, first_row, batch);
  }
  batch->q_start.push_back(static_cast<int32_t>(batch->token_ids.size()));
  FEWBIT_CHECK_EQ(batch->q_start.back(), plan.num_tokens);
  FEWBIT_CHECK_EQ(batch->samples.size(), static_cast<size_t>(plan.num_rows));

  batch->block_table_stride = stride;
  batch->block_table.assign(plan.sequences.size() * stride, BlockId{-1});
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const int32_t used = CeilDiv(batch->kv_len[s], block_tokens);
    std::copy_n(plan.sequences[s].sequence->slot_blocks, used, &batch->block_table[s * stride]);
  }
}

}  // namespace fewbit
