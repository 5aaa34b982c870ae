#include "kernels/cuda/attention_launch.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention_kernels.h"

namespace fewbit::cuda {
namespace {

HeadShape HeadShapeOf(const AttentionDesc& d) {
  return {d.head_dim, d.rotary_dim, d.interleaved, d.rms_eps};
}

float QueryScale(const AttentionDesc& d) {
  constexpr double kLog2E = 1.44269504088896340736;
  return static_cast<float>(kLog2E / std::sqrt(static_cast<double>(d.head_dim)));
}

DecodeArgs DecodeArgsOf(const AttentionPlan& plan, const StepView& step,
                        const AttentionLayer& layer, uint8_t* base) {
  const AttentionDesc& d = plan.desc;
  DecodeArgs a;
  a.layer = layer;
  a.sizes = step.sizes;
  a.block_table = step.block_table;
  a.counts = reinterpret_cast<const WorkCounts*>(base + plan.counts);
  a.items = reinterpret_cast<const DecodeItem*>(base + plan.decode_items);
  a.starts = reinterpret_cast<const DecodeStart*>(base + plan.decode_starts);
  a.turns = reinterpret_cast<const float2*>(base + plan.turns);
  a.runs = RunResultsOf(plan, base);
  a.arrivals = reinterpret_cast<uint32_t*>(base + plan.arrivals);
  a.block_bytes = plan.cache.block_bytes();
  a.head_bytes = plan.cache.head_bytes();
  a.head = HeadShapeOf(d);
  a.num_heads = d.num_heads;
  a.num_kv_heads = d.num_kv_heads;
  a.group = plan.group;
  a.head_parts = plan.head_parts;
  a.part_heads = plan.part_heads;
  a.window = d.window;
  a.multiprocessors = plan.multiprocessors;
  a.stages = plan.stages;
  a.scale = QueryScale(d);
  a.shared = DecodeShared(plan, plan.stages);
  return a;
}

template <kv::KvType kType>
cudaError_t LaunchDecodeRuns(const AttentionPlan& plan, const StepView& step,
                             const DecodeArgs& decode, cudaStream_t stream) {
  const int blocks = DecodeGrid(plan, step.sequences);
  const bool small = MostDecodeUnits(plan, step.sequences) <= 2 * plan.multiprocessors;
  const DecodeForm form = ChooseDecode(plan, step, decode.attended != nullptr);
  return LaunchDecodeOf<kType>(plan.padded_dim, form, decode, blocks,
                               small ? plan.lone_shared : plan.decode_shared, stream);
}

// `rows`: where a decode launch of its own leaves its rows, or null. `direct`: null, or where
// prefilled rows go that nobody stages.
template <kv::KvType kType>
cudaError_t LaunchOf(const AttentionPlan& plan, const StepView& step, const AttentionLayer& layer,
                     uint8_t* base, float* rows, const LinearInput* direct,
                     const WantedRows& wanted, cudaStream_t stream) {
  if (layer.type == DType::kBF16) return cudaErrorInvalidValue;
  DecodeArgs decode = DecodeArgsOf(plan, step, layer, base);
  decode.attended = rows;
  if (!step.only_chunks) {
    const cudaError_t error = LaunchDecodeRuns<kType>(plan, step, decode, stream);
    if (error != cudaSuccess || step.max_query <= 1) return error;
  }
  WriteArgs write;
  write.layer = layer;
  write.sizes = step.sizes;
  write.positions = step.positions;
  write.sequence_of = step.sequence_of;
  write.q_start = step.q_start;
  write.block_table = step.block_table;
  write.turns = decode.turns;
  write.queries = reinterpret_cast<uint16_t*>(base + plan.queries);
  write.block_bytes = decode.block_bytes;
  write.head_bytes = decode.head_bytes;
  write.head = decode.head;
  write.num_heads = decode.num_heads;
  write.num_kv_heads = decode.num_kv_heads;
  write.scale = decode.scale;
  PrefillArgs prefill;
  prefill.cache = layer.cache;
  prefill.sizes = step.sizes;
  prefill.block_table = step.block_table;
  prefill.counts = decode.counts;
  prefill.items = reinterpret_cast<const PrefillItem*>(base + plan.prefill_items);
  prefill.queries = write.queries;
  prefill.attended = direct == nullptr ? base + plan.attended : direct->plain;
  prefill.attended_type = direct == nullptr ? DType::kF32 : direct->plain_type;
  prefill.block_bytes = decode.block_bytes;
  prefill.head_bytes = decode.head_bytes;
  prefill.head_dim = plan.desc.head_dim;
  prefill.num_heads = decode.num_heads;
  prefill.group = plan.group;
  prefill.window = plan.desc.window;
  prefill.wanted = wanted;
  const cudaError_t written = LaunchWriteOf<kType>(plan.padded_dim, write, step.tokens, stream);
  if (written != cudaSuccess) return written;
  const int tiles = MostPrefillTiles(step.tokens, step.sequences);
  return plan.wide_prefill
             ? LaunchPrefillWide(kType, plan.padded_dim, prefill, tiles, plan.prefill_shared,
                                 stream)
             : LaunchPrefillOf<kType>(plan.padded_dim, prefill, tiles, plan.prefill_shared, stream);
}

cudaError_t LaunchAny(const AttentionPlan& plan, const StepView& step, const AttentionLayer& layer,
                      uint8_t* base, float* rows, const LinearInput* direct,
                      const WantedRows& wanted, cudaStream_t stream) {
  switch (plan.cache.type) {
    case kv::KvType::kF16:
      return LaunchOf<kv::KvType::kF16>(plan, step, layer, base, rows, direct, wanted, stream);
    case kv::KvType::kBF16:
      return LaunchOf<kv::KvType::kBF16>(plan, step, layer, base, rows, direct, wanted, stream);
    case kv::KvType::kI8:
      return LaunchOf<kv::KvType::kI8>(plan, step, layer, base, rows, direct, wanted, stream);
    case kv::KvType::kF32:
      break;
  }
  return cudaErrorInvalidValue;
}

template <kv::KvType kType>
cudaError_t PrepareOf(const AttentionPlan& plan) {
  const cudaError_t error =
      PrepareDecodeOf<kType>(plan.padded_dim, plan.part_heads, plan.lone_shared);
  if (error != cudaSuccess) return error;
  if (plan.wide_prefill) {
    const cudaError_t wide = PreparePrefillWide(kType, plan.padded_dim, plan.prefill_shared);
    if (wide != cudaSuccess) return wide;
  }
  return PreparePrefillOf<kType>(plan.padded_dim, plan.wide_prefill ? 0 : plan.prefill_shared);
}

}  // namespace

cudaError_t PrepareAttention(const AttentionPlan& plan) {
  const cudaError_t error = PrepareCombine();
  if (error != cudaSuccess) return error;
  switch (plan.cache.type) {
    case kv::KvType::kF16:
      return PrepareOf<kv::KvType::kF16>(plan);
    case kv::KvType::kBF16:
      return PrepareOf<kv::KvType::kBF16>(plan);
    case kv::KvType::kI8:
      return PrepareOf<kv::KvType::kI8>(plan);
    case kv::KvType::kF32:
      break;
  }
  return cudaErrorInvalidValue;
}

RunResults RunResultsOf(const AttentionPlan& plan, uint8_t* base) {
  return {reinterpret_cast<float*>(base + plan.partials),
          reinterpret_cast<float2*>(base + plan.partial_sums), plan.max_splits, plan.padded_dim};
}

cudaError_t LaunchAttention(const AttentionPlan& plan, const StepView& step,
                            const AttentionLayer& layer, void* workspace, const LinearInput& out,
                            const WantedRows& wanted, cudaStream_t stream) {
  uint8_t* base = static_cast<uint8_t*>(workspace);
  const bool direct = out.count == 0 && wanted.tokens == nullptr;
  const cudaError_t error =
      LaunchAny(plan, step, layer, base, nullptr, direct ? &out : nullptr, wanted, stream);
  if (error != cudaSuccess || (direct && step.only_chunks)) return error;
  if (wanted.tokens != nullptr && wanted.count == 0) return cudaSuccess;
  return LaunchCombine(plan, step, base, out, wanted, stream);
}

float* AttendedRows(const AttentionPlan& plan, void* workspace) {
  return reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + plan.attended);
}

cudaError_t LaunchAttentionRows(const AttentionPlan& plan, const StepView& step,
                                const AttentionLayer& layer, void* workspace, cudaStream_t stream) {
  if (step.max_query > 1) return cudaErrorInvalidValue;
  return LaunchAny(plan, step, layer, static_cast<uint8_t*>(workspace),
                   AttendedRows(plan, workspace), nullptr, {}, stream);
}

}  // namespace fewbit::cuda
