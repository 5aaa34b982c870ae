// Linear layers for up to 8 tokens on sm_90: one persistent block per multiprocessor, at most half
// of its registers and shared memory, so that the blocks of the next linear layer become resident
// and fill their rings with weights while this one still runs. A block owns a run of 16-row blocks
// of one matrix, one stretch of memory, and its warps have roles:
//   producer   asks for the weights, a few tiles per bulk copy, as far ahead as the ring has room,
//              and works out for each tile where everything lies
//   outliers   sum the outliers of a row block (device/stream_outliers.cuh)
//   consumers  take tiles in turn and leave one float term per (row, token, tile)
//   finisher   adds up the terms of a row block in the order that device_tile.h defines and stores

#include <array>
#include <utility>

#include "kernels/cuda/device/lone_product.cuh"
#include "kernels/cuda/device/store_plain.cuh"
#include "kernels/cuda/device/stream_input.cuh"
#include "kernels/cuda/device/stream_outliers.cuh"
#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_stream.h"

namespace fewbit::cuda {
namespace {

// Where everything of tile `tile` of the share's row block `row_block` lies.
template <int kTokens, bool kZeroPoints>
__device__ __forceinline__ TileWork WorkOf(const StreamArgs& a, const StreamPart& p, int row_block,
                                           int tile, const RingPlace& slot, uint32_t data) {
  using Map = TileMap<kZeroPoints>;
  constexpr uint32_t kMetaBytes = EvenTokens(kTokens) * sizeof(int2);
  TileWork w;
  w.data = data;
  w.planes = a.layout.x + p.num_tiles * kMetaBytes + Map::FirstQuad(p, tile) * QuadBytes(kTokens);
  w.meta = a.layout.x + tile * kMetaBytes;
  w.terms = a.layout.terms + 4 * (slot.slot * StreamTermFloats(p.num_tiles, kTokens) +
                                  tile * quant::kBlockRows * kTokens);
  w.terms |= Map::Chunks(p, tile) << TileWork::kChunksShift | slot.slot << TileWork::kSlotShift;
  if (tile >= p.tiles2) w.terms |= TileWork::kWide;
  if (row_block >= a.term_slots) {
    w.terms |= TileWork::kWait | (slot.parity != 0 ? 0 : TileWork::kParity);
  }
  return w;
}

// One warp asks for the whole share of the block in stages of a.stage_tiles tiles; lanes are the
// tiles of a stage.
template <int kTokens, bool kZeroPoints>
__device__ __forceinline__ void Produce(const StreamArgs& a, const StreamPart& p,
                                        const StreamShare& s, const StreamBlock& b) {
  using Map = TileMap<kZeroPoints>;
  const int lane = threadIdx.x % 32;
  const uint64_t policy = ReadOncePolicy();
  constexpr uint32_t kLine = 128;
  const uint32_t share_begin = s.first_row_block * p.row_block_bytes;
  const uint32_t share_end = (p.row_blocks - s.first_row_block) * p.row_block_bytes;
  const uint8_t* from = p.tiles + share_begin;
  const int items = s.row_blocks * p.num_tiles;
  const int stages = (items + a.stage_tiles - 1) / a.stage_tiles;
  const uint32_t all_bytes = s.row_blocks * p.row_block_bytes;
  int tile = lane, row_block = 0;
  RingPlace place, slot;
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    while (tile >= p.num_tiles) {
      tile -= p.num_tiles;
      ++row_block;
      slot.Advance(1, a.term_slots);
    }
    const uint32_t at =
        row_block < s.row_blocks ? row_block * p.row_block_bytes + Map::Offset(p, tile) : all_bytes;
    const uint32_t begin = __shfl_sync(0xFFFFFFFFu, at, 0);
    const uint32_t end = __shfl_sync(0xFFFFFFFFu, at, a.stage_tiles);
    // Copies that begin inside a line of 128 bytes are slower by a quarter.
    const uint32_t in_line = reinterpret_cast<uintptr_t>(from + begin) % kLine;
    const uint32_t lead = in_line <= share_begin + begin ? in_line : 0;
    const uint32_t behind = (0u - reinterpret_cast<uintptr_t>(from + end)) % kLine;
    const uint32_t bytes = end - begin + lead + (behind <= share_end - end ? behind : 0);
    const uint32_t to = place.slot * a.layout.stage_bytes;
    const TileWork work =
        WorkOf<kTokens, kZeroPoints>(a, p, row_block, tile, slot, to + lead + at - begin);
    if (stage >= a.stages) BarrierWait(b.empty[place.slot], place.parity ^ 1);
    if (lane == 0) {
      BarrierExpectBytes(b.full[place.slot], bytes);
      BulkCopyOnce(b.address + to, from + begin - lead, bytes, b.full[place.slot], policy);
    }
    if (lane < a.stage_tiles) b.works[place.slot * a.stage_tiles + lane] = work;
    __syncwarp();
    if (lane == 0) BarrierArrive(b.full[place.slot]);
    tile += a.stage_tiles;
    place.Advance(1, a.stages);
  }
}

// One float per row and token of the tile: the exact sum, d and the scale of x. `factor`: of the
// lane's token's scales, where the block has made x.
template <int kTokens, bool kZeroPoints>
__device__ __forceinline__ void StoreTerms(const int (&sums)[(kTokens + 3) / 4][4], __half2 halves,
                                           const int2* meta, float factor, int lane, float* terms) {
  const int g = lane / 4, t = lane % 4;
  constexpr float kUnit = 1.0f / (quant::kStoredSecondOrderFactor * (kZeroPoints ? 2.0f : 4.0f));
  const float2 d = __half22float2(halves);
#pragma unroll
  for (int j = 0; j < (kTokens + 3) / 4; ++j) {
    const int token = 4 * j + t;
    if (token >= kTokens) continue;
    const float made = kTokens <= kMostMadeTokens ? __fmul_rn(__int_as_float(meta[token].x), factor)
                                                  : __int_as_float(meta[token].x);
    const float scale = __fmul_rn(made, kUnit);
    const uint32_t bias = meta[token].y;
    // Wraps around on the way; the sum itself fits.
    const auto total = [&](int high, int low) {
      return __int2float_rn(static_cast<int>(256u * high + low + bias));
    };
    terms[g * kTokens + token] = __fmul_rn(__fmul_rn(total(sums[j][0], sums[j][1]), d.x), scale);
    terms[(g + 8) * kTokens + token] =
        __fmul_rn(__fmul_rn(total(sums[j][2], sums[j][3]), d.y), scale);
  }
}

// The same for one token, from LoneTileProduct.
__device__ __forceinline__ void StoreLoneTerms(int total, __half2 halves, const int2* meta,
                                               float factor, int lane, float* terms) {
  constexpr float kUnit = 1.0f / (quant::kStoredSecondOrderFactor * 4.0f);
  const int t = lane % 4;
  if (t > 1) return;
  const float2 both = __half22float2(halves);
  const float d = t == 0 ? both.x : both.y;
  const float scale = __fmul_rn(__fmul_rn(__int_as_float(meta->x), factor), kUnit);
  terms[lane / 4 + 8 * t] = __fmul_rn(__fmul_rn(__int2float_rn(total), d), scale);
}

template <int kTokens, bool kZeroPoints>
__device__ __forceinline__ void Consume(const StreamArgs& a, const StreamPart& p,
                                        const StreamShare& s, const StreamBlock& b, int warp,
                                        int warps) {
  constexpr int kTiles = (kTokens + 3) / 4;
  constexpr bool kLone = kTokens == 1 && !kZeroPoints;
  const int lane = OpaqueLane(), ring = a.stages;
  const LoneLane lone(lane);
  int left = s.row_blocks * p.num_tiles - warp;
  int step = 1, first = 0;  // stages: from one tile to the next, and before the warp's first one
  while (step * a.stage_tiles < warps) ++step;
  while ((first + 1) * a.stage_tiles <= warp) ++first;
  RingPlace place;
  place.Advance(first, ring);
  const TileWork* works = b.works + warp - first * a.stage_tiles;
  const float factor = InputFactor<kTokens>(a, b, lane % kTokens);
#pragma unroll 1
  for (; left > 0; left -= warps) {
    BarrierWait(b.full[place.slot], place.parity);
    const uint4 raw = *reinterpret_cast<const uint4*>(works + place.slot * a.stage_tiles);
    const TileWork w = {raw.x, raw.y, raw.z, raw.w};
    const uint8_t* data = b.shared + w.data;
    const int chunks = w.terms >> TileWork::kChunksShift & 7;
    const int2* meta = reinterpret_cast<const int2*>(b.shared + w.meta);
    constexpr uint32_t kPlace = (1u << TileWork::kPlaceBits) - 1;
    float* terms = reinterpret_cast<float*>(b.shared + (w.terms & kPlace));
    const int slot = w.terms >> TileWork::kSlotShift & 7;
    const auto await_slot = [&] {
      if (w.terms & TileWork::kWait) BarrierWait(b.free[slot], (w.terms & TileWork::kParity) != 0);
    };
    __half2 d;
    const auto release = [&](uint32_t last_loaded) {
      __syncwarp();
      if (lane == 0) BarrierArriveAfter(b.empty[place.slot], last_loaded);
    };
    if constexpr (kLone) {
      const uint8_t* x = b.shared + w.planes + lone.x;
      const int total = w.terms & TileWork::kWide
                            ? LoneTileProduct<4>(data, chunks, lone, x, &d, release)
                            : LoneTileProduct<2>(data, chunks, lone, x, &d, release);
      await_slot();
      StoreLoneTerms(total, d, meta, factor, lane, terms);
    } else {
      int sums[kTiles][4];
      const uint8_t* x = b.shared + w.planes + ColumnOffset<kTokens>(lane);
      if (w.terms & TileWork::kWide) {
        WholeTileProduct<kTokens, 4, kZeroPoints>(data, chunks, lane, x, sums, &d, release);
      } else {
        WholeTileProduct<kTokens, 2, kZeroPoints>(data, chunks, lane, x, sums, &d, release);
      }
      await_slot();
      StoreTerms<kTokens, kZeroPoints>(sums, d, meta, factor, lane, terms);
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(b.ready[slot]);
    place.Advance(step, ring);
  }
}

// The sum of one (row, token)'s terms, ((P0 + P1) + P2) + P3. `from`: of the row block's first
// tile, tiles kStride floats apart. Zeros stand for terms beyond the end of a segment: a sum that
// began with +0 is not changed by +0.
template <int kStride>
__device__ __forceinline__ float SumTerms(const float* from, const int (&begin)[kSegments + 1]) {
  constexpr int kBatch = 4;  // of every segment, loaded at once
  float part[kSegments] = {};
  const int longest = (begin[kSegments] + kSegments - 1) / kSegments;
#pragma unroll 1
  for (int base = 0; base < longest; base += kBatch) {
    float term[kSegments][kBatch];
#pragma unroll
    for (int s = 0; s < kSegments; ++s) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int tile = begin[s] + base + i;
        term[s][i] = tile < begin[s + 1] ? from[tile * kStride] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int s = 0; s < kSegments; ++s) part[s] = __fadd_rn(part[s], term[s][i]);
    }
  }
  float sum = part[0];
#pragma unroll
  for (int s = 1; s < kSegments; ++s) sum = __fadd_rn(sum, part[s]);
  return sum;
}

// One warp; a lane has whole (row, token)s.
template <int kTokens>
__device__ __forceinline__ void Finish(const StreamArgs& a, const StreamPart& p,
                                       const StreamShare& s, const StreamBlock& b) {
  constexpr int kOutputs = quant::kBlockRows * kTokens, kPerLane = (kOutputs + 31) / 32;
  const int lane = threadIdx.x % 32;
  const float* terms = reinterpret_cast<const float*>(b.shared + a.layout.terms);
  int begin[kSegments + 1];
#pragma unroll
  for (int i = 0; i <= kSegments; ++i) begin[i] = p.segment_begin[i];
  RingPlace slot;
  WaitForPreviousKernels();
#pragma unroll 1
  for (int row_block = 0; row_block < s.row_blocks; ++row_block) {
    const float* from = terms + slot.slot * StreamTermFloats(p.num_tiles, kTokens);
    int64_t place[kPerLane];  // of the lane's outputs; -1: none
    float add[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int output = lane + 32 * i, token = output % kTokens;
      const int row = (s.first_row_block + row_block) * quant::kBlockRows + output / kTokens;
      const bool mine = output < kOutputs && token < a.m && row < p.rows;
      place[i] = mine ? token * a.y_stride + p.column + row : -1;
      if (mine && a.add != nullptr) add[i] = __ldcg(a.add + place[i]);
    }
    BarrierWait(b.ready[slot.slot], slot.parity);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (place[i] < 0) continue;
      const int output = lane + 32 * i;
      float sum = SumTerms<kOutputs>(from + output, begin);
      if (p.outliers != nullptr) sum = __fadd_rn(sum, from[p.num_tiles * kOutputs + output]);
      if (a.add != nullptr) sum = __fadd_rn(sum, add[i]);
      StorePlain(a.y, a.y_type, place[i], sum);
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(b.free[slot.slot]);
    slot.Advance(1, a.term_slots);
  }
}

template <int kForm, bool kZeroPoints>
__global__ void __launch_bounds__(32 * kStreamForms[kForm].warps(), 2)
    StreamKernel(const __grid_constant__ StreamArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr StreamForm kF = kStreamForms[kForm];
  int id = 0;
  while (id + 1 < a.count && static_cast<int>(blockIdx.x) >= a.part[id + 1].first_block) ++id;
  const StreamPart& p = a.part[id];
  const StreamShare s(p);
  const StreamBlock b(a, shared);
  constexpr int kLoaders = 32 * (kF.outliers + kF.consumers);
  // By a shuffle the compiler sees that it is the same in all lanes: branches on it diverge
  // nowhere.
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  if (a.lets_next) LetNextKernelStart();
  if (warp == 0) {
    b.InitBarriers(a, p.num_tiles + (p.outliers != nullptr ? 2 : 0), threadIdx.x);
    __syncthreads();
    Produce<kF.tokens, kZeroPoints>(a, p, s, b);
  } else if (warp == 1) {
    __syncthreads();
    Finish<kF.tokens>(a, p, s, b);
  } else {
    __syncthreads();
    const int id = warp - 2, loader = 32 * id + static_cast<int>(threadIdx.x) % 32;
    OutlierShare lists;
    if (id < kF.outliers && p.outliers != nullptr) {
      lists.Fetch(a, p, s, shared, loader, 32 * kF.outliers);
    }
    BringInput<kF.tokens, kLoaders, kF.outliers>(a, p, shared, loader);
    const StreamBlock b(a, shared);
    if (id >= kF.outliers) {
      Consume<kF.tokens, kZeroPoints>(a, p, s, b, id - kF.outliers, kF.consumers);
    } else if (p.outliers != nullptr) {
      CopyAsyncWait<0>();
      NamedBarrier(2, 32 * kF.outliers);
      const StreamOutliers<kF.tokens> outliers(a, p, b, lists);
      SumOutliers<kF.tokens>(a, p, s, b, outliers, id, kF.outliers);
    }
  }
}

using Kernel = void (*)(StreamArgs);
template <size_t... kForm>
constexpr auto KernelTable(std::index_sequence<kForm...>) {
  return std::array<std::array<Kernel, 2>, sizeof...(kForm)>{
      {{StreamKernel<kForm, false>, StreamKernel<kForm, true>}...}};
}
constexpr auto kKernels = KernelTable(std::make_index_sequence<kStreamForms.size()>());

void FillPart(const DeviceMatrix& w, const StageTarget& x, int64_t column, StreamPart* p) {
  const quant::PackedShape& s = w.shape;
  p->tiles = w.tiles;
  p->outlier_start = w.outlier_start;
  p->outliers = w.outliers;
  p->x = x;
  p->column = column;
  p->rows = s.rows;
  p->row_blocks = s.row_blocks();
  p->row_block_bytes = static_cast<uint32_t>(s.row_block_bytes());
  p->section2_bytes = static_cast<uint32_t>(s.section_bytes(2));
  p->num_tiles = NumTiles(s);
  p->tiles2 = s.tiles(2);
  p->last2 = s.tiles(2) > 0 ? s.tile_chunks(2, s.tiles(2) - 1) : 0;
  p->last4 = s.tiles(4) > 0 ? s.tile_chunks(4, s.tiles(4) - 1) : 0;
  p->quads2 = s.chunks2 * ChunkQuads(2);
  for (int i = 0; i <= kSegments; ++i) p->segment_begin[i] = SegmentBegin(p->num_tiles, i);
}

}  // namespace

cudaError_t PrepareStreamKernels(const DeviceProps& props) {
  if (props.major < 9) return cudaSuccess;
  for (const auto& form : kKernels) {
    for (Kernel kernel : form) {
      cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               props.shared_per_block);
      if (error == cudaSuccess) error = PreferShared(kernel);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

cudaError_t LaunchStream(const Desc& desc, const StreamPlan& plan, const DeviceGroup& group,
                         const LinearInput& in, const LinearOutput& out, cudaStream_t stream) {
  StreamArgs args = {};
  args.count = desc.count;
  for (int i = 0; i < desc.count; ++i) {
    FillPart(group.parts[i], in.parts[i], out.column[i], &args.part[i]);
    const int blocks = plan.first_block[i + 1] - plan.first_block[i];
    args.part[i].first_block = plan.first_block[i];
    args.part[i].share = args.part[i].row_blocks / blocks;
    args.part[i].larger = args.part[i].row_blocks % blocks;
  }
  args.y = out.y;
  args.add = out.add;
  args.y_stride = out.stride;
  args.y_type = desc.y_type;
  args.m = desc.m;
  args.stages = plan.stages;
  args.stage_tiles = plan.stage_tiles;
  args.term_slots = plan.term_slots;
  args.layout = plan.layout;
  args.lets_next = plan.lets_next;
  args.cols = desc.shapes[0].cols;
  if (plan.input != RowKind::kStaged) args.source = in.source;
  const Kernel kernel = kKernels[plan.form][desc.shapes[0].zero_points];
  const dim3 grid(plan.blocks), block(32 * kStreamForms[plan.form].warps());
  if (plan.early) {
    return LaunchDependent(kernel, grid, block, plan.layout.total, stream, args);
  }
  kernel<<<grid, block, plan.layout.total, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
