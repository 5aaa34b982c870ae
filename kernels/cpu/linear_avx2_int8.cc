// 8-bit weights. vpmaddubsw wants one unsigned operand: |w| times x with w's sign, at most 2 x 128
// x 127, which fits 16 bits.
#include <immintrin.h>

#include "kernels/cpu/linear_avx2.h"

namespace fewbit::cpu::avx2 {
namespace {

constexpr int kRows = 8, kVector = 32;

inline __m256i Multiply(__m256i codes, __m256i x) {
  const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// The last `count` < 32 codes of a row; the staged x is zero behind them.
inline __m256i LoadTail(const uint8_t* p, size_t count) {
  alignas(32) uint8_t bytes[kVector] = {};
  __builtin_memcpy(bytes, p, count);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

// 8 vectors of partial sums to one sum per row.
inline __m256i Reduce(const __m256i* v) {
  const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                          _mm256_permute2x128_si256(a, b, 0x31));
}

// kRows rows (those from `rows` on repeat the last) of one token.
inline __m256 RowsOfToken(const Int8View& w, int row, int rows, const uint8_t* x,
                          const float* scales) {
  const uint8_t* codes[kRows];
  for (int r = 0; r < kRows; ++r) {
    codes[r] = w.codes + static_cast<size_t>(row + (r < rows ? r : rows - 1)) * w.cols;
  }
  __m256 acc = _mm256_setzero_ps();
  for (int b = 0; b < w.blocks; ++b) {
    const int begin = b * kInt8Block;
    const int end = w.cols - begin < kInt8Block ? w.cols : begin + kInt8Block;
    __m256i sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_si256();
    int c = begin;
    for (; c + kVector <= end; c += kVector) {
      const __m256i xs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + c));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes[r] + c));
        sums[r] = _mm256_add_epi32(sums[r], Multiply(v, xs));
      }
    }
    if (c < end) {
      const __m256i xs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + c));
      for (int r = 0; r < kRows; ++r) {
        const __m256i v = LoadTail(codes[r] + c, static_cast<size_t>(end - c));
        sums[r] = _mm256_add_epi32(sums[r], Multiply(v, xs));
      }
    }
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(Reduce(sums)), _mm256_set1_ps(scales[b]), acc);
  }
  return acc;
}

}  // namespace

void Int8(const Int8View& w, const LinearCall& call) {
  for (int row = call.row_begin; row < call.row_end; row += kRows) {
    const int left = call.row_end - row;
    const int rows = left < kRows ? left : kRows;
    for (int t = 0; t < call.tokens; ++t) {
      const uint8_t* record = call.activations + t * call.layout.token_stride;
      alignas(32) float sums[kRows];
      _mm256_store_ps(
          sums, RowsOfToken(w, row, rows, record,
                            reinterpret_cast<const float*>(record + call.layout.scale_offset)));
      float* y = call.y + t * call.y_stride + row;
      for (int r = 0; r < rows; ++r) y[r] = sums[r] * w.scales[row + r];
    }
  }
}

}  // namespace fewbit::cpu::avx2
