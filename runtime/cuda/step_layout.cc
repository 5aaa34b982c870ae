#include "runtime/cuda/step_layout.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr size_t kAlignment = 16;

size_t Align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

static_assert(ToInt(kLastSampled) == cuda::kLastSampledId);
static_assert(sizeof(TokenId) == sizeof(int32_t) && sizeof(BlockId) == sizeof(int32_t));

// `from`, then `padding` up to `count` elements.
template <typename T>
void FillArray(uint8_t* to, const std::vector<T>& from, size_t count, int32_t padding) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size() * sizeof(T));
  auto* words = reinterpret_cast<int32_t*>(to);
  std::fill(words + from.size(), words + count, padding);
}

}  // namespace

std::vector<DecodeBucket> DecodeBuckets(int32_t max_sequences, int32_t max_context,
                                        const std::function<int32_t(int32_t)>& short_context) {
  constexpr int32_t kFirst[] = {1, 2, 4, 8, 16, 24};
  std::vector<DecodeBucket> buckets;
  const auto add = [&](int32_t sequences) {
    const int32_t up_to = short_context(sequences);
    if (up_to > 0 && up_to < max_context) buckets.push_back({sequences, up_to});
    buckets.push_back({sequences, max_context});
  };
  for (const int32_t size : kFirst) {
    if (size < max_sequences) add(size);
  }
  for (int32_t power = 32; power < max_sequences; power *= 2) {
    add(power);
    if (power / 2 * 3 < max_sequences) add(power / 2 * 3);
  }
  add(max_sequences);
  return buckets;
}

LaunchSizes ChooseLaunch(const ForwardBatch& batch, const std::vector<DecodeBucket>& buckets) {
  LaunchSizes launch;
  launch.tokens = static_cast<int32_t>(batch.token_ids.size());
  launch.sequences = static_cast<int32_t>(batch.kv_len.size());
  launch.rows = static_cast<int32_t>(batch.samples.size());
  launch.only_chunks = launch.sequences > 0;
  for (size_t s = 0; s + 1 < batch.q_start.size(); ++s) {
    const int32_t tokens = batch.q_start[s + 1] - batch.q_start[s];
    launch.max_query = std::max(launch.max_query, tokens);
    launch.only_chunks = launch.only_chunks && tokens > 1;
  }
  const bool scores =
      std::any_of(batch.samples.begin(), batch.samples.end(),
                  [](const SampleRow& row) { return row.kind == SampleRow::Kind::kScorePrompt; });
  if (launch.max_query > 1 || scores) return launch;
  const int32_t longest =
      batch.kv_len.empty() ? 0 : *std::max_element(batch.kv_len.begin(), batch.kv_len.end());
  const auto bucket = std::find_if(buckets.begin(), buckets.end(), [&](const DecodeBucket& b) {
    return b.sequences >= launch.sequences && b.max_kv_len >= longest;
  });
  if (bucket == buckets.end()) return launch;
  launch.tokens = launch.sequences = launch.rows = bucket->sequences;
  launch.max_kv_len = bucket->max_kv_len;
  launch.bucket = static_cast<int>(bucket - buckets.begin());
  return launch;
}

StepLayout::StepLayout(const LaunchSizes& launch) : launch(launch) {
  size_t at = 0;
  const auto place = [&](size_t bytes) {
    const size_t offset = at;
    at = Align(at + bytes);
    return offset;
  };
  const size_t t = 4 * static_cast<size_t>(launch.tokens);
  const size_t s = 4 * static_cast<size_t>(launch.sequences);
  const size_t r = 4 * static_cast<size_t>(launch.rows);
  sizes = place(sizeof(cuda::StepSizes));
  token_ids = place(t);
  positions = place(t);
  sequence_of = place(t);
  q_start = place(s + 4);
  kv_len = place(s);
  slots = place(s);
  row_tokens = place(r);
  row_slots = place(r);
  row_params = place(kRowParamBytes * launch.rows);
  block_table = at;
}

size_t StepLayout::bytes(int32_t stride) const {
  return Align(block_table + size_t{4} * launch.sequences * stride);
}

cuda::StepView StepLayout::View(uint8_t* base, int32_t* last_ids) const {
  const auto at = [&](size_t offset) { return reinterpret_cast<const int32_t*>(base + offset); };
  cuda::StepView view;
  view.tokens = launch.tokens;
  view.sequences = launch.sequences;
  view.rows = launch.rows;
  view.max_query = launch.max_query;
  view.only_chunks = launch.only_chunks;
  view.max_kv_len = launch.max_kv_len;
  view.sizes = reinterpret_cast<const cuda::StepSizes*>(base + sizes);
  view.token_ids = at(token_ids);
  view.positions = at(positions);
  view.sequence_of = at(sequence_of);
  view.q_start = at(q_start);
  view.kv_len = at(kv_len);
  view.block_table = at(block_table);
  view.slots = at(slots);
  view.last_ids = last_ids;
  view.row_tokens = at(row_tokens);
  view.row_slots = at(row_slots);
  return view;
}

void StepLayout::Fill(const ForwardBatch& batch, uint8_t* host) const {
  const int32_t tokens = static_cast<int32_t>(batch.token_ids.size());
  const int32_t sequences = static_cast<int32_t>(batch.kv_len.size());
  const int32_t rows = static_cast<int32_t>(batch.samples.size());
  FEWBIT_CHECK(tokens <= launch.tokens && sequences <= launch.sequences && rows <= launch.rows)
      << "a step of " << tokens << " tokens, " << sequences << " sequences, " << rows
      << " rows in a launch for " << launch.tokens << ", " << launch.sequences << ", "
      << launch.rows;
  const cuda::StepSizes step = {tokens, sequences, rows, batch.block_table_stride};
  std::memcpy(host + sizes, &step, sizeof(step));
  FillArray(host + token_ids, batch.token_ids, launch.tokens, 0);
  FillArray(host + positions, batch.positions, launch.tokens, 0);
  FillArray(host + q_start, batch.q_start, launch.sequences + 1, tokens);
  FillArray(host + kv_len, batch.kv_len, launch.sequences, 0);
  FillArray(host + slots, batch.slots, launch.sequences, 0);
  FillArray(host + block_table, batch.block_table,
            static_cast<size_t>(launch.sequences) * batch.block_table_stride, 0);
  std::memset(host + row_params, 0, kRowParamBytes * launch.rows);
  auto* owner = reinterpret_cast<int32_t*>(host + sequence_of);
  for (int32_t s = 0; s < sequences; ++s) {
    std::fill(owner + batch.q_start[s], owner + batch.q_start[s + 1], s);
  }
  std::fill(owner + tokens, owner + launch.tokens, -1);
  auto* row_token = reinterpret_cast<int32_t*>(host + row_tokens);
  auto* row_slot = reinterpret_cast<int32_t*>(host + row_slots);
  for (int32_t r = 0; r < launch.rows; ++r) {
    row_token[r] = r < rows ? batch.samples[r].token_row : 0;
    row_slot[r] = r < rows ? batch.samples[r].slot : -1;
  }
}

size_t MostStepBytes(int32_t max_tokens, int32_t max_sequences, int32_t max_blocks_per_sequence) {
  LaunchSizes largest;
  largest.tokens = max_tokens;
  largest.sequences = max_sequences;
  largest.rows = max_tokens;
  return StepLayout(largest).bytes(max_blocks_per_sequence);
}

}  // namespace fewbit
