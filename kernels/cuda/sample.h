// Rows of logits into tokens on the device: the operations, their order and the random numbers are
// those of runtime/sampler.h. Nothing of a row waits for the host: ids drawn before are counted in
// device memory.
//
// Masses (softmax weights) are summed as integers in units of 2^-44 of the best token's weight, so
// a result depends neither on the order of summation nor on the batch. Weights are the CPU's, bit
// for bit; a draw can differ from the CPU's only where a boundary falls into that rounding.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step_view.h"

namespace fewbit::cuda {

inline constexpr int kMaxTopTokens = 20;
inline constexpr int32_t kNoTokenId = -1;  // of a row with NaN or infinite logits

enum class SampleKind : int32_t { kNone, kSample, kScorePrompt };  // kNone: padding

// One row's parameters, written by the host for each step. kNone rows need no other field.
struct SampleParams {
  uint64_t seed = 0;
  SampleKind kind = SampleKind::kNone;
  int32_t position = 0;             // of the token to be drawn: the generator's counter
  int32_t target = 0;               // kScorePrompt: the id to be scored
  float temperature = 0.0f;         // 0: greedy
  float top_p = 1.0f;               // 1: off
  float min_p = 0.0f;               // 0: off
  int32_t top_k = 0;                // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t describe = 0;   // 1: fill logprob and rank also for kSample
  int32_t num_top = 0;    // alternatives wanted, at most kMaxTopTokens
  int32_t lists = 0;      // index in SampleCall::lists of the row's bias ids, then as many biases
                          // (float bits), then ids masked now (stop ids under min_new_tokens)
  uint16_t num_bias = 0;  // ids of one list differ from each other; ids beyond V are ignored
  uint16_t num_masked = 0;
};
static_assert(sizeof(SampleParams) == 64);

// One row's result; the same layout as the scheduler's SampledToken.
struct SampleResult {
  int32_t token = kNoTokenId;
  float logprob = 0.0f;
  int32_t rank = 0;
  int32_t num_top = 0;
  struct {
    int32_t token = 0;
    float logprob = 0.0f;
  } top[kMaxTopTokens];
};

struct SampleCall {
  int rows = 0;                          // R of the launch; rows of kind kNone cost nothing
  int vocab = 0;                         // V
  const float* logits = nullptr;         // [R, V], row stride logits_stride
  int64_t logits_stride = 0;             // elements
  const SampleParams* params = nullptr;  // [R]
  const int32_t* lists = nullptr;        // side array of params, see there
  const int32_t* row_slots = nullptr;    // [R] slot of each row, as StepView
  int32_t* last_ids = nullptr;           // [slots] the drawn id of kSample rows (0 for none)
  uint32_t* counts = nullptr;            // [slots, V], see ResetCounts; kSample rows with penalties
                                         // count their token here
  float* adjusted = nullptr;             // [R, V] scratch: logits after bias, penalties and mask
  SampleResult* results = nullptr;       // [R]
};

// Starts a slot anew for a request with penalties: `context` (device memory, ids within V) is its
// prompt followed by what it has generated so far. counts[slot, v] = how often v is in the output,
// bit 31: v is in the prompt.
cudaError_t ResetCounts(uint32_t* counts, int vocab, int slot, const int32_t* context,
                        int num_prompt, int num_context, cudaStream_t stream);

cudaError_t LaunchSample(const SampleCall& call, const DeviceProps& device, cudaStream_t stream);

}  // namespace fewbit::cuda
