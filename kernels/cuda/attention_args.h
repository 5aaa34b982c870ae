// What the host part and the kernels of attention share: work items, shared-memory layouts and the
// kernels' parameters. Plain C++.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/step_view.h"

namespace fewbit::cuda {

inline constexpr int kDecodeWarps = 4;
// Heads of a part that a decode kernel is compiled for: those of an i8 cache take two columns of
// the products each, so that few of them need half of the registers.
constexpr int DecodeColumns(kv::KvType type, int part_heads) {
  return type == kv::KvType::kI8 && part_heads <= kMostGroupHeads / 2 ? kMostGroupHeads / 2
                                                                      : kMostGroupHeads;
}
// Decode blocks per multiprocessor. i8 computes more per byte.
constexpr int DecodeResidency(kv::KvType type, int padded_dim, int columns) {
  const bool small = padded_dim <= 128 && columns <= kMostGroupHeads / 2;
  return type == kv::KvType::kI8 && small ? 3 : 2;
}
// Of a ring, in KV blocks, at least 2; and of all rings on a multiprocessor. What more of them
// would gain is less than the kernels before and after lose without the room (measured on an H200).
inline constexpr int kMostDecodeStages = 4;
constexpr int MostRingBytes(kv::KvType type) {
  return (type == kv::KvType::kI8 ? 104 : 196) * 1024;
}
inline constexpr int kStripeKeys = 32;  // neighbouring keys that a warp takes at once
inline constexpr int kQueryPad = 8;     // elements behind a row of queries, against bank conflicts
// Bytes of a query as pairs of bytes: the high ones of padded D, padding, the low ones.
constexpr int PairQueryStride(int padded_dim) { return 2 * ((padded_dim + 31) / 32 * 32 + 16); }
inline constexpr int kKeyTile = 64;  // keys that a prefill block takes at once
// The same where warpgroups multiply (sm_90). A tile of i8 is copied, then widened.
constexpr int WideKeyTile(kv::KvType type) { return type == kv::KvType::kI8 ? 64 : 128; }
inline constexpr int kWideStages = 3;     // tiles of 16-bit numbers in shared memory
inline constexpr int kWideRawStages = 2;  // tiles of i8, behind them
inline constexpr int kWideAlignment = 1024;
inline constexpr int kMaxRegisterQueryDim = 128;  // of a prefill block's queries in registers

// A decoded token. The list has one entry per run of its keys, all alike, so that dividing the
// number of a unit (a run of one head part) by the head parts of a token leads to an entry of its
// token. A token's units are ordered by head part, then by run.
struct alignas(16) DecodeItem {
  int32_t sequence = 0;
  int32_t token = 0;  // row of the step
  int32_t kv_len = 0;
  int32_t base = 0;  // first entry of the token
};

// A decode block's units, and all about the first of them, so that one load leads to its copies.
struct alignas(16) DecodeStart {
  DecodeItem item;
  int32_t kv_head = 0, part = 0, split = 0, splits = 0;
  int32_t split_length = 0, first_key = 0;
  int32_t begin = 0, end = 0;  // the same without units
  int32_t block_table_stride = 0;
};

// Up to kQueryTile rows of one sequence.
struct alignas(16) PrefillItem {
  int32_t sequence = 0;
  int32_t token = 0;  // the first row
  int32_t rows = 0;
  int32_t position = 0;  // of the first row
};

struct WorkCounts {
  int32_t decode_items = 0;
  int32_t prefill_items = 0;
};

// Most units of a step that decodes `sequences` sequences; and the blocks of its decode launch.
int64_t MostDecodeUnits(const AttentionPlan& plan, int sequences);
int DecodeGrid(const AttentionPlan& plan, int sequences);

// What a decode launch leaves: runs, for the combining kernel, or rows. Units of a block overlap,
// or come in order, with less before the first, which is faster where there is but one.
enum class DecodeForm : uint8_t { kRuns, kRows, kRowsInOrder };
DecodeForm ChooseDecode(const AttentionPlan& plan, const StepView& step, bool rows);

// Tiles of any step within these numbers: each sequence has at most one that is not full.
constexpr int MostPrefillTiles(int tokens, int sequences) {
  return tokens / kQueryTile + std::min(sequences, tokens / 2 + 1);
}

// Shared memory of a decode block: first the rings [warp][stage][slot_bytes], then at these offsets
struct DecodeSharedLayout {
  int slot_bytes = 0;   // one head of a KV block, rounded up to 128
  int queries = 0;      // two sets: 16-bit [8][padded D + kQueryPad]; i8 as in decode_bytes.cuh
  int query_bytes = 0;  // of one set
  int raw = 0;    // [heads of a part + 2][padded D] as the linear layers left them, then float
  int turns = 0;  // [warps][padded D / 2] cosine, sine
  int fresh = 0;  // two sets: the new key, the new value as cached, their scales
  int fresh_bytes = 0;
  int sums = 0;      // two sets: [warps][heads of a part] {maximum, sum}
  int outputs = 0;   // two sets: [warps][heads of a part][padded D] float
  int barriers = 0;  // [warps][stages], then one for the block
  int ids = 0;       // [warps][stages] numbers of the KV blocks in the slots
  int total = 0;
};
DecodeSharedLayout DecodeShared(const AttentionPlan& plan, int stages);

// Two stages of kKeyTile keys and values as cached, for i8 a widened one, then two barriers. Wide:
// room to align, kWideStages tiles of 16-bit keys and values, for i8 kWideRawStages as cached, then
// two barriers for each of the former and one for each of the latter.
size_t PrefillSharedBytes(const AttentionPlan& plan);

}  // namespace fewbit::cuda
