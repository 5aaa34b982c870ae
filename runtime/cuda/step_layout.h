// How a step becomes one block of bytes that is copied to the device: which launch it gets, where
// each array of kernels/cuda/step_view.h lies, and filling it. Host arithmetic only; works in every
// build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cuda/step_view.h"
#include "runtime/batch.h"

namespace fewbit {

// Of the sampler's parameters of a row (kernels/cuda/sample.h), which this file does not fill.
inline constexpr size_t kRowParamBytes = 64;

// Decode steps that one captured graph serves.
struct DecodeBucket {
  int32_t sequences = 0;   // at most
  int32_t max_kv_len = 0;  // of any of them
};

// Sequences that a captured decode step has room for: 1, 2, 4, 8, 16, 24, 32, 48, 64, then steps
// that waste at most a third, up to max_sequences, which is always the last one. Each for contexts
// up to max_context; and before that, if short_context(sequences) is less but not 0, up to there.
std::vector<DecodeBucket> DecodeBuckets(int32_t max_sequences, int32_t max_context,
                                        const std::function<int32_t(int32_t)>& short_context);

// The sizes that a step is launched with.
struct LaunchSizes {
  int32_t tokens = 0;
  int32_t sequences = 0;
  int32_t rows = 0;
  int32_t max_query = 1;     // tokens of the longest sequence
  bool only_chunks = false;  // no sequence runs a single token
  int32_t max_kv_len = 0;    // of the bucket; 0: of no bucket
  int bucket = -1;           // index of the decode bucket; -1: the step is launched as it is
};

// A bucket if every sequence of the step runs one token (decoding, or the end of a prompt) and no
// row is a prompt score.
LaunchSizes ChooseLaunch(const ForwardBatch& batch, const std::vector<DecodeBucket>& buckets);

// Byte offsets of the arrays of a step; all but the block table are fixed by the launch sizes, so a
// captured graph finds them where they were.
struct StepLayout {
  explicit StepLayout(const LaunchSizes& launch);

  LaunchSizes launch;
  size_t sizes = 0, token_ids = 0, positions = 0, sequence_of = 0, q_start = 0, kv_len = 0,
         slots = 0, row_tokens = 0, row_slots = 0, row_params = 0, block_table = 0;

  // Of a step whose block table has `stride` blocks per sequence. A multiple of 16.
  size_t bytes(int32_t stride) const;

  // The arrays at `base` in device memory.
  cuda::StepView View(uint8_t* base, int32_t* last_ids) const;

  // Writes the whole step, padding included and row_params zero, to `host`
  // [bytes(batch.block_table_stride)].
  void Fill(const ForwardBatch& batch, uint8_t* host) const;
};

// The most bytes that any step within the limits takes.
size_t MostStepBytes(int32_t max_tokens, int32_t max_sequences, int32_t max_blocks_per_sequence);

}  // namespace fewbit
