// What one step is, as pointers into device memory, shared by every kernel of the token path. The
// executor (runtime/cuda) fills the memory with one copy per step. Letters as everywhere: T token
// rows, S sequences, R rows whose logits are wanted.
//
// A launch may be captured in a graph that replays for any step that fits its bucket. So T, S and R
// below are those of the launch, and a step may hold fewer: the rest is padding, which kernels may
// compute but which must neither fault nor touch the KV cache:
//   token row t of padding:  token_ids[t] 0, positions[t] 0, sequence_of[t] -1
//   sequence s of padding:   q_start[s] == q_start[s + 1] == tokens of the step, kv_len[s] 0
//   row r of padding:        row_tokens[r] 0, row_slots[r] -1; no token is drawn
// What a kernel needs beyond that and changes from step to step is in `sizes`, in device memory.
#pragma once

#include <cstdint>

namespace fewbit::cuda {

// In token_ids: the id that was drawn on the device and that the host did not know when it built
// the step (runtime/batch.h has the same number).
inline constexpr int32_t kLastSampledId = -2;

// Of this very step, without padding.
struct StepSizes {
  int32_t tokens = 0;
  int32_t sequences = 0;
  int32_t rows = 0;
  int32_t block_table_stride = 0;  // elements from one sequence's blocks to the next one's
};

struct StepView {
  // Of the launch, on the host; a kernel's grid comes from these.
  int32_t tokens = 0;        // T
  int32_t sequences = 0;     // S
  int32_t rows = 0;          // R
  int32_t max_query = 1;     // tokens of the longest sequence in this step; 1: decoding only
  bool only_chunks = false;  // no sequence runs a single token, and there is no padding
  int32_t max_kv_len = 0;    // launches are chosen for contexts up to here, where a longer one is
                             // slower, not wrong; 0: for any

  const StepSizes* sizes = nullptr;
  const int32_t* token_ids = nullptr;    // [T] or kLastSampledId: then what last_ids holds for the
                                         // slot of the token's sequence
  const int32_t* positions = nullptr;    // [T] of the token in its sequence
  const int32_t* sequence_of = nullptr;  // [T] index in S
  const int32_t* q_start = nullptr;      // [S + 1] first token row of each sequence
  const int32_t* kv_len = nullptr;       // [S] tokens in the cache once the step has run
  const int32_t* block_table = nullptr;  // [S, sizes->block_table_stride]; entries beyond
                                         // ceil(kv_len / 16) are not read
  const int32_t* slots = nullptr;        // [S] of each sequence; padding: 0
  int32_t* last_ids = nullptr;           // [slots] the id last drawn for each slot, kept from step
                                         // to step; the sampler writes it
  const int32_t* row_tokens = nullptr;   // [R] ascending token rows
  const int32_t* row_slots = nullptr;    // [R] the sequence's slot; -1: padding
};

}  // namespace fewbit::cuda
