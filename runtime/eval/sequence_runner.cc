#include "runtime/eval/sequence_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "scheduler/check.h"

namespace fewbit {

absl::StatusOr<std::unique_ptr<SequenceRunner>> SequenceRunner::Create(const Model* model,
                                                                       ThreadTeam* team,
                                                                       int max_tokens) {
  const ModelSpec& spec = model->spec;
  if (max_tokens > spec.max_context) {
    return absl::InvalidArgumentError(absl::StrCat(
        max_tokens, " tokens are more than the model's context of ", spec.max_context));
  }
  const kv::BlockShape shape{
      .type = kv::KvType::kF32, .num_heads = spec.num_kv_heads, .head_dim = spec.head_dim};
  const int blocks = kv::BlocksFor(max_tokens);
  absl::StatusOr<std::unique_ptr<KvCache>> cache = KvCache::Create(shape, spec.num_layers, blocks);
  if (!cache.ok()) return cache.status();
  return std::unique_ptr<SequenceRunner>(
      new SequenceRunner(model, team, max_tokens, *std::move(cache)));
}

SequenceRunner::SequenceRunner(const Model* model, ThreadTeam* team, int max_tokens,
                               std::unique_ptr<KvCache> cache)
    : model_(model),
      max_tokens_(max_tokens),
      cache_(std::move(cache)),
      decoder_(model, team, cpu::BestIsa(),
               {.max_step_tokens = kMaxStep, .max_logit_rows = kMaxStep}),
      rows_(kMaxStep) {
  std::iota(rows_.begin(), rows_.end(), 0);
  batch_.slots = {0};
  batch_.block_table.resize(cache_->num_blocks());
  for (int b = 0; b < cache_->num_blocks(); ++b) batch_.block_table[b] = BlockId{b};
  batch_.block_table_stride = cache_->num_blocks();
}

absl::StatusOr<std::span<const float>> SequenceRunner::Step(std::span<const TokenId> ids) {
  const int count = static_cast<int>(ids.size());
  FEWBIT_CHECK(count >= 1 && count <= kMaxStep && position_ + count <= max_tokens_)
      << count << " tokens at position " << position_ << " of " << max_tokens_;
  batch_.token_ids.assign(ids.begin(), ids.end());
  batch_.positions.resize(count);
  std::iota(batch_.positions.begin(), batch_.positions.end(), position_);
  batch_.q_start = {0, count};
  batch_.kv_len = {position_ + count};
  const size_t values = static_cast<size_t>(count) * model_->spec.vocab_size;
  if (logits_.size() < values) logits_.resize(values);
  decoder_.Forward(batch_, cache_.get(), std::span(rows_).first(count), logits_.data());
  const std::span<const float> logits(logits_.data(), values);
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
    return absl::DataLossError(
        "the logits are not finite: the checkpoint has weights that are NaN or too large");
  }
  position_ += count;
  return logits;
}

}  // namespace fewbit
