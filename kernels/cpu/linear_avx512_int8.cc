// 8-bit weights: unsigned codes times signed activations by vpdpbusd, each sum started from -128 *
// sum(x) of its block.
//
// Few tokens: lanes along the channels, 16 rows at a time, reduced per block of 128 channels. Many
// tokens: a block of 16 rows is transposed to rows in lanes once, and every token takes broadcast
// dwords.
#include <immintrin.h>

#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu::avx512 {
namespace {

constexpr int kRows = 16;
constexpr int kDirectTokens = 2;  // up to here reducing beats transposing
constexpr int kGroup = 8;
constexpr size_t kPrefetchCols = 2048;
constexpr int kVectors = kInt8Block / 4;

// Up to 16 rows, with what is needed to stay inside of them.
struct RowBlock {
  const uint8_t* codes;
  size_t cols;
  int rows;
};

// 64 codes of each of 16 rows; rows and columns that do not exist read as 0.
inline void LoadRows(const RowBlock& block, size_t column, __m512i* v) {
  const size_t left = block.cols > column ? block.cols - column : 0;
  const __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1ull;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    v[r] = _mm512_maskz_loadu_epi8(r < block.rows ? mask : 0,
                                   block.codes + (r < block.rows ? r : 0) * block.cols + column);
  }
}

// The same place of the next 16 rows, for rows so long that the hardware prefetcher loses 16
// streams. Beyond the end of the matrix it is harmless.
inline void PrefetchNextRows(const RowBlock& block, size_t column) {
  if (block.cols < kPrefetchCols) return;
  const uintptr_t next = reinterpret_cast<uintptr_t>(block.codes) + kRows * block.cols + column;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm_prefetch(reinterpret_cast<const char*>(next + r * block.cols), _MM_HINT_T1);
  }
}

// One sum per row from 16 vectors of partial sums.
inline __m512i Reduce16(const __m512i* v) {
  __m512i a[8], b[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                            _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // each 128-bit lane: rows 4i .. 4i + 3
    b[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]),
                            _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
  }
  const __m512i c0 = _mm512_add_epi32(_mm512_shuffle_i32x4(b[0], b[1], 0x88),
                                      _mm512_shuffle_i32x4(b[0], b[1], 0xDD));
  const __m512i c1 = _mm512_add_epi32(_mm512_shuffle_i32x4(b[2], b[3], 0x88),
                                      _mm512_shuffle_i32x4(b[2], b[3], 0xDD));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(c0, c1, 0x88), _mm512_shuffle_i32x4(c0, c1, 0xDD));
}

// [16 rows, 16 dwords] to [16 dwords, 16 rows].
inline void Transpose16(const __m512i* v, uint8_t* out) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i even01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
    const __m512i even23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xDD);
    const __m512i odd23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xDD);
    _mm512_store_si512(out + 64 * j, _mm512_shuffle_i32x4(even01, even23, 0x88));
    _mm512_store_si512(out + 64 * (4 + j), _mm512_shuffle_i32x4(odd01, odd23, 0x88));
    _mm512_store_si512(out + 64 * (8 + j), _mm512_shuffle_i32x4(even01, even23, 0xDD));
    _mm512_store_si512(out + 64 * (12 + j), _mm512_shuffle_i32x4(odd01, odd23, 0xDD));
  }
}

inline __m512 DirectToken(const RowBlock& block, int blocks, const uint8_t* x, const int32_t* bias,
                          const float* scales) {
  __m512 acc = _mm512_setzero_ps();
  for (int b = 0; b < blocks; ++b) {
    __m512i codes[kRows], sums[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_si512();
    for (int half = 0; half < 2; ++half) {
      const int column = b * kInt8Block + 64 * half;
      const __m512i xs = _mm512_loadu_si512(x + column);
      PrefetchNextRows(block, column);
      LoadRows(block, column, codes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r] = _mm512_dpbusd_epi32(sums[r], codes[r], xs);
    }
    const __m512i sum = _mm512_add_epi32(Reduce16(sums), _mm512_set1_epi32(bias[b]));
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scales[b]), acc);
  }
  return acc;
}

struct TokenRecords {
  const uint8_t* x;      // of the block
  const uint8_t* bias;   // int32
  const uint8_t* scale;  // float
  size_t stride;
};

template <int kTokens>
inline void ExpandedTokens(const uint8_t* weights, const TokenRecords& in, bool first,
                           __mmask16 mask, float* y, size_t y_stride) {
  constexpr int kChains = kTokens >= 8 ? 1 : kTokens >= 4 ? 2 : 4;  // covers the latency
  __m512i chains[kChains][kTokens];
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) {
    chains[0][n] = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(in.bias + n * in.stride));
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) chains[c][n] = _mm512_setzero_si512();
  }
  for (int v = 0; v < kVectors; v += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i weight = _mm512_load_si512(weights + 64 * (v + i));
#pragma GCC unroll 8
      for (int n = 0; n < kTokens; ++n) {
        int32_t word;
        __builtin_memcpy(&word, in.x + n * in.stride + 4 * (v + i), sizeof(word));
        __m512i* sum = &chains[i % kChains][n];
        *sum = _mm512_dpbusd_epi32(*sum, weight, _mm512_set1_epi32(word));
      }
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) {
    const __m512 scale = _mm512_set1_ps(*reinterpret_cast<const float*>(in.scale + n * in.stride));
    __m512i sum = chains[0][n];
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) sum = _mm512_add_epi32(sum, chains[c][n]);
    const __m512 acc = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, y + n * y_stride);
    _mm512_mask_storeu_ps(y + n * y_stride, mask,
                          _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, acc));
  }
}

inline TokenRecords Advance(TokenRecords in, int tokens) {
  in.x += tokens * in.stride;
  in.bias += tokens * in.stride;
  in.scale += tokens * in.stride;
  return in;
}

void ExpandedBlock(const RowBlock& block, int b, const LinearCall& call, __mmask16 mask, float* y) {
  alignas(64) uint8_t weights[kVectors * 64];
  __m512i codes[kRows];
  for (int half = 0; half < 2; ++half) {
    PrefetchNextRows(block, b * kInt8Block + 64 * half);
    LoadRows(block, b * kInt8Block + 64 * half, codes);
    Transpose16(codes, weights + half * 16 * 64);
  }
  TokenRecords in = {call.activations + b * kInt8Block,
                     call.activations + call.layout.bias_offset + b * sizeof(int32_t),
                     call.activations + call.layout.scale_offset + b * sizeof(float),
                     call.layout.token_stride};
  const size_t stride = call.y_stride;
  int left = call.tokens;
  for (; left >= kGroup; left -= kGroup, y += kGroup * stride, in = Advance(in, kGroup)) {
    ExpandedTokens<kGroup>(weights, in, b == 0, mask, y, stride);
  }
  for (; left >= 4; left -= 4, y += 4 * stride, in = Advance(in, 4)) {
    ExpandedTokens<4>(weights, in, b == 0, mask, y, stride);
  }
  for (; left >= 2; left -= 2, y += 2 * stride, in = Advance(in, 2)) {
    ExpandedTokens<2>(weights, in, b == 0, mask, y, stride);
  }
  for (; left > 0; --left, y += stride, in = Advance(in, 1)) {
    ExpandedTokens<1>(weights, in, b == 0, mask, y, stride);
  }
}

}  // namespace

void Int8(const Int8View& w, const LinearCall& call) {
  for (int row = call.row_begin; row < call.row_end; row += kRows) {
    const int left = call.row_end - row;
    const int rows = left < kRows ? left : kRows;
    const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1u);
    const RowBlock block = {w.codes + static_cast<size_t>(row) * w.cols,
                            static_cast<size_t>(w.cols), rows};
    const __m512 row_scales = _mm512_maskz_loadu_ps(mask, w.scales + row);
    float* y = call.y + row;
    if (call.tokens > kDirectTokens) {
      for (int b = 0; b < w.blocks; ++b) ExpandedBlock(block, b, call, mask, y);
    }
    for (int t = 0; t < call.tokens; ++t, y += call.y_stride) {
      __m512 acc;
      if (call.tokens > kDirectTokens) {
        acc = _mm512_maskz_loadu_ps(mask, y);
      } else {
        const uint8_t* record = call.activations + t * call.layout.token_stride;
        acc = DirectToken(block, w.blocks, record,
                          reinterpret_cast<const int32_t*>(record + call.layout.bias_offset),
                          reinterpret_cast<const float*>(record + call.layout.scale_offset));
      }
      _mm512_mask_storeu_ps(y, mask, _mm512_mul_ps(acc, row_scales));
    }
  }
}

}  // namespace fewbit::cpu::avx512
