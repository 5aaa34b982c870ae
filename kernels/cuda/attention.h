// Attention of one decoder layer on the GPU, from the output of the q, k and v layers to the input
// of the o layer: biases, norms of q and k, rope, the write into the paged cache, causal attention
// (grouped queries, sliding window), and the staged form that the o layer reads.
//
// A step mixes two kinds of sequences. One that brings a single token is decoded: its keys are
// split into runs whose length depends on its own kv_len alone, and the parts are added in their
// order. One that brings more is a prefill: tiles of query rows walk the keys in tiles by absolute
// index. Either way a row's bits depend on nothing but its own sequence, neither on the rest of the
// batch nor on how a prompt is cut into chunks - except that a chunk of one token counts as
// decoding, which sums in another order (the difference is rounding).
//
// Numbers: q is rounded to f16 (bf16 with a bf16 cache) after rope and scaling; scores, maxima and
// sums are float; weights are rounded like q before they meet the values. i8 keys and values have
// one f16 scale per head and token. Decoding multiplies their bytes as they are: q and the weights,
// which take the values' scales, are 16-bit fixed point (weights 14 bits of the largest of 32
// keys), sums are exact. A prefill makes f16 numbers of the bytes, scales included.
//
// This part is host code without CUDA: geometry, and what lies where in memory. The launches are in
// attention_launch.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/cuda/linear.h"
#include "kernels/kv_layout.h"
#include "kernels/matrix.h"

namespace fewbit::cuda {

// What all layers of a model have in common.
struct AttentionDesc {
  int32_t num_heads = 0;                  // H
  int32_t num_kv_heads = 0;               // K
  int32_t head_dim = 0;                   // D, a multiple of 8, at most kv::kMaxDeviceDim
  kv::KvType kv_type = kv::KvType::kF16;  // kF16, kBF16 or kI8
  int32_t window = 0;        // 0: none; else a query sees this many keys, itself included
  int32_t rotary_dim = 0;    // leading dimensions of a head that turn, even
  bool interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  float rms_eps = 1e-5f;     // of the norms of q and k
};

// What the memory must hold.
struct AttentionLimits {
  int32_t max_tokens = 0;     // T of any launch
  int32_t max_sequences = 0;  // S of any launch
  int32_t max_context = 0;    // of any kv_len
};

inline constexpr int kMostGroupHeads = 8;  // query heads of a kv head that one block takes
inline constexpr int kSplitTokens = 128;   // of the shortest run of keys
inline constexpr int kMostSplits = 32;     // up to kMostSplits * kMaxSplitTokens keys
inline constexpr int kMaxSplitTokens = 2048;
inline constexpr int kSplitUnit = 64;   // lengths of runs are multiples of it
inline constexpr int kQueryTile = 128;  // rows of an entry of the prefill list

// Keys of one run, when `keys` are seen in all. And how many runs there are.
constexpr int SplitTokens(int keys) {
  const int even = (keys + kMostSplits - 1) / kMostSplits;
  const int rounded = (even + kSplitUnit - 1) / kSplitUnit * kSplitUnit;
  const int most = rounded < kMaxSplitTokens ? rounded : kMaxSplitTokens;
  return most > kSplitTokens ? most : kSplitTokens;
}
constexpr int SplitCount(int keys) { return (keys + SplitTokens(keys) - 1) / SplitTokens(keys); }
// Most runs of any sequence within `max_context`.
int MaxSplits(int max_context);

// The first key that a decoded row at the end of `kv_len` reads: the window, cut to whole blocks.
constexpr int FirstKey(int kv_len, int window) {
  const int first = window == 0 || window > kv_len ? 0 : kv_len - window;
  return first / kv::kBlockTokens * kv::kBlockTokens;
}

// Where things lie in the workspace, in bytes from its start (256-byte aligned each), and geometry.
struct AttentionPlan {
  std::string error;  // empty, or why no kernel can run this
  AttentionDesc desc;
  AttentionLimits limits;
  // A layer's cache is num_blocks * cache.block_bytes(), 256-byte aligned.
  kv::DeviceBlockShape cache;
  int padded_dim = 0;
  int group = 0;       // query heads of a kv head
  int head_parts = 0;  // pieces of at most kMostGroupHeads into which a group is cut
  int part_heads = 0;  // query heads of a piece
  int max_splits = 0;  // of a decoded row
  bool bulk = false;   // the bulk copy engine of sm_90
  int stages = 0;      // KV blocks in flight per warp, decoding
  int multiprocessors = 0;
  int decode_blocks = 0;      // grid of the decode kernel at full size
  bool wide_prefill = false;  // products of a warpgroup
  size_t decode_shared = 0, prefill_shared = 0;
  // Of a decode block of a small grid: two of them and a linear layer's never fit together, so that
  // one is on every multiprocessor.
  size_t lone_shared = 0;
  size_t counts = 0, decode_items = 0, decode_starts = 0, prefill_items = 0, turns = 0, queries = 0,
         attended = 0, partial_sums = 0, partials = 0, arrivals = 0;
  size_t workspace_bytes = 0;
};

// The longest context up to which no decode block gets a second unit of work (a run of a head part)
// in a step of `sequences` sequences; 0: none.
int OneUnitContext(const AttentionPlan& plan, int sequences);

// Deterministic; what cannot run comes back as an error that names the field, its value and the
// limit.
AttentionPlan SelectAttention(const AttentionDesc& desc, const AttentionLimits& limits,
                              const DeviceProps& device);

}  // namespace fewbit::cuda
