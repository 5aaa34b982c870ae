// The instances of ops.h: one table of functions per instruction set, each filled in a file of its
// own that is compiled for that set. Plain pointers and PODs only: nothing here may emit shared
// inline code that another file could pick up.
#pragma once

#include "kernels/cpu/ops.h"

namespace fewbit::cpu {

struct OpsTable {
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  void (*add_row)(float* x, const float* delta, int n);
  void (*silu_mul)(float* gate, const float* up, int n);
  void (*rotate)(float* head, const float* cosines, const float* sines, int rotary_dim,
                 bool interleaved);
  void (*store_key_value)(const kv::BlockShape& shape, void* block, int head, int token,
                          const float* key, const float* value);
  void (*attend)(const AttentionTile& tile, float* scratch);
  RowStats (*scan_row)(const float* x, int n);
  double (*exp_sum)(const float* x, int n, float max, float factor, float* out);
};

extern const OpsTable kPortableOps;
#if defined(__x86_64__)
extern const OpsTable kAvx2Ops;
extern const OpsTable kAvx512Ops;
#endif

// Floats of Attend's scratch: scores, per-row maxima, factors and lane sums, and a group of keys
// and values as floats.
inline constexpr int kGroupBlocks = 4;
inline constexpr int kGroupKeys = kGroupBlocks * kv::kBlockTokens;
inline constexpr int kScratchScores = kMaxTileRows * kGroupKeys;
inline constexpr int kScratchSums = kMaxTileRows * 16;
inline constexpr int kScratchRows = kScratchScores + kScratchSums + 2 * kMaxTileRows;

}  // namespace fewbit::cpu
