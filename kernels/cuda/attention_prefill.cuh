// Prefill: many query tokens of one sequence. The first kernel leaves the queries as fragments want
// them and writes keys and values to the cache; the second (or, where it can run, the one in
// attention_prefill_wide.cu) takes tiles of 64 query rows of one head
// and walks the keys in tiles of 64 by absolute index with an online softmax (Dao et al. 2022;
// Milakov and Gimelshein 2018). A key tile in which a row sees nothing leaves the row's sums as
// they are, bit for bit, so that a row's result does not depend on the tile it is in.
//
// Included by one file per cache type. A block has 4 warps of 16 query rows each; two stages of key
// tiles by bulk copies (sm_90) or cp.async (sm_80). i8 tiles are widened once for all warps.
#pragma once

#include <type_traits>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/attended_row.cuh"
#include "kernels/cuda/device/block_view.cuh"
#include "kernels/cuda/device/fragment.cuh"
#include "kernels/cuda/device/head_quarters.cuh"
#include "kernels/cuda/device/head_row.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {

inline constexpr int kPrefillWarps = 4;
inline constexpr int kBlockQueries = 16 * kPrefillWarps;
inline constexpr int kTileBlocks = kKeyTile / kv::kBlockTokens;
inline constexpr float kNothingSeen = -1e30f;

// A token's rows of heads: queries, keys, values.
class TokenRows {
 public:
  __device__ TokenRows(const WriteArgs& a, int64_t token, uint8_t* block, int place)
      : a_(a),
        token_(token),
        block_(block),
        place_(place),
        turns_(a.turns + token * (a.head.rotary_dim / 2)) {}

  __device__ int count() const { return a_.num_heads + 2 * a_.num_kv_heads; }
  __device__ bool IsQuery(int row) const { return row < a_.num_heads; }
  __device__ bool IsValue(int row) const { return row >= a_.num_heads + a_.num_kv_heads; }
  __device__ int KvHead(int row) const {
    return row - a_.num_heads - (IsValue(row) ? a_.num_kv_heads : 0);
  }
  __device__ const float2* turns() const { return turns_; }

  __device__ HeadSource Source(int row) const {
    const AttentionLayer& l = a_.layer;
    if (IsQuery(row)) return Of(l.q, l.q_stride, l.q_bias, row, l.q_norm, turns_);
    if (IsValue(row)) return Of(l.v, l.v_stride, l.v_bias, KvHead(row), nullptr, nullptr);
    return Of(l.k, l.k_stride, l.k_bias, KvHead(row), l.k_norm, turns_);
  }
  template <int kDim>
  __device__ uint16_t* Query(int row) const {
    return a_.queries + (token_ * a_.num_heads + row) * kDim;
  }
  // Of the row's kv head: the token's block, and in it the keys (or values) of all its tokens.
  __device__ uint8_t* Cached(int row) const { return block_ + KvHead(row) * a_.head_bytes; }
  template <kv::KvType kType, int kDim>
  __device__ uint8_t* CachedHalf(int row) const {
    constexpr int kHalf = kv::kBlockTokens * kDim * kv::KvTypeBytes(kType);
    return Cached(row) + (IsValue(row) ? kHalf : 0);
  }
  __device__ int place() const { return place_; }

 private:
  __device__ HeadSource Of(const void* x, int64_t stride, const float* bias, int head,
                           const float* norm, const float2* turns) const {
    const int d = a_.head.dim, width = a_.layer.type == DType::kF32 ? 4 : 2;
    return {static_cast<const uint8_t*>(x) + (token_ * stride + head * d) * width, a_.layer.type,
            bias == nullptr ? nullptr : bias + head * d, norm, turns};
  }
  const WriteArgs& a_;
  const int64_t token_;
  uint8_t* const block_;
  const int place_;
  const float2* const turns_;
};

// All heads of a token's queries, keys or values, several asked for at once. x: the first head, of
// T. `store(head, x)`: what is done with one.
template <int kDim, typename T, typename Store>
__device__ __forceinline__ void PassHeads(const T* x, int heads, const Store& store) {
  using Quarters = HeadQuarters<kDim>;
  constexpr int kAtOnce = 4, kHeads = 32 * kPrefillWarps / Quarters::kLanes;
  for (int first = threadIdx.x / Quarters::kLanes; first < heads; first += kHeads * kAtOnce) {
    Quarters head[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kHeads < heads) head[i].Load(x + (first + i * kHeads) * kDim);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kHeads < heads) store(first + i * kHeads, &head[i]);
    }
  }
}

// The rows of 16-bit caches, pairs of rope half a head apart. T: of q, k and v. kNorms: heads have
// norms; without, the code is a third as long.
template <kv::KvType kType, int kDim, typename T, bool kNorms>
__device__ __forceinline__ void WriteOwnPairs(const WriteArgs& a, const TokenRows& rows) {
  using Quarters = HeadQuarters<kDim>;
  constexpr int kPieces = kDim / 8, kHalf = kv::kBlockTokens * kDim * 2;
  float2 turns[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) turns[i] = rows.turns()[Quarters::d() + i];
  const auto of = [](const float* values, int head) {
    return values == nullptr ? nullptr : values + head * kDim;
  };
  const HeadSource q = rows.Source(0), k = rows.Source(a.num_heads);
  const HeadSource v = rows.Source(a.num_heads + a.num_kv_heads);
  PassHeads<kDim>(static_cast<const T*>(q.x), a.num_heads, [&](int head, Quarters* x) {
    x->AddBias(of(q.bias, head));
    if constexpr (kNorms) x->Norm(q.norm, a.head.rms_eps);
    x->Turn(turns);
    x->Scale(a.scale);
    uint16_t* to = rows.Query<kDim>(head);
    x->template Store<kType>([to](int d) { return to + d; });
  });
  uint8_t* const cached = rows.Cached(a.num_heads);
  const auto place = [&](int d) {
    return kv::DeviceBlockShape::piece_offset(kPieces, rows.place(), d / 8) + 2 * (d % 8);
  };
  PassHeads<kDim>(static_cast<const T*>(k.x), a.num_kv_heads, [&](int head, Quarters* x) {
    x->AddBias(of(k.bias, head));
    if constexpr (kNorms) x->Norm(k.norm, a.head.rms_eps);
    x->Turn(turns);
    uint8_t* to = cached + head * a.head_bytes;
    x->template Store<kType>([&](int d) { return to + place(d); });
  });
  PassHeads<kDim>(static_cast<const T*>(v.x), a.num_kv_heads, [&](int head, Quarters* x) {
    x->AddBias(of(v.bias, head));
    uint8_t* to = cached + head * a.head_bytes + kHalf;
    x->template Store<kType>([&](int d) { return to + place(d); });
  });
}

// The same for any cache and rope, a row at a time.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void WriteAny(const WriteArgs& a, const TokenRows& rows, float* row_of,
                                         uint8_t* encoded) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < rows.count(); row += kPrefillWarps) {
    PrepareHead<kDim>(a.head, rows.Source(row), row_of);
    if (rows.IsQuery(row)) {
      uint32_t* to = reinterpret_cast<uint32_t*>(rows.Query<kDim>(row));
      for (int i = lane; i < kDim / 2; i += 32) {
        to[i] = PackPair<kType>(row_of[2 * i] * a.scale, row_of[2 * i + 1] * a.scale);
      }
      continue;
    }
    const __half scale = EncodeRow<kType, kDim>(row_of, encoded);
    __syncwarp();
    PlaceRow<kType, kDim>(encoded, rows.CachedHalf<kType, kDim>(row), rows.place());
    if (kType == kv::KvType::kI8 && lane == 0) {
      constexpr int kScales = 2 * kv::kBlockTokens * kDim * kv::KvTypeBytes(kType);
      __half* scales = reinterpret_cast<__half*>(rows.Cached(row) + kScales);
      scales[(rows.IsValue(row) ? kv::kBlockTokens : 0) + rows.place()] = scale;
    }
  }
}

// A block per token, a warp per head. Tokens of decoded sequences and padding are left alone.
template <kv::KvType kType, int kDim>
__global__ __launch_bounds__(32 *
                             kPrefillWarps) void WriteKernel(const __grid_constant__ WriteArgs a) {
  __shared__ __align__(16) float rows[kPrefillWarps][kDim];
  __shared__ __align__(16) uint8_t encoded[kPrefillWarps][kDim * 2];
  LetNextKernelStart();
  // The step's arrays are older than the kernel before this one.
  const int64_t token = blockIdx.x;
  const int sequence = a.sequence_of[token], warp = threadIdx.x / 32;
  int position = 0, id = -1;
  if (sequence >= 0 && a.q_start[sequence + 1] - a.q_start[sequence] > 1) {
    position = a.positions[token];
    id = a.block_table[static_cast<size_t>(sequence) * a.sizes->block_table_stride +
                       position / kv::kBlockTokens];
  }
  // Also by those with nothing to do: the end of this kernel is that of those before it.
  WaitForPreviousKernels();
  if (id < 0) return;
  const TokenRows of_token(a, token, a.layer.cache + static_cast<size_t>(id) * a.block_bytes,
                           position % kv::kBlockTokens);
  if constexpr (kType != kv::KvType::kI8) {
    if (OwnPairs<kDim>(a.head)) {
      const bool norms = a.layer.q_norm != nullptr || a.layer.k_norm != nullptr;
      if (a.layer.type != DType::kF16) {
        WriteOwnPairs<kType, kDim, float, true>(a, of_token);
      } else if (norms) {
        WriteOwnPairs<kType, kDim, __half, true>(a, of_token);
      } else {
        WriteOwnPairs<kType, kDim, __half, false>(a, of_token);
      }
      return;
    }
  }
  WriteAny<kType, kDim>(a, of_token, rows[warp], encoded[warp]);
}

// Key tiles of one (sequence, kv head), two of them in shared memory.
class KeyTiles {
 public:
  // `seen_end`: keys from there on are seen by nobody and blocks of them alone are not copied.
  __device__ KeyTiles(const PrefillArgs& a, const PrefillItem& item, int kv_head, int seen_end,
                      uint8_t* stages, uint64_t* barriers)
      : table_(a.block_table + static_cast<size_t>(item.sequence) * a.sizes->block_table_stride),
        from_(a.cache + static_cast<size_t>(kv_head) * a.head_bytes),
        block_bytes_(a.block_bytes),
        head_bytes_(a.head_bytes),
        seen_blocks_((seen_end + kv::kBlockTokens - 1) / kv::kBlockTokens),
        stages_(stages),
        barriers_(barriers) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      BarrierInit(barriers, 1);
      BarrierInit(barriers + 1, 1);
      BarrierInitFence();
    }
    __syncthreads();
#endif
  }

  __device__ __forceinline__ uint8_t* stage(int tile) const {
    return stages_ + (tile & 1) * kTileBlocks * head_bytes_;
  }

  // By the whole block, which is done with tile - 2.
  __device__ __forceinline__ void Issue(int tile) {
    const int first = tile * kTileBlocks, count = min(kTileBlocks, seen_blocks_ - first);
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x >= 32) return;
    if (threadIdx.x == 0) BarrierExpect(barriers_ + (tile & 1), count * head_bytes_);
    __syncwarp();
    if (static_cast<int>(threadIdx.x) < count) {
      const int id = table_[first + threadIdx.x];
      BulkCopy(stage(tile) + threadIdx.x * head_bytes_,
               from_ + static_cast<size_t>(id) * block_bytes_, head_bytes_, barriers_ + (tile & 1));
    }
#else
    for (int b = 0; b < count; ++b) {
      const uint8_t* from = from_ + static_cast<size_t>(table_[first + b]) * block_bytes_;
      uint8_t* to = stage(tile) + b * head_bytes_;
      for (int i = 16 * threadIdx.x; i < head_bytes_; i += 16 * blockDim.x) {
        CopyAsync16(to + i, from + i);
      }
    }
    CopyAsyncCommit();
#endif
  }
  __device__ __forceinline__ void IssueNothing() {
#if __CUDA_ARCH__ < 900
    CopyAsyncCommit();
#endif
  }

  // By the whole block; tiles in order, the next one having been asked for.
  __device__ __forceinline__ void Wait(int tile) {
#if __CUDA_ARCH__ >= 900
    BarrierWait(barriers_ + (tile & 1), parity_ >> (tile & 1) & 1);
    parity_ ^= 1u << (tile & 1);
#else
    CopyAsyncWait<1>();
    __syncthreads();
#endif
  }

 private:
  const int32_t* const table_;
  const uint8_t* const from_;
  const size_t block_bytes_;
  const int head_bytes_, seen_blocks_;
  uint8_t* const stages_;
  uint64_t* const barriers_;
  uint32_t parity_ = 0;
};

// How a tile's keys and values lie in shared memory in 16-bit elements: as in an f16 cache.
template <int kDim>
using TileView = BlockView<kv::KvType::kF16, kDim>;

// An i8 tile as f16 numbers, zeros from key `count` on.
template <int kDim>
__device__ __forceinline__ void WidenTile(const uint8_t* raw, int head_bytes, int count,
                                          uint8_t* wide) {
  using View = TileView<kDim>;
  constexpr int kRawPieces = kDim / 16;
  for (int i = threadIdx.x; i < 2 * kKeyTile * kRawPieces; i += blockDim.x) {
    const int piece = i % kRawPieces, row = i / kRawPieces;
    const int half = row / kKeyTile, key = row % kKeyTile;
    const int block = key / kv::kBlockTokens, token = key % kv::kBlockTokens;
    uint4 out[2] = {};
    if (key < count) {
      const uint8_t* from = raw + block * head_bytes;
      const uint4 bytes = *reinterpret_cast<const uint4*>(
          from + half * kv::kBlockTokens * 16 * kRawPieces +
          kv::DeviceBlockShape::piece_offset(kRawPieces, token, piece));
      const uint32_t scale = reinterpret_cast<const uint16_t*>(
          from + 2 * kv::kBlockTokens * 16 * kRawPieces)[half * kv::kBlockTokens + token];
      WidenPiece(bytes, scale, out);
    }
    uint8_t* to = wide + block * View::kBlock + half * View::kHalf;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      *reinterpret_cast<uint4*>(
          to + kv::DeviceBlockShape::piece_offset(View::kPieces, token, 2 * piece + p)) = out[p];
    }
  }
}

// Values of the tile's keys from `count` on become zero: they may be anything.
template <int kDim>
__device__ __forceinline__ void ZeroValues(uint8_t* tile, int count) {
  using View = TileView<kDim>;
  for (int i = threadIdx.x; i < (kKeyTile - count) * View::kPieces; i += blockDim.x) {
    const int key = count + i / View::kPieces;
    uint8_t* values = tile + key / kv::kBlockTokens * View::kBlock + View::kHalf;
    *reinterpret_cast<uint4*>(
        values + kv::DeviceBlockShape::piece_offset(View::kPieces, key % kv::kBlockTokens,
                                                    i % View::kPieces)) = make_uint4(0, 0, 0, 0);
  }
  FenceBeforeBulkCopies();
}

// The queries of a warp's 16 rows: rows g, g + 8 of the fragments. Rows beyond the item are zero.
template <int kDim>
__device__ __forceinline__ void LoadQueryStep(const uint16_t* const (&rows)[2], int k,
                                              uint32_t (&a)[4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint16_t* row = rows[i % 2];
    const int at = 16 * k + 8 * (i / 2) + 2 * t;
    a[i] = row == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(row + at);
  }
}

// A warp's 16 query rows against all keys; [2] are rows g and g + 8.
template <kv::KvType kType, int kDim>
struct PrefillWarp {
  using View = TileView<kDim>;
  using Math = std::conditional_t<kType == kv::KvType::kBF16, BfloatMath, HalfMath>;
  static constexpr int kSteps = kDim / 16;
  static constexpr bool kKeep = kDim <= kMaxRegisterQueryDim;

  const uint16_t* rows[2] = {};
  uint32_t q[kKeep ? kSteps : 1][4];  // large heads load them again for every tile
  float top[2] = {kNothingSeen, kNothingSeen};
  float sum[2] = {0, 0};
  float out[2 * kSteps][4] = {};

  __device__ __forceinline__ void KeepQueries() {
    if constexpr (kKeep) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) LoadQueryStep<kDim>(rows, k, q[k]);
    }
  }

  // s[n]: rows g (0, 1) and g + 8 (2, 3), keys 8n + 2t and the next.
  __device__ __forceinline__ void Score(const uint8_t* tile, float (&s)[8][4]) {
    const int lane = threadIdx.x % 32;
    const auto place = View::LaneOf(lane % 8 + 8 * (lane / 16), lane / 8 % 2);
    const uint32_t keys = SharedAddress(tile);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if constexpr (!kKeep) LoadQueryStep<kDim>(rows, k, q[0]);
      const uint32_t(&a)[4] = q[kKeep ? k : 0];
#pragma unroll
      for (int b = 0; b < kTileBlocks; ++b) {
        uint32_t r[4];
        LoadMatrices4(r, keys + b * View::kBlock + place.At(2 * k));
        Math::Mma(s[2 * b], a, r[0], r[1]);
        Math::Mma(s[2 * b + 1], a, r[2], r[3]);
      }
    }
  }

  // Keys that a row does not see. `first`: the tile's first key; positions of rows g and g + 8.
  __device__ __forceinline__ void Mask(int first, const int (&position)[2], int window,
                                       float (&s)[8][4]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first + 8 * n + 2 * static_cast<int>(threadIdx.x % 4) + i % 2;
        const int here = position[i / 2];
        if (key > here || (window > 0 && key <= here - window)) {
          s[n][i] = __int_as_float(0xFF800000);
        }
      }
    }
  }

  __device__ __forceinline__ void Weigh(float (&s)[8][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int n = 0; n < 8; ++n) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
      const float factor = Exp2(top[r] - most);
      top[r] = most;
      float added = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        s[n][2 * r] = Exp2(s[n][2 * r] - most);
        s[n][2 * r + 1] = Exp2(s[n][2 * r + 1] - most);
        added += s[n][2 * r] + s[n][2 * r + 1];
      }
      sum[r] = __fmaf_rn(sum[r], factor, added);
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        out[n][2 * r] *= factor;
        out[n][2 * r + 1] *= factor;
      }
    }
  }

  __device__ __forceinline__ void AddValues(const uint8_t* tile, const float (&s)[8][4]) {
    const int lane = threadIdx.x % 32;
    const auto place = View::LaneOf(lane % 16, lane / 16);
    const uint32_t values = SharedAddress(tile) + View::kHalf;
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const uint32_t a[4] = {Math::Pack(s[2 * b][0], s[2 * b][1]),
                             Math::Pack(s[2 * b][2], s[2 * b][3]),
                             Math::Pack(s[2 * b + 1][0], s[2 * b + 1][1]),
                             Math::Pack(s[2 * b + 1][2], s[2 * b + 1][3])};
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        uint32_t r[4];
        LoadMatrices4Transposed(r, values + b * View::kBlock + place.At(2 * m));
        Math::Mma(out[2 * m], a, r[0], r[1]);
        Math::Mma(out[2 * m + 1], a, r[2], r[3]);
      }
    }
  }

  // to [2]: where rows g and g + 8 go; those beyond the item do not exist.
  __device__ __forceinline__ void Store(const AttendedRow (&to)[2], int head_dim) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float scale = OneOverSum(sum[r]);
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        const int d = 8 * n + 2 * (threadIdx.x % 4);
        if (!to[r].exists() || d >= head_dim) continue;
        to[r].Store(d, out[n][2 * r] * scale, out[n][2 * r + 1] * scale);
      }
    }
  }
};

// Grid: heads, tiles. Later tiles of a prompt see more keys and start first.
template <kv::KvType kType, int kDim>
__global__ __launch_bounds__(32 * kPrefillWarps, kDim > 128 ? 1 : 2) void PrefillKernel(
    const __grid_constant__ PrefillArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr bool kBytes = kType == kv::KvType::kI8;
  LetNextKernelStart();
  WaitForPreviousKernels();
  constexpr int kParts = kQueryTile / kBlockQueries;
  const int index = kParts * a.counts->prefill_items - 1 - static_cast<int>(blockIdx.y);
  if (index < 0) return;
  PrefillItem item = a.items[index / kParts];
  const int first_row = index % kParts * kBlockQueries;
  item.token += first_row;
  item.position += first_row;
  item.rows = min(item.rows - first_row, kBlockQueries);
  if (item.rows <= 0 || !IsWanted(a.wanted, item)) return;
  const int head = blockIdx.x, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
  const int seen_end = item.position + item.rows;
  const int first_seen = a.window == 0 ? 0 : max(0, item.position - a.window + 1);
  uint8_t* wide = shared + 2 * kTileBlocks * a.head_bytes;
  uint8_t* after = wide + (kBytes ? kTileBlocks * TileView<kDim>::kBlock : 0);
  KeyTiles tiles(a, item, head / a.group, seen_end, shared, reinterpret_cast<uint64_t*>(after));
  const int begin = first_seen / kKeyTile, end = (seen_end + kKeyTile - 1) / kKeyTile;
  tiles.Issue(begin);
  PrefillWarp<kType, kDim> rows;
  int position[2];
  AttendedRow to[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = 16 * warp + g + 8 * r;
    const size_t at = static_cast<size_t>(item.token + row) * a.num_heads + head;
    position[r] = item.position + row;
    rows.rows[r] = row < item.rows ? a.queries + at * kDim : nullptr;
    if (row < item.rows) to[r] = AttendedRow(a, at);
  }
  rows.KeepQueries();
  for (int tile = begin; tile < end; ++tile) {
    if (tile + 1 < end) {
      tiles.Issue(tile + 1);
    } else {
      tiles.IssueNothing();
    }
    tiles.Wait(tile);
    uint8_t* keys = tiles.stage(tile);
    const int first = tile * kKeyTile, count = min(kKeyTile, seen_end - first);
    if constexpr (kBytes) {
      WidenTile<kDim>(keys, a.head_bytes, count, wide);
      keys = wide;
      __syncthreads();
    } else if (count < kKeyTile) {
      ZeroValues<kDim>(keys, count);
      __syncthreads();
    }
    float s[8][4] = {};
    rows.Score(keys, s);
    const bool edge =
        first + kKeyTile - 1 > item.position || (a.window > 0 && first <= seen_end - 1 - a.window);
    if (edge) rows.Mask(first, position, a.window, s);
    rows.Weigh(s);
    rows.AddValues(keys, s);
    __syncthreads();
  }
  rows.Store(to, a.head_dim);
}

// Calls visit with the two kernels for `dim`, which is one of kv::kDeviceDims.
template <kv::KvType kType, typename Visit>
cudaError_t VisitPrefillKernels(int dim, const Visit& visit) {
  switch (dim) {
    case 16:
      return visit(WriteKernel<kType, 16>, PrefillKernel<kType, 16>);
    case 32:
      return visit(WriteKernel<kType, 32>, PrefillKernel<kType, 32>);
    case 64:
      return visit(WriteKernel<kType, 64>, PrefillKernel<kType, 64>);
    case 80:
      return visit(WriteKernel<kType, 80>, PrefillKernel<kType, 80>);
    case 96:
      return visit(WriteKernel<kType, 96>, PrefillKernel<kType, 96>);
    case 128:
      return visit(WriteKernel<kType, 128>, PrefillKernel<kType, 128>);
    case 256:
      return visit(WriteKernel<kType, 256>, PrefillKernel<kType, 256>);
  }
  return cudaErrorInvalidValue;
}

template <kv::KvType kType>
cudaError_t PreparePrefillOf(int dim, size_t shared_bytes) {
  return VisitPrefillKernels<kType>(dim, [&](auto write, auto attend) {
    const cudaError_t error = ReserveShared(write, 0);
    return error != cudaSuccess ? error : ReserveShared(attend, shared_bytes);
  });
}

template <kv::KvType kType>
cudaError_t LaunchWriteOf(int dim, const WriteArgs& write, int tokens, cudaStream_t stream) {
  return VisitPrefillKernels<kType>(dim, [&](auto kernel, auto) {
    return LaunchDependent(kernel, dim3(tokens), dim3(32 * kPrefillWarps), 0, stream, write);
  });
}

template <kv::KvType kType>
cudaError_t LaunchPrefillOf(int dim, const PrefillArgs& args, int tiles, size_t shared_bytes,
                            cudaStream_t stream) {
  return VisitPrefillKernels<kType>(dim, [&](auto, auto kernel) {
    const dim3 grid(args.num_heads, tiles * (kQueryTile / kBlockQueries));
    return LaunchDependent(kernel, grid, dim3(32 * kPrefillWarps), shared_bytes, stream, args);
  });
}

}  // namespace fewbit::cuda
