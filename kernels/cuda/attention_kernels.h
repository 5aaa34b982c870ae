// Parameters of the attention kernels, and the entries of the files that hold their instances: one
// per cache type, so that they compile beside one another.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {

// Lets blocks of a kernel have `bytes` of shared memory.
template <typename Kernel>
cudaError_t ReserveShared(Kernel kernel, size_t bytes) {
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  return error != cudaSuccess ? error : PreferShared(kernel);
}

// What all heads of a model have in common.
struct HeadShape {
  int dim = 0;  // D
  int rotary_dim = 0;
  bool interleaved = false;
  float rms_eps = 0;
};

// What the runs of decoded rows left, by sequence, head and run.
struct RunResults {
  float* partials = nullptr;  // [S, H, max_splits, padded D]
  float2* sums = nullptr;     // [S, H, max_splits] maximum, sum
  int max_splits = 0, padded_dim = 0;
};

struct DecodeArgs {
  AttentionLayer layer;
  const StepSizes* sizes = nullptr;
  const int32_t* block_table = nullptr;
  const WorkCounts* counts = nullptr;
  const DecodeItem* items = nullptr;
  const DecodeStart* starts = nullptr;  // [blocks]
  const float2* turns = nullptr;        // [T, rotary_dim / 2] cosine, sine
  RunResults runs;
  // [T, H * D] where the block that ends the last run of heads leaves their sum, if rows are
  // wanted; arrivals [S, H] are zero before and after.
  float* attended = nullptr;
  uint32_t* arrivals = nullptr;
  size_t block_bytes = 0;
  int head_bytes = 0;
  HeadShape head;
  int num_heads = 0, num_kv_heads = 0, group = 0, head_parts = 0, part_heads = 0;
  int window = 0, stages = 0, multiprocessors = 0;
  float scale = 0;  // of q: log2(e) / sqrt(D)
  DecodeSharedLayout shared;
};

// Makes q, and the keys and values of the cache, of all tokens that are prefilled.
struct WriteArgs {
  AttentionLayer layer;
  const StepSizes* sizes = nullptr;
  const int32_t *positions = nullptr, *sequence_of = nullptr, *q_start = nullptr,
                *block_table = nullptr;
  const float2* turns = nullptr;
  uint16_t* queries = nullptr;  // [T, H, padded D]
  size_t block_bytes = 0;
  int head_bytes = 0;
  HeadShape head;
  int num_heads = 0, num_kv_heads = 0;
  float scale = 0;
};

struct PrefillArgs {
  const uint8_t* cache = nullptr;
  const StepSizes* sizes = nullptr;
  const int32_t* block_table = nullptr;
  const WorkCounts* counts = nullptr;
  const PrefillItem* items = nullptr;
  const uint16_t* queries = nullptr;
  void* attended = nullptr;  // [T, H * D] of attended_type
  DType attended_type = DType::kF32;
  size_t block_bytes = 0;
  int head_bytes = 0;
  int head_dim = 0, num_heads = 0, group = 0, window = 0;
  WantedRows wanted;  // others may be left as they are
};

template <kv::KvType kType>
cudaError_t PrepareDecodeOf(int dim, int part_heads, size_t shared_bytes);
template <kv::KvType kType>
cudaError_t LaunchDecodeOf(int dim, DecodeForm form, const DecodeArgs& args, int blocks,
                           size_t shared_bytes, cudaStream_t stream);

template <kv::KvType kType>
cudaError_t PreparePrefillOf(int dim, size_t shared_bytes);
// For `tokens` rows.
template <kv::KvType kType>
cudaError_t LaunchWriteOf(int dim, const WriteArgs& write, int tokens, cudaStream_t stream);
// At most `tiles` tiles.
template <kv::KvType kType>
cudaError_t LaunchPrefillOf(int dim, const PrefillArgs& args, int tiles, size_t shared_bytes,
                            cudaStream_t stream);

// The same where the plan says wide_prefill.
cudaError_t PreparePrefillWide(kv::KvType type, int dim, size_t shared_bytes);
cudaError_t LaunchPrefillWide(kv::KvType type, int dim, const PrefillArgs& args, int tiles,
                              size_t shared_bytes, cudaStream_t stream);

RunResults RunResultsOf(const AttentionPlan& plan, uint8_t* base);

cudaError_t PrepareCombine();
cudaError_t LaunchCombine(const AttentionPlan& plan, const StepView& step, uint8_t* base,
                          const LinearInput& out, const WantedRows& wanted, cudaStream_t stream);

}  // namespace fewbit::cuda
