// Launches for attention.h.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/step_view.h"

namespace fewbit::cuda {

// One layer's pointers, all device memory.
struct AttentionLayer {
  // q, k and v of token t: q + t * stride, ... in elements of `type` (kF32 or kF16), heads one
  // after another. 16-byte aligned, stride and head_dim multiples of 8. They may lie in one row.
  const void* q = nullptr;  // [T, H * D]
  const void* k = nullptr;  // [T, K * D]
  const void* v = nullptr;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  const float* q_bias = nullptr;  // [H * D] or null; added before the norm
  const float* k_bias = nullptr;  // [K * D] or null
  const float* v_bias = nullptr;
  const float* q_norm = nullptr;  // [D] or null: no norm
  const float* k_norm = nullptr;
  uint8_t* cache = nullptr;  // the layer's block 0, shape plan.cache
  DType type = DType::kF32;  // of q, k and v
};

// Rows that go on from a step's last attention: those of `count` tokens, ascending; null: of all.
struct WantedRows {
  const int32_t* tokens = nullptr;  // device memory, of the step's arrays (StepView::row_tokens)
  int32_t count = 0;
};

// Launches. They only enqueue on `stream` and may be captured in a graph that replays for any step
// that fits `step`'s T, S, max_query, only_chunks and max_kv_len.
// `workspace`: plan.workspace_bytes of device memory, 256-byte aligned, set to zero once at start;
// one step at a time. All launches of a step use the same plan, or plans that differ in nothing but
// the window, each with a workspace of its own.

// Once per device and plan, before the first launch.
cudaError_t PrepareAttention(const AttentionPlan& plan);

// Once per step, after the step's memory is filled and before its first layer: work lists, and the
// cosines and sines of the step's positions. frequencies: [rotary_dim / 2] radians per position, as
// RopeFrequencies() gives them, device memory. Neither this nor the next kernel (or copy) on the
// stream may be a dependent launch: later kernels read the lists, and keys and values of earlier
// steps, without waiting for the kernels before them.
cudaError_t LaunchAttentionStep(const AttentionPlan& plan, const StepView& step,
                                const double* frequencies, void* workspace, cudaStream_t stream);

// One layer: writes the step's keys and values, attends, and leaves `out` for every token row t <
// T, or row r for token wanted.tokens[r]; rows of padding become zeros. Two launches when
// step.max_query is 1, four otherwise, two or three of step.only_chunks.
cudaError_t LaunchAttention(const AttentionPlan& plan, const StepView& step,
                            const AttentionLayer& layer, void* workspace, const LinearInput& out,
                            const WantedRows& wanted, cudaStream_t stream);

// The same for a step of single tokens (max_query 1), in one launch, with the rows left as floats
// [T, H * D] at AttendedRows(): the same bits as the f32 plain form of LaunchAttention. Rows of
// padding stay as they were.
cudaError_t LaunchAttentionRows(const AttentionPlan& plan, const StepView& step,
                                const AttentionLayer& layer, void* workspace, cudaStream_t stream);
float* AttendedRows(const AttentionPlan& plan, void* workspace);

}  // namespace fewbit::cuda
