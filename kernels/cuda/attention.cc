#include "kernels/cuda/attention.h"

#include <algorithm>

#include "kernels/cuda/attention_args.h"

namespace fewbit::cuda {
namespace {

constexpr size_t kAlignment = 256;

std::string Number(const char* field, int64_t value, const char* must) {
  return std::string(field) + " is " + std::to_string(value) + ": it must be " + must;
}

std::string Check(const AttentionDesc& d, const AttentionLimits& l, const DeviceProps& device) {
  if (device.major < 8) {
    return "attention needs compute capability 8.0, this GPU has " + std::to_string(device.major) +
           "." + std::to_string(device.minor);
  }
  if (d.head_dim <= 0 || d.head_dim % 8 != 0 || d.head_dim > kv::kMaxDeviceDim) {
    return Number("head_dim", d.head_dim, "a multiple of 8, at most 256");
  }
  if (d.num_kv_heads <= 0) return Number("num_kv_heads", d.num_kv_heads, "positive");
  if (d.num_heads <= 0 || d.num_heads % d.num_kv_heads != 0) {
    return Number("num_heads", d.num_heads, "a multiple of num_kv_heads");
  }
  if (d.rotary_dim < 0 || d.rotary_dim % 2 != 0 || d.rotary_dim > d.head_dim) {
    return Number("rotary_dim", d.rotary_dim, "even, at most head_dim");
  }
  if (d.window < 0) return Number("window", d.window, "0 or positive");
  if (d.kv_type == kv::KvType::kF32) return "kv_type is f32: it must be f16, bf16 or i8";
  if (l.max_tokens <= 0) return Number("max_tokens", l.max_tokens, "positive");
  if (l.max_sequences <= 0) return Number("max_sequences", l.max_sequences, "positive");
  if (l.max_context <= 0) return Number("max_context", l.max_context, "positive");
  return "";
}

constexpr size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// As many blocks on a multiprocessor as registers allow, then as many KV blocks in flight per warp
// as fit; a warp needs two at once.
void ChooseRing(const DeviceProps& device, AttentionPlan* p) {
  constexpr int kReserved = 1024;  // bytes that the system keeps per block
  const kv::KvType type = p->cache.type;
  const int most = DecodeResidency(type, p->padded_dim, DecodeColumns(type, p->part_heads));
  for (int blocks = most; blocks >= 1; --blocks) {
    for (int stages = kMostDecodeStages; stages >= 2; --stages) {
      const int rings = blocks * kDecodeWarps * stages * p->cache.head_bytes();
      if (stages > 2 && rings > MostRingBytes(type)) continue;
      const size_t bytes = DecodeShared(*p, stages).total;
      if (bytes > static_cast<size_t>(device.shared_per_block)) continue;
      if (blocks * (bytes + kReserved) > static_cast<size_t>(device.shared_per_multiprocessor)) {
        continue;
      }
      p->stages = stages;
      p->decode_shared = bytes;
      p->decode_blocks = device.multiprocessors * blocks;
      return;
    }
  }
  p->stages = 2;
  p->decode_shared = DecodeShared(*p, 2).total;
  p->decode_blocks = device.multiprocessors;
}

void PlaceWorkspace(AttentionPlan* p) {
  const AttentionDesc& d = p->desc;
  const AttentionLimits& l = p->limits;
  size_t at = 0;
  const auto place = [&](size_t bytes) {
    const size_t here = at;
    at = RoundUp(at + bytes, kAlignment);
    return here;
  };
  const size_t rows = static_cast<size_t>(l.max_sequences) * d.num_heads * p->max_splits;
  const size_t tokens = l.max_tokens;
  p->counts = place(sizeof(WorkCounts));
  p->decode_items = place(sizeof(DecodeItem) * l.max_sequences * p->max_splits);
  p->decode_starts = place(sizeof(DecodeStart) * p->decode_blocks);
  p->prefill_items = place(sizeof(PrefillItem) * MostPrefillTiles(l.max_tokens, l.max_sequences));
  p->turns = place(sizeof(float) * tokens * d.rotary_dim);
  p->queries = place(2 * tokens * d.num_heads * p->padded_dim);
  p->attended = place(sizeof(float) * tokens * d.num_heads * d.head_dim);
  p->partial_sums = place(2 * sizeof(float) * rows);
  p->partials = place(sizeof(float) * rows * p->padded_dim);
  p->arrivals = place(sizeof(uint32_t) * l.max_sequences * d.num_heads);
  p->workspace_bytes = at;
}

}  // namespace

int MaxSplits(int max_context) {
  // One more key never makes fewer runs than half: look at every step of the run's length.
  int most = 0;
  for (int run = kSplitTokens; run <= kMaxSplitTokens; run += kSplitUnit) {
    // The longest context with runs of this length.
    const int64_t longest = run == kMaxSplitTokens ? max_context : int64_t{run} * kMostSplits;
    most = std::max(most, SplitCount(static_cast<int>(std::min<int64_t>(longest, max_context))));
  }
  return most;
}

int64_t MostDecodeUnits(const AttentionPlan& p, int sequences) {
  return int64_t{1} * sequences * p.max_splits * p.desc.num_kv_heads * p.head_parts;
}

int OneUnitContext(const AttentionPlan& p, int sequences) {
  const int64_t per_run = int64_t{1} * sequences * p.desc.num_kv_heads * p.head_parts;
  const int runs = static_cast<int>(p.decode_blocks / per_run);
  return runs * (runs < kMostSplits ? kSplitTokens : kMaxSplitTokens);
}

DecodeForm ChooseDecode(const AttentionPlan& p, const StepView& step, bool rows) {
  if (!rows) return DecodeForm::kRuns;
  const int longest = step.max_kv_len == 0 ? p.limits.max_context : step.max_kv_len;
  return longest <= OneUnitContext(p, step.sequences) ? DecodeForm::kRowsInOrder
                                                      : DecodeForm::kRows;
}

int DecodeGrid(const AttentionPlan& p, int sequences) {
  return static_cast<int>(std::min<int64_t>(p.decode_blocks, MostDecodeUnits(p, sequences)));
}

DecodeSharedLayout DecodeShared(const AttentionPlan& p, int stages) {
  DecodeSharedLayout s;
  s.slot_bytes = static_cast<int>(RoundUp(p.cache.head_bytes(), 128));
  int at = kDecodeWarps * stages * s.slot_bytes;
  const auto place = [&at](int bytes) {
    const int here = at;
    at += static_cast<int>(RoundUp(bytes, 16));
    return here;
  };
  s.query_bytes = kMostGroupHeads * (p.cache.type == kv::KvType::kI8
                                         ? PairQueryStride(p.padded_dim) + sizeof(float)
                                         : 2 * (p.padded_dim + kQueryPad));
  s.queries = place(2 * s.query_bytes);
  s.raw = place((p.part_heads + 2) * p.padded_dim * 4);
  s.turns = place(kDecodeWarps * p.padded_dim * 4);
  s.fresh_bytes = 2 * p.cache.token_bytes() + 16;
  s.fresh = place(2 * s.fresh_bytes);
  s.sums = place(2 * kDecodeWarps * p.part_heads * 8);
  s.outputs = place(2 * kDecodeWarps * p.part_heads * p.padded_dim * 4);
  s.barriers = place((kDecodeWarps * stages + 1) * 8);
  s.ids = place(kDecodeWarps * stages * 4);
  s.total = at;
  return s;
}

size_t PrefillSharedBytes(const AttentionPlan& p) {
  if (p.wide_prefill) {
    const int keys = WideKeyTile(p.cache.type);
    const size_t tile = size_t{2} * keys * p.padded_dim * 2;
    const size_t raw = p.cache.type == kv::KvType::kI8
                           ? keys / kv::kBlockTokens * static_cast<size_t>(p.cache.head_bytes())
                           : 0;
    return kWideAlignment + kWideStages * (tile + 2 * sizeof(uint64_t)) +
           kWideRawStages * (raw + sizeof(uint64_t));
  }
  const int blocks = kKeyTile / kv::kBlockTokens;
  size_t bytes = 2 * blocks * static_cast<size_t>(p.cache.head_bytes());
  if (p.cache.type == kv::KvType::kI8) bytes += 2 * 2 * size_t{kKeyTile} * p.padded_dim;
  return bytes + 16;
}

AttentionPlan SelectAttention(const AttentionDesc& desc, const AttentionLimits& limits,
                              const DeviceProps& device) {
  AttentionPlan p;
  p.desc = desc;
  p.limits = limits;
  p.error = Check(desc, limits, device);
  if (!p.error.empty()) return p;
  p.cache = {desc.kv_type, desc.num_kv_heads, desc.head_dim};
  p.padded_dim = p.cache.padded_dim();
  p.group = desc.num_heads / desc.num_kv_heads;
  // Large heads leave less shared memory for what the warps of a block add up.
  for (int heads = p.padded_dim > 128 ? 3 : kMostGroupHeads; heads >= 1; --heads) {
    p.head_parts = (p.group + heads - 1) / heads;
    p.part_heads = (p.group + p.head_parts - 1) / p.head_parts;
    if (DecodeShared(p, 2).total <= device.shared_per_block) break;
  }
  p.max_splits = MaxSplits(limits.max_context);
  p.bulk = device.major >= 9;
  p.multiprocessors = device.multiprocessors;
  ChooseRing(device, &p);
  p.lone_shared = std::max<size_t>(p.decode_shared, device.shared_per_multiprocessor / 3);
  p.wide_prefill = device.major == 9 && (p.padded_dim == 64 || p.padded_dim == 128);
  p.prefill_shared = PrefillSharedBytes(p);
  const size_t shared = std::max(p.lone_shared, p.prefill_shared);
  if (shared > static_cast<size_t>(device.shared_per_block)) {
    p.error = Number("head_dim", desc.head_dim, "smaller with this kv_type: a block would need ") +
              std::to_string(shared) + " bytes of shared memory, this GPU gives " +
              std::to_string(device.shared_per_block);
    return p;
  }
  PlaceWorkspace(&p);
  return p;
}

}  // namespace fewbit::cuda
