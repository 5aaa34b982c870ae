#include <algorithm>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/philox.cuh"
#include "kernels/cuda/device/row_sampler.cuh"
#include "kernels/cuda/sample.h"

namespace fewbit::cuda {
namespace {

constexpr float kLargestLogit = 1e30f;  // as runtime/row_sampler.cc
constexpr float kMaskedLogit = -1e31f;
constexpr float kInfinity = __builtin_inff();

__device__ __forceinline__ float Clamp(float x) {
  return fminf(fmaxf(x, -kLargestLogit), kLargestLogit);
}

__device__ __forceinline__ bool HasPenalties(const SampleParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

// Logits after bias, penalties and mask, into `out` (this block's ids).
__device__ void Adjust(const SampleParams& p, const SampleCall& call, int slot, const LogitRow& row,
                       float* out) {
  const bool penalties = HasPenalties(p);
  for (int i = row.begin + threadIdx.x; i < row.end; i += kGroupThreads) out[i] = row.x[i];
  __syncthreads();
  const int32_t* ids = call.lists + p.lists;
  for (int b = threadIdx.x; b < p.num_bias; b += kGroupThreads) {
    const int id = ids[b];
    if (id < row.begin || id >= row.end) continue;
    out[id] = Clamp(out[id] + __int_as_float(ids[p.num_bias + b]));
  }
  __syncthreads();
  const uint32_t* counts = call.counts + static_cast<size_t>(max(slot, 0)) * call.vocab;
  for (int i = row.begin + threadIdx.x; penalties && i < row.end; i += kGroupThreads) {
    const uint32_t count = counts[i];
    if (count == 0) continue;
    const float x = out[i];
    const float repeated =
        x > 0.0f ? __fdiv_rn(x, p.repetition_penalty) : __fmul_rn(x, p.repetition_penalty);
    const uint32_t drawn = count & 0x7FFFFFFFu;
    const float penalty =
        __fadd_rn(p.presence_penalty, __fmul_rn(p.frequency_penalty, static_cast<float>(drawn)));
    out[i] = Clamp(drawn > 0 ? __fsub_rn(repeated, penalty) : repeated);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < p.num_masked; b += kGroupThreads) {
    const int id = ids[2 * p.num_bias + b];
    if (id >= row.begin && id < row.end) out[id] = kMaskedLogit;
  }
  __syncthreads();
}

// Logprob, rank and alternatives of `token`, from the raw logits.
__device__ void Describe(RowSampler* sampler, const SampleParams& p, int vocab, const LogitRow& row,
                         float max, int token, SampleResult* result) {
  const SoftmaxWeight weigh = {max, 1.0f};
  const float chosen = row.x[token];
  uint64_t mass = 0, better = 0;
  ForEach(row, [&](int i, float x) {
    mass += weigh.Mass(x);
    better += x > chosen || (x == chosen && i < token);
  });
  mass = sampler->Reduce(mass, TakeSum());
  better = sampler->Reduce(better, TakeSum());
  const float log_sum = static_cast<float>(log(static_cast<double>(mass) * 0x1p-44));
  const auto logprob = [&](float x) { return __fsub_rn(__fsub_rn(x, max), log_sum); };
  const int top = min(min(p.num_top, kMaxTopTokens), vocab);
  if (top > 0) sampler->Top(row, top);
  if (GroupRank() != 0) return;
  if (threadIdx.x == 0) {
    result->logprob = logprob(chosen);
    result->rank = static_cast<int>(better) + 1;
    result->num_top = ::max(top, 0);
  }
  if (static_cast<int>(threadIdx.x) < top) {
    const int id = static_cast<int>(~static_cast<uint32_t>(sampler->board->top[threadIdx.x]));
    result->top[threadIdx.x] = {id, logprob(row.x[id])};
  }
}

__device__ void ClearResult(SampleResult* result) {
  constexpr int kWords = sizeof(SampleResult) / sizeof(int32_t);
  if (GroupRank() == 0 && threadIdx.x < kWords) {
    reinterpret_cast<int32_t*>(result)[threadIdx.x] = 0;
  }
}

// One group of blocks per row.
__global__ void __launch_bounds__(kGroupThreads)
    SampleKernel(const __grid_constant__ SampleCall call, int ids_per_block) {
  extern __shared__ uint64_t segments[];
  __shared__ SampleBoard board;
  LetNextKernelStart();
  const int r = blockIdx.y, rank = GroupRank();
  const SampleParams p = call.params[r];
  const double uniform = PhiloxUniform(p.seed, p.position);
  // Also for rows without work: the kernel after this one relies on it.
  WaitForPreviousKernels();
  if (p.kind == SampleKind::kNone) return;
  LogitRow raw;
  raw.x = call.logits + r * call.logits_stride;
  raw.begin = min(rank * ids_per_block, call.vocab);
  raw.end = min(raw.begin + ids_per_block, call.vocab);
  raw.aligned = call.logits_stride % 4 == 0 && reinterpret_cast<uintptr_t>(call.logits) % 16 == 0;
  RowSampler sampler = {&board, segments};
  SampleResult* result = &call.results[r];
  ClearResult(result);
  const int slot = call.row_slots[r];
  const uint64_t raw_best = sampler.Best(raw);
  const float raw_max = FromOrdered(static_cast<uint32_t>(raw_best >> 32));
  int token = kNoTokenId;
  if (raw_best != 0 && raw_max > -kInfinity && raw_max < kInfinity) {
    if (p.kind == SampleKind::kScorePrompt) {
      token = p.target;
    } else {
      LogitRow row = raw;
      uint64_t best = raw_best;
      if (p.num_bias > 0 || p.num_masked > 0 || HasPenalties(p)) {
        float* out = call.adjusted + static_cast<size_t>(r) * call.vocab;
        Adjust(p, call, slot, raw, out);
        row.x = out;
        row.aligned = call.vocab % 4 == 0;
        best = sampler.Best(row);
      }
      token = p.temperature == 0.0f
                  ? static_cast<int>(~static_cast<uint32_t>(best))
                  : sampler.Draw(p, call.vocab, row, FromOrdered(static_cast<uint32_t>(best >> 32)),
                                 uniform);
    }
    if (p.kind == SampleKind::kScorePrompt || p.describe != 0 || p.num_top > 0) {
      Describe(&sampler, p, call.vocab, raw, raw_max, token, result);
    }
  }
  if (rank == 0 && threadIdx.x == 0) {
    result->token = token;
    if (p.kind == SampleKind::kSample && slot >= 0) {
      if (call.last_ids != nullptr) call.last_ids[slot] = max(token, 0);
      if (HasPenalties(p) && token >= 0)
        call.counts[static_cast<size_t>(slot) * call.vocab + token] += 1;
    }
  }
  GroupSync();  // no block leaves while another may read its shared memory
}

__global__ void ResetCountsKernel(uint32_t* counts, int vocab) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vocab; i += gridDim.x * blockDim.x) {
    counts[i] = 0;
  }
}

__global__ void CountTokensKernel(uint32_t* counts, int vocab, const int32_t* context,
                                  int num_prompt, int num_context) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= num_context || context[i] < 0 || context[i] >= vocab) return;
  if (i < num_prompt) {
    atomicOr(&counts[context[i]], 0x80000000u);
  } else {
    atomicAdd(&counts[context[i]], 1u);
  }
}

// Blocks per row: a block's share should be worth its start, and all should be resident at once.
int GroupBlocks(int rows, int vocab, const DeviceProps& device) {
  constexpr int kLeastIds = 2048, kBlocksPerMultiprocessor = 2;
  if (device.major < 9) return 1;
  int blocks = kMaxGroupBlocks;
  while (blocks > 1 && (vocab < blocks * kLeastIds ||
                        rows * blocks > device.multiprocessors * kBlocksPerMultiprocessor)) {
    blocks /= 2;
  }
  return blocks;
}

}  // namespace

cudaError_t ResetCounts(uint32_t* counts, int vocab, int slot, const int32_t* context,
                        int num_prompt, int num_context, cudaStream_t stream) {
  constexpr int kThreads = 256, kBlocks = 64;
  uint32_t* of_slot = counts + static_cast<size_t>(slot) * vocab;
  ResetCountsKernel<<<kBlocks, kThreads, 0, stream>>>(of_slot, vocab);
  if (num_context > 0) {
    CountTokensKernel<<<(num_context + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
        of_slot, vocab, context, num_prompt, num_context);
  }
  return cudaGetLastError();
}

cudaError_t LaunchSample(const SampleCall& call, const DeviceProps& device, cudaStream_t stream) {
  if (call.rows == 0) return cudaSuccess;
  const int blocks = GroupBlocks(call.rows, call.vocab, device);
  const int per_block = (call.vocab + blocks * kSegment - 1) / (blocks * kSegment) * kSegment;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks, call.rows);
  config.blockDim = dim3(kGroupThreads);
  config.dynamicSmemBytes = per_block / kSegment * sizeof(uint64_t);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = blocks > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, SampleKernel, call, per_block);
}

}  // namespace fewbit::cuda
