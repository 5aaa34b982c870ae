// What the host part and the kernels of attention share: work items, shared-memory layouts and the
// kernels' parameters. Plain C++.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention.h"

namespace fewbit::cuda {

inline constexpr int kDecodeWarps = 4;
// Decode blocks per multiprocessor. i8 needs many warps, because it computes more per byte; 16-bit
// caches gain more from room for the kernels before and after (measured on an H200).
constexpr int DecodeResidency(kv::KvType type, int padded_dim) {
  return type == kv::KvType::kI8 && padded_dim <= 128 ? 4 : 2;
}
inline constexpr int kMostDecodeStages = 3;  // KV blocks of a ring, at least 2
inline constexpr int kStripeKeys = 32;       // neighbouring keys that a warp takes at once
inline constexpr int kQueryPad = 8;  // elements behind a row of queries, against bank conflicts
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

// Tiles of any step within these numbers: each sequence has at most one that is not full.
constexpr int MostPrefillTiles(int tokens, int sequences) {
  return tokens / kQueryTile + std::min(sequences, tokens / 2 + 1);
}

// Shared memory of a decode block: first the rings [warp][stage][slot_bytes], then at these offsets
struct DecodeSharedLayout {
  int slot_bytes = 0;  // one head of a KV block, rounded up to 128
  int queries = 0;     // [8][padded D + kQueryPad] 16-bit
  int raw = 0;         // [8 + 2][padded D] as the linear layers left them
  int turns = 0;       // [warps][padded D / 2] cosine, sine
  int rows = 0;        // [warps][padded D] float
  int fresh = 0;       // the new key, the new value as cached, their scales
  int sums = 0;        // [warps][8] {maximum, sum}
  int outputs = 0;     // [warps][heads of a part][padded D] float
  int barriers = 0;    // [warps][stages]
  int total = 0;
};
DecodeSharedLayout DecodeShared(const AttentionPlan& plan, int stages);

// Two stages of kKeyTile keys and values as cached, for i8 a widened one, then two barriers. Wide:
// room to align, kWideStages tiles of 16-bit keys and values, for i8 kWideRawStages as cached, then
// two barriers for each of the former and one for each of the latter.
size_t PrefillSharedBytes(const AttentionPlan& plan);

}  // namespace fewbit::cuda
