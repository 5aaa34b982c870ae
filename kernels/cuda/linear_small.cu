// Linear layers for few tokens. A block owns a run of 16-row blocks of the matrix; its warps take
// tiles in turn, each through a ring of asynchronous copies of its own, and leave one float per
// (row, token, tile) in shared memory, which the block then sums in the order that device_tile.h
// defines. Weights are asked for before the kernel waits for its predecessor in the stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/device/tile_ring.cuh"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/small_instances.h"

namespace fewbit::cuda {
namespace {

// One tile of a row block, as the host works it out.
struct TileInfo {
  uint32_t offset;  // within the row block
  uint16_t bytes;
  uint16_t quad;  // its first
  uint16_t bits;
  uint16_t chunks;
};

struct SmallArgs {
  DeviceMatrix w;
  const uint8_t* staged;
  void* y;
  int64_t y_stride;
  size_t group_bytes;      // of the staged activations
  size_t row_block_bytes;  // of the weights
  SharedLayout layout;
  int tiles, quads, row_blocks;
  int m, group_tokens, stages;
  int segment_begin[kSegments + 1];
  DType y_type;
  TileInfo tile[kMaxTiles];
};

// What one thread block owns.
struct Share {
  int first_block, blocks;  // row blocks
  int tokens, group;

  // Whole groups of kBlocks row blocks, as even as possible.
  template <int kBlocks>
  static __device__ Share Of(const SmallArgs& a) {
    const int groups = (a.row_blocks + kBlocks - 1) / kBlocks;
    const int each = groups / gridDim.x, rest = groups - each * gridDim.x, id = blockIdx.x;
    const int first = id * each + min(id, rest), count = each + (id < rest ? 1 : 0);
    Share s;
    s.first_block = first * kBlocks;
    s.blocks = min(count * kBlocks, a.row_blocks - s.first_block);
    s.group = blockIdx.y;
    s.tokens = min(a.group_tokens, a.m - s.group * a.group_tokens);
    return s;
  }
};

// The staged activations of the block's token group, in global memory; every block of a
// multiprocessor finds them in its L1 cache.
struct Activations {
  const int2* meta;  // {scale, bias} [tile][meta_stride]
  int meta_stride;
  const uint8_t* planes;
  const float* floats;  // [channel in 2-bit strips][group_tokens]

  __device__ Activations(const SmallArgs& a, const Share& s, int quad_bytes) {
    const uint8_t* from = a.staged + s.group * a.group_bytes;
    meta = reinterpret_cast<const int2*>(from);
    meta_stride = (a.group_tokens + 1) / 2 * 2;
    planes = from + a.tiles * meta_stride * sizeof(int2);
    floats = reinterpret_cast<const float*>(planes + static_cast<size_t>(a.quads) * quad_bytes);
  }
};

// The sum over the outliers of one (row, segment) and token, in list order. Its three dependent
// loads can be taken apart, so that other work runs between them.
struct OutlierList {
  static constexpr int kAhead = 4;
  uint32_t begin = 0, end = 0;
  uint32_t entries[kAhead] = {};

  __device__ __forceinline__ void LoadBounds(const SmallArgs& a, int row, int segment) {
    const size_t list = static_cast<size_t>(row) * kSegments + segment;
    begin = __ldg(a.w.outlier_start + list);
    end = __ldg(a.w.outlier_start + list + 1);
  }
  __device__ __forceinline__ void LoadEntries(const SmallArgs& a) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      entries[i] = begin + i < end ? __ldg(a.w.outliers + begin + i) : 0;
    }
  }
  // REQUIRES: LoadEntries.
  __device__ __forceinline__ float Sum(const SmallArgs& a, const Activations& x, int token) {
    float sum = 0;
    while (begin < end) {
      float activation[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        activation[i] = x.floats[(entries[i] & 0xFFFF) * a.group_tokens + token];
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float value = __half2float(__ushort_as_half(entries[i] >> 16));
        if (begin + i < end) sum = __fmaf_rn(value, activation[i], sum);
      }
      begin += kAhead;
      if (begin < end) LoadEntries(a);
    }
    return sum;
  }
};

// One float per row and token of the tile: the exact sum, d and the scale of x.
template <int kTiles, bool kZeroPoints>
__device__ __forceinline__ void WriteTerms(const int (&sums)[kTiles][4], const uint8_t* d_bytes,
                                           const int2 (&meta)[kTiles], int tokens, int lane,
                                           float* terms) {
  const int g = lane / 4, t = lane % 4;
  constexpr float kUnit = 1.0f / (quant::kStoredSecondOrderFactor * (kZeroPoints ? 2.0f : 4.0f));
  const float2 d = __half22float2(reinterpret_cast<const __half2*>(d_bytes)[g]);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int token = 4 * j + t;
    if (token >= tokens) continue;
    const float scale = __fmul_rn(__int_as_float(meta[j].x), kUnit);
    // Wraps around on the way; the sum itself fits.
    const auto total = [&](int high, int low) {
      return __int2float_rn(static_cast<int>(256u * high + low + static_cast<uint32_t>(meta[j].y)));
    };
    terms[g * TermStride(kTiles) + token] =
        __fmul_rn(__fmul_rn(total(sums[j][0], sums[j][1]), d.x), scale);
    terms[(g + 8) * TermStride(kTiles) + token] =
        __fmul_rn(__fmul_rn(total(sums[j][2], sums[j][3]), d.y), scale);
  }
}

__device__ __forceinline__ void StoreOutput(const SmallArgs& a, int64_t at, float value) {
  if (a.y_type == DType::kF32) {
    static_cast<float*>(a.y)[at] = value;
  } else if (a.y_type == DType::kF16) {
    static_cast<__half*>(a.y)[at] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value);
  }
}

// The sum of the terms of one segment; `from` points at the row and token of the row block's first
// tile.
template <int kTiles>
__device__ __forceinline__ float SegmentSum(const SmallArgs& a, const float* from, int segment) {
  float part = 0;
#pragma unroll 4
  for (int tile = a.segment_begin[segment]; tile < a.segment_begin[segment + 1]; ++tile) {
    part = __fadd_rn(part, from[tile * TermFloats(kTiles)]);
  }
  return part;
}

// With few tokens, four neighbouring lanes share a row and token of the block, one segment each.
struct FewItem {
  int row, token, segment;
  bool valid;

  __device__ FewItem(const Share& s, int index) : segment(index % kSegments) {
    const uint32_t output = static_cast<uint32_t>(index) / kSegments;
    row = s.tokens == 1 ? output : output / static_cast<uint32_t>(s.tokens);
    token = output - row * s.tokens;
    valid = row < s.blocks * quant::kBlockRows;
  }
};

// The outliers of a thread's first item, fetched while weights are under way: the kernel calls the
// steps in order, each after some other load. Bounds and entries go to shared memory, because
// registers that wait for them would be spilled, and a spill waits too.
class FirstOutliers {
 public:
  __device__ __forceinline__ FirstOutliers(const SmallArgs& a, const Share& s, uint8_t* shared)
      : words_(reinterpret_cast<uint32_t*>(shared + a.layout.outliers) + threadIdx.x) {
    const FewItem item(s, threadIdx.x);
    active_ = a.w.outliers != nullptr && item.valid;
    if (!active_) return;
    const uint32_t* bounds =
        a.w.outlier_start +
        static_cast<size_t>(s.first_block * quant::kBlockRows + item.row) * kSegments +
        item.segment;
    CopyAsync4(Word(0), bounds);
    CopyAsync4(Word(1), bounds + 1);
    CopyAsyncCommit();
  }
  __device__ __forceinline__ void LoadEntries(const SmallArgs& a) {
    requested_ = true;
    if (!active_) return;
    CopyAsyncWait<0>();
    const uint32_t begin = *Word(0), end = *Word(1);
#pragma unroll
    for (int i = 0; i < OutlierList::kAhead; ++i) {
      if (begin + i < end) CopyAsync4(Word(2 + i), a.w.outliers + begin + i);
    }
    CopyAsyncCommit();
  }
  __device__ bool requested() const { return requested_; }
  // REQUIRES: requested().
  __device__ __forceinline__ float Sum(const SmallArgs& a, const Share& s, const Activations& x) {
    if (!active_) return 0;
    CopyAsyncWait<0>();
    OutlierList list;
    list.begin = *Word(0);
    list.end = *Word(1);
#pragma unroll
    for (int i = 0; i < OutlierList::kAhead; ++i) {
      list.entries[i] = list.begin + i < list.end ? *Word(2 + i) : 0;
    }
    return list.Sum(a, x, FewItem(s, threadIdx.x).token);
  }

 private:
  __device__ __forceinline__ uint32_t* Word(int i) const { return words_ + i * blockDim.x; }

  uint32_t* words_;
  bool active_, requested_ = false;
};

// Sums and stores all results of the block, with few tokens. `first` is the outlier sum of the
// thread's first item.
__device__ __forceinline__ void ReduceFew(const SmallArgs& a, const Share& s, const Activations& x,
                                          const float* terms, float first) {
  __syncthreads();
  const int items = s.blocks * s.tokens * quant::kBlockRows * kSegments;
#pragma unroll 1
  for (int base = 0; base < items; base += blockDim.x) {
    const FewItem item(s, base + threadIdx.x);
    const int at = s.first_block * quant::kBlockRows + item.row;
    float part = first;
    if (item.valid) {
      if (a.w.outliers != nullptr && base > 0) {
        OutlierList list;
        list.LoadBounds(a, at, item.segment);
        list.LoadEntries(a);
        part = list.Sum(a, x, item.token);
      }
      const float* from = terms + item.row / quant::kBlockRows * a.tiles * TermFloats(1) +
                          item.row % quant::kBlockRows * TermStride(1) + item.token;
      part = __fadd_rn(SegmentSum<1>(a, from, item.segment), part);
    }
    float sum = part;
#pragma unroll
    for (int i = 1; i < kSegments; ++i) {
      sum = __fadd_rn(sum, __shfl_down_sync(0xFFFFFFFFu, part, i));
    }
    if (item.valid && item.segment == 0 && at < a.w.shape.rows) {
      StoreOutput(a, (s.group * a.group_tokens + item.token) * a.y_stride + at, sum);
    }
  }
}

// The outlier sums of all segments of one row and token. The lists of a row lie behind each other,
// so the first entries of the row are loaded together, whatever segment they belong to.
struct RowOutliers {
  float sum[kSegments] = {};

  __device__ __forceinline__ void Load(const SmallArgs& a, const Activations& x, int row,
                                       int token) {
    const uint32_t* start = a.w.outlier_start + static_cast<size_t>(row) * kSegments;
    uint32_t bound[kSegments + 1];
#pragma unroll
    for (int i = 0; i <= kSegments; ++i) bound[i] = __ldg(start + i);
    constexpr uint32_t kAhead = 8;
    uint32_t entries[kAhead];
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) {
      entries[i] = bound[0] + i < bound[kSegments] ? __ldg(a.w.outliers + bound[0] + i) : 0;
    }
    float activation[kAhead];
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) activation[i] = Activation(a, x, entries[i], token);
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int segment = 0; segment < kSegments; ++segment) {
        const uint32_t at = bound[0] + i;
        if (at >= bound[segment] && at < bound[segment + 1]) {
          Add(entries[i], activation[i], &sum[segment]);
        }
      }
    }
#pragma unroll
    for (int segment = 0; segment < kSegments; ++segment) {
#pragma unroll 1
      for (uint32_t at = max(bound[segment], bound[0] + kAhead); at < bound[segment + 1]; ++at) {
        const uint32_t entry = __ldg(a.w.outliers + at);
        Add(entry, Activation(a, x, entry, token), &sum[segment]);
      }
    }
  }

 private:
  static __device__ __forceinline__ float Activation(const SmallArgs& a, const Activations& x,
                                                     uint32_t entry, int token) {
    return x.floats[(entry & 0xFFFF) * a.group_tokens + token];
  }
  static __device__ __forceinline__ void Add(uint32_t entry, float activation, float* sum) {
    const float value = __half2float(__ushort_as_half(static_cast<uint16_t>(entry >> 16)));
    *sum = __fmaf_rn(value, activation, *sum);
  }
};

// The same as ReduceFew with more tokens: neighbouring lanes are tokens of one row, each sums all
// segments. The outliers of a thread's first output are summed before the barrier.
template <int kTiles>
__device__ __forceinline__ void ReduceMany(const SmallArgs& a, const Share& s, const Activations& x,
                                           const float* terms) {
  const int outputs = s.blocks * s.tokens * quant::kBlockRows;
#pragma unroll 1
  for (int base = 0; base < outputs; base += blockDim.x) {
    const int o = base + threadIdx.x;
    const int row = static_cast<uint32_t>(o) / static_cast<uint32_t>(s.tokens);
    const int token = o - row * s.tokens, at = s.first_block * quant::kBlockRows + row;
    const bool valid = o < outputs;
    RowOutliers outliers;
    if (a.w.outliers != nullptr && valid) outliers.Load(a, x, at, token);
    if (base == 0) __syncthreads();
    if (!valid || at >= a.w.shape.rows) continue;
    const float* from = terms + row / quant::kBlockRows * a.tiles * TermFloats(kTiles) +
                        row % quant::kBlockRows * TermStride(kTiles) + token;
    float sum = 0;
#pragma unroll
    for (int segment = 0; segment < kSegments; ++segment) {
      const float part = __fadd_rn(SegmentSum<kTiles>(a, from, segment), outliers.sum[segment]);
      sum = segment == 0 ? part : __fadd_rn(sum, part);
    }
    StoreOutput(a, (s.group * a.group_tokens + token) * a.y_stride + at, sum);
  }
}

// The items of one warp: (tile, group of kBlocks row blocks). With few tokens a warp takes all row
// blocks of one tile index before the next, so that it can keep its activations; with more, items
// are dealt out one by one.
template <int kBlocks, bool kColumns>
struct Cursor {
  int tile, block = 0;

  __device__ __forceinline__ Cursor(const SmallArgs& a, const Share& s, int warp)
      : tile(kColumns ? warp : 0) {
    if constexpr (!kColumns) Move(s, warp);
  }
  __device__ __forceinline__ bool Valid(const SmallArgs& a) const { return tile < a.tiles; }
  __device__ __forceinline__ void Advance(const Share& s, int warps) {
    if constexpr (kColumns) {
      block += kBlocks;
      if (block >= s.blocks) {
        block = 0;
        tile += warps;
      }
    } else {
      Move(s, warps);
    }
  }

 private:
  __device__ __forceinline__ void Move(const Share& s, int items) {
    block += items * kBlocks;
    const int turn = (s.blocks + kBlocks - 1) / kBlocks * kBlocks;
    while (block >= turn) {
      block -= turn;
      ++tile;
    }
  }
};

template <int kInstance>
struct Warp {
  static constexpr Instance kI = kSmallTable[kInstance];
  static constexpr int kTiles = kI.token_tiles, kBlocks = kI.row_blocks;
  static constexpr bool kColumns = kTiles == 1;

  const SmallArgs& a;
  const Share& s;
  int lane, warps;
  TileRing<kI.copy> ring;
  Cursor<kBlocks, kColumns> ahead, at;

  __device__ __forceinline__ Warp(const SmallArgs& args, const Share& share, uint8_t* shared)
      : a(args),
        s(share),
        lane(threadIdx.x % 32),
        warps(blockDim.x / 32),
        ring(shared + threadIdx.x / 32 * a.stages * kBlocks * a.layout.tile_bytes,
             reinterpret_cast<uint64_t*>(shared + a.layout.barriers) + threadIdx.x / 32 * a.stages,
             a.stages, kBlocks * a.layout.tile_bytes),
        ahead(args, share, threadIdx.x / 32),
        at(ahead) {}

  __device__ __forceinline__ void Issue() {
    if (!ahead.Valid(a)) {
      ring.IssueNothing();
      return;
    }
    const TileInfo& tile = a.tile[ahead.tile];
    ring.template Issue<kBlocks>(
        a.w.tiles + (s.first_block + ahead.block) * a.row_block_bytes + tile.offset, tile.bytes,
        min(kBlocks, s.blocks - ahead.block), a.row_block_bytes, a.layout.tile_bytes);
    ahead.Advance(s, warps);
  }

  // The scales of this lane's tokens in tile `at`.
  __device__ __forceinline__ void LoadMeta(const Activations& x, int2 (&meta)[kTiles]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      meta[j] = x.meta[at.tile * x.meta_stride + min(4 * j + lane % 4, s.tokens - 1)];
    }
  }

  // Waits for the tile `at`, runs product(data, sums), writes the terms, asks for another tile.
  template <typename Product>
  __device__ __forceinline__ void Step(const TileInfo& info, const int2 (&meta)[kTiles],
                                       float* terms, const Product& product) {
    const uint8_t* data = ring.Wait();
    TileSums<kBlocks, kTiles> sums;
    product(data, sums);
    const uint8_t* d = data + info.bytes - quant::kSecondOrderBytes;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (at.block + b >= s.blocks) break;
      WriteTerms<kTiles, kI.zero_points>(
          sums[b], d + b * a.layout.tile_bytes, meta, s.tokens, lane,
          terms + ((at.block + b) * a.tiles + at.tile) * TermFloats(kTiles));
    }
    Issue();
    at.Advance(s, warps);
  }

  // All row blocks of one tile index, with the activations of a full tile in registers.
  template <int kBits>
  __device__ __forceinline__ void KeptColumn(const TileInfo& info, const int2 (&meta)[kTiles],
                                             const uint8_t* quad,
                                             const ActivationView<kTiles>& view, float* terms,
                                             FirstOutliers* outliers) {
    TileActivations<kBits, 1> kept;
    kept.Load(quad, view);
#pragma unroll 1
    for (int i = 0; i < s.blocks; ++i) {
      Step(info, meta, terms, [&](const uint8_t* data, TileSums<kBlocks, kTiles>& sums) {
        FullTileProduct<kBits, kI.zero_points>(data, lane, kept, sums[0]);
      });
      if (!outliers->requested()) outliers->LoadEntries(a);
    }
  }

  __device__ __forceinline__ void Run(const Activations& x, float* terms, FirstOutliers* outliers) {
    const ActivationView<kTiles> view(x.planes, s.tokens, lane);
#pragma unroll 1
    while (at.Valid(a)) {
      const TileInfo info = a.tile[at.tile];
      const uint8_t* quad = view.first + info.quad * view.kQuadBytes;
      int2 meta[kTiles];
      LoadMeta(x, meta);
      if constexpr (kColumns) {
        if (info.chunks == quant::kTileChunks) {
          if (info.bits == 2) {
            KeptColumn<2>(info, meta, quad, view, terms, outliers);
          } else {
            KeptColumn<4>(info, meta, quad, view, terms, outliers);
          }
          continue;
        }
      }
      Step(info, meta, terms, [&](const uint8_t* data, TileSums<kBlocks, kTiles>& sums) {
        TileProduct<kBlocks, kTiles, kI.zero_points>(data, a.layout.tile_bytes, info.bits,
                                                     info.chunks, lane, quad, view, sums);
      });
    }
  }
};

template <int kInstance>
__global__ void __launch_bounds__(32 * kSmallTable[kInstance].max_warps,
                                  kSmallTable[kInstance].residency)
    SmallKernel(const __grid_constant__ SmallArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr Instance kI = kSmallTable[kInstance];
  const Share s = Share::Of<kI.row_blocks>(a);
  Warp<kInstance> warp(a, s, shared);
#pragma unroll 1
  for (int i = 0; i < a.stages; ++i) warp.Issue();
  LetNextKernelStart();
  const Activations x(a, s, ActivationView<kI.token_tiles>::kQuadBytes);
  float* terms = reinterpret_cast<float*>(shared + a.layout.terms);
  if constexpr (kI.token_tiles == 1) {
    FirstOutliers outliers(a, s, shared);
    WaitForPreviousKernels();
    warp.Run(x, terms, &outliers);
    if (!outliers.requested()) outliers.LoadEntries(a);
    ReduceFew(a, s, x, terms, outliers.Sum(a, s, x));
  } else {
    WaitForPreviousKernels();
    warp.Run(x, terms, nullptr);
    ReduceMany<kI.token_tiles>(a, s, x, terms);
  }
}

using Kernel = void (*)(SmallArgs);

template <size_t... kIndex>
constexpr std::array<Kernel, sizeof...(kIndex)> KernelTable(std::index_sequence<kIndex...>) {
  return {SmallKernel<static_cast<int>(kIndex)>...};
}
constexpr std::array<Kernel, kSmallInstances> kKernels =
    KernelTable(std::make_index_sequence<kSmallInstances>());

void FillTiles(const quant::PackedShape& shape, SmallArgs* args) {
  args->tiles = NumTiles(shape);
  args->quads = NumQuads(shape);
  args->row_blocks = shape.row_blocks();
  for (int i = 0; i < args->tiles; ++i) {
    const int bits = i < shape.tiles(2) ? 2 : 4;
    const int of_width = bits == 2 ? i : i - shape.tiles(2);
    const int chunks = shape.tile_chunks(bits, of_width);
    args->tile[i] = {static_cast<uint32_t>(shape.tile_offset(bits, of_width)),
                     static_cast<uint16_t>(quant::TileBytes(bits, chunks, shape.zero_points)),
                     static_cast<uint16_t>(FirstQuad(shape, i)), static_cast<uint16_t>(bits),
                     static_cast<uint16_t>(chunks)};
  }
  for (int i = 0; i <= kSegments; ++i) args->segment_begin[i] = SegmentBegin(args->tiles, i);
}

}  // namespace

cudaError_t ReadDeviceProps(int device, DeviceProps* props) {
  const std::array<std::pair<cudaDeviceAttr, int*>, 5> wanted = {{
      {cudaDevAttrComputeCapabilityMajor, &props->major},
      {cudaDevAttrComputeCapabilityMinor, &props->minor},
      {cudaDevAttrMultiProcessorCount, &props->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &props->shared_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &props->shared_per_block},
  }};
  for (const auto& [attribute, value] : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t PrepareSmallKernels(const DeviceProps& props) {
  for (int i = 0; i < kSmallInstances; ++i) {
    if (kSmallTable[i].copy == Copy::kBulk && props.major < 9) continue;
    const cudaError_t error = cudaFuncSetAttribute(
        kKernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_per_block);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchSmall(const Desc& desc, const Plan& plan, const DeviceMatrix& w,
                        const void* staged, void* y, int64_t y_stride, cudaStream_t stream) {
  SmallArgs args = {};
  args.w = w;
  args.staged = static_cast<const uint8_t*>(staged);
  args.y = y;
  args.y_stride = y_stride;
  args.group_bytes = StagedGroupBytes(desc.shape, plan.group_tokens);
  args.row_block_bytes = desc.shape.row_block_bytes();
  args.layout = LayoutShared(desc.shape, plan);
  FillTiles(desc.shape, &args);
  args.m = desc.m;
  args.stages = plan.stages;
  args.group_tokens = plan.group_tokens;
  args.y_type = desc.y_type;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(plan.blocks, plan.groups);
  config.blockDim = dim3(32 * plan.warps);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kKernels[plan.instance], args);
}

}  // namespace fewbit::cuda
