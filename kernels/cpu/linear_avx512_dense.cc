// Dense weights (f32, f16, bf16) times float activations. Lanes are channels modulo 16; each output
// has one accumulator vector of its own, whatever is computed beside it, and is reduced by the same
// tree.
#include <immintrin.h>

#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu::avx512 {
namespace {

constexpr int kLanes = 16;

template <DenseType kType>
inline __m512 Load(const void* data, size_t at, __mmask16 mask) {
  if constexpr (kType == DenseType::kF32) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + at);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + at);
    if constexpr (kType == DenseType::kF16) {
      return _mm512_cvtph_ps(half);
    } else {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
  }
}

// ((i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1)): the order of every dense path.
inline float Reduce(__m512 v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

// kRows x kTokens outputs; the weights of a row are `cols` apart.
template <DenseType kType, int kRows, int kTokens>
inline void Block(const DenseView& w, const LinearCall& call, int row, int token) {
  __m512 acc[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kTokens; ++n) acc[r][n] = _mm512_setzero_ps();
  }
  const size_t cols = w.cols, base = static_cast<size_t>(row) * cols;
  const float* x = call.x + token * call.x_stride;
  const auto step = [&](size_t c, __mmask16 mask) {
    __m512 weights[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) weights[r] = Load<kType>(w.data, base + r * cols + c, mask);
#pragma GCC unroll 4
    for (int n = 0; n < kTokens; ++n) {
      const __m512 xn = _mm512_maskz_loadu_ps(mask, x + n * call.x_stride + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][n] = _mm512_fmadd_ps(weights[r], xn, acc[r][n]);
    }
  };
  size_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) step(c, 0xFFFF);
  if (c < cols) step(c, static_cast<__mmask16>((1u << (cols - c)) - 1u));
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kTokens; ++n) {
      call.y[(token + n) * call.y_stride + row + r] = Reduce(acc[r][n]);
    }
  }
}

template <DenseType kType, int kRows>
inline void AllTokens(const DenseView& w, const LinearCall& call, int row) {
  int t = 0;
  for (; t + 4 <= call.tokens; t += 4) Block<kType, kRows, 4>(w, call, row, t);
  for (; t < call.tokens; ++t) Block<kType, kRows, 1>(w, call, row, t);
}

template <DenseType kType>
void Rows(const DenseView& w, const LinearCall& call) {
  int row = call.row_begin;
  for (; row + 4 <= call.row_end; row += 4) AllTokens<kType, 4>(w, call, row);
  for (; row < call.row_end; ++row) AllTokens<kType, 1>(w, call, row);
}

}  // namespace

void Dense(const DenseView& w, const LinearCall& call) {
  switch (w.type) {
    case DenseType::kF32:
      return Rows<DenseType::kF32>(w, call);
    case DenseType::kF16:
      return Rows<DenseType::kF16>(w, call);
    case DenseType::kBF16:
      return Rows<DenseType::kBF16>(w, call);
  }
}

}  // namespace fewbit::cpu::avx512
