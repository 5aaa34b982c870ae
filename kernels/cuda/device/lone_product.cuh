// The product of one weight tile with one token: the integers of WholeTileProduct in fewer
// instructions. With one token, 6 of the 8 columns of mma.m16n8k32 are idle. Here the columns are
// the 4 strips of a quad times the two byte planes of x, and x is zero outside of a column's strip.
// So a lane gets the sums of its own (rows, strip), which it multiplies with the sub-scale: the
// codes go into the product unscaled. A code at the upper end of its byte, its first bit turned
// over and a one behind it, is the signed byte 64 (q - 1.5).
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/tile_product.cuh"

namespace fewbit::cuda {

// A lane's place in the products: lane = 4 * g + t.
struct LoneLane {
  int lane;
  bool mine;  // column g is one of strip t
  int x;      // where the lane's x lies in a quad
  uint32_t turned;

  __device__ __forceinline__ explicit LoneLane(int lane)
      : lane(lane), mine(lane / 8 == lane % 4), x(lane / 4 % 2 * kColumnBytes + 16 * (lane % 4)) {
    asm volatile("mov.u32 %0, 0xA0A0A0A0;" : "=r"(turned));
  }
  // 64 (q - 1.5) for the codes at bits 6-7: (codes & 0xC0..) ^ 0xA0... In one instruction, which
  // has room for one constant; the other one is kept in a register that the compiler does not know.
  __device__ __forceinline__ uint32_t Upper(uint32_t codes) const {
    uint32_t bytes;
    asm("lop3.b32 %0, %1, 0xC0C0C0C0, %2, 0x6A;" : "=r"(bytes) : "r"(codes), "r"(turned));
    return bytes;
  }
};

// c += a word of codes for each of the rows g and g + 8 times the lane's x.
__device__ __forceinline__ void LoneProduct(const LoneLane& l, uint32_t w0, uint32_t w1,
                                            const uint4& x, int (&c)[4]) {
  MmaS8S8(c, l.Upper(w0 << 6), l.Upper(w1 << 6), l.Upper(w0 << 4), l.Upper(w1 << 4), x.x, x.y);
  MmaS8S8(c, l.Upper(w0 << 2), l.Upper(w1 << 2), l.Upper(w0), l.Upper(w1), x.z, x.w);
}

// The lane's sums over its strips, of the bytes of x apart, so that they fit: rows g and g + 8.
struct LoneSums {
  int high[2] = {}, low[2] = {};

  __device__ __forceinline__ void Add(int high0, int low0, int high1, int low1, uint32_t scale0,
                                      uint32_t scale1) {
    high[0] += static_cast<int>(scale0) * high0;
    low[0] += static_cast<int>(scale0) * low0;
    high[1] += static_cast<int>(scale1) * high1;
    low[1] += static_cast<int>(scale1) * low1;
  }
  // In units of 1/4: `low` counts 64ths and is a multiple of 32.
  __device__ __forceinline__ int Total(int row) const { return 16 * high[row] + (low[row] >> 4); }
};

// The lane's x of a quad; in lanes that have none `x` is zero and stays so.
__device__ __forceinline__ void LoadLone(const LoneLane& l, const uint8_t* quad, uint4* x) {
  if (l.mine) *x = *reinterpret_cast<const uint4*>(quad);
}

template <int kBits>
__device__ __forceinline__ void LoneChunk(const ChunkWords<kBits, false>& w, const LoneLane& l,
                                          const uint8_t* quad, uint4 (&x)[2], LoneSums* sums) {
  LoadLone(l, quad, &x[0]);
  if constexpr (kBits == 2) {
    LoadLone(l, quad + QuadBytes(1), &x[1]);
    int c[2][4] = {};
    LoneProduct(l, w.codes.x, w.codes.y, x[0], c[0]);
    LoneProduct(l, w.codes.z, w.codes.w, x[1], c[1]);
    sums->Add(c[0][0], c[0][1], c[0][2], c[0][3], w.scales & 15, w.scales >> 4 & 15);
    sums->Add(c[1][0], c[1][1], c[1][2], c[1][3], w.scales >> 8 & 15, w.scales >> 12);
  } else {
    int c[2][4] = {};  // of the planes, the first one counts 4 times
    LoneProduct(l, w.codes.x, w.codes.y, x[0], c[0]);
    LoneProduct(l, w.codes.z, w.codes.w, x[0], c[1]);
    const auto both = [&](int i) { return 4 * c[0][i] + c[1][i]; };
    sums->Add(both(0), both(1), both(2), both(3), w.scales & 15, w.scales >> 4);
  }
}

// A whole tile of `chunks` chunks; `tile`, `d` and `loaded` as in WholeTileProduct, `x` the lane's
// place in the tile's first quad. The result is the tile's sum of row g in lanes with t = 0, of row
// g + 8 in those with t = 1.
template <int kBits, typename Loaded>
__device__ __forceinline__ int LoneTileProduct(const uint8_t* tile, int chunks, const LoneLane& l,
                                               const uint8_t* x, __half2* d, const Loaded& loaded) {
  constexpr int kRecord = RecordBytes(kBits, false), kChunkBytes = ChunkQuads(kBits) * QuadBytes(1);
  LoneSums sums;
  uint4 column[2] = {};
  *d = reinterpret_cast<const __half2*>(tile + chunks * kRecord)[l.lane / 4];
  const auto chunk = [&](int c, bool last) {
    ChunkWords<kBits, false> w;
    w.Load(tile + c * kRecord, l.lane);
    if (last) loaded(w.codes.x | w.scales | reinterpret_cast<const uint32_t&>(*d));
    LoneChunk<kBits>(w, l, x + c * kChunkBytes, column, &sums);
  };
  if (chunks == quant::kTileChunks) {  // nearly every tile
#pragma unroll
    for (int c = 0; c < quant::kTileChunks; ++c) chunk(c, c + 1 == quant::kTileChunks);
  } else {
#pragma unroll 1
    for (int c = 0; c < chunks; ++c) chunk(c, c + 1 == chunks);
  }
  const bool second = l.lane % 2 != 0;
  const int row0 = sums.Total(0), row1 = sums.Total(1);
  const int total = (second ? row1 : row0) + __shfl_xor_sync(0xFFFFFFFFu, second ? row0 : row1, 1);
  return total + __shfl_xor_sync(0xFFFFFFFFu, total, 2);
}

}  // namespace fewbit::cuda
