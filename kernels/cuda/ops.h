// The small operations between the linear layers: embedding, residual add + RMSNorm, SiLU * up.
// Each is one launch that leaves its result in the form in which the next linear layer reads it
// (staging.h). A token's result does not depend on the batch. All pointers are
// device memory; launches only enqueue on `stream` and may be captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/step_view.h"
#include "kernels/matrix.h"

namespace fewbit::cuda {

// The largest hidden size.
inline constexpr int kMaxRowElements = 16384;

// Once per device before the first launch: sets shared-memory limits and preferences.
cudaError_t PrepareOps();

// hidden_out[t] = hidden[from] + delta[t] with from = rows ? rows[t] : t, and
// out[t] = RMSNorm(hidden_out[t]) * weight, as cpu::RmsNorm, sums in a fixed order.
struct NormArgs {
  int tokens = 0;                 // T, or R with `rows`
  int cols = 0;                   // E, a multiple of 16, at most kMaxRowElements
  const float* hidden = nullptr;  // [*, E]
  const int32_t* rows = nullptr;  // [tokens] or null
  const float* delta = nullptr;   // [tokens, E]; null: none
  float* hidden_out = nullptr;    // [tokens, E], not `hidden`; null: not kept
  const float* weight = nullptr;  // [E]
  float eps = 1e-5f;
};
cudaError_t LaunchAddNorm(const NormArgs& args, const LinearInput& out, cudaStream_t stream);

// hidden_out[t] = row token_ids[t] of `table` (kLastSampledId: the last id of the token's slot; ids
// outside the table count as 0), then as above. hidden, rows and delta are not read. A launch that
// waits for everything before it: what the step's preparation wrote (attention_launch.h) is visible
// to all kernels that follow, even before they wait.
cudaError_t LaunchEmbedNorm(const DeviceDense& table, const StepView& step, const NormArgs& args,
                            const LinearInput& out, cudaStream_t stream);

// out[t] = silu(gate[t]) * up[t]. gate and up are [tokens, cols] of `type` (kF32 or kF16), row
// stride `stride` elements, 16-byte aligned; cols a multiple of 16.
struct SiluArgs {
  int tokens = 0;
  int cols = 0;  // F
  const void* gate = nullptr;
  const void* up = nullptr;
  DType type = DType::kF32;
  int64_t stride = 0;
};
cudaError_t LaunchSiluMul(const SiluArgs& args, const LinearInput& out, cudaStream_t stream);

}  // namespace fewbit::cuda
