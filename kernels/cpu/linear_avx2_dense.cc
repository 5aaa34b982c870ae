// Dense weights (f32, f16, bf16) times float activations: the same 16 lanes, fused multiply-adds
// and reduction as the AVX-512 file, in two vectors of 8, so the results are the same bits.
#include <immintrin.h>

#include "kernels/cpu/linear_avx2.h"

namespace fewbit::cpu::avx2 {
namespace {

constexpr int kLanes = 16;

struct Lanes {
  __m256 low, high;
};

inline Lanes LoadFloats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

template <DenseType kType>
inline Lanes LoadWeights(const void* data) {
  if constexpr (kType == DenseType::kF32) {
    return LoadFloats(static_cast<const float*>(data));
  } else {
    const __m128i* p = static_cast<const __m128i*>(data);
    const __m128i a = _mm_loadu_si128(p), b = _mm_loadu_si128(p + 1);
    if constexpr (kType == DenseType::kF16) {
      return {_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)};
    } else {
      return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)),
              _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16))};
    }
  }
}

// ((i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1)): the order of every dense path.
inline float Reduce(const Lanes& v) {
  const __m256 a = _mm256_add_ps(v.low, v.high);
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

template <DenseType kType, int kRows, int kTokens>
inline void Block(const DenseView& w, const LinearCall& call, int row, int token) {
  constexpr size_t kSize = kType == DenseType::kF32 ? 4 : 2;
  Lanes acc[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kTokens; ++n) acc[r][n] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  }
  const size_t cols = w.cols;
  const uint8_t* weights = static_cast<const uint8_t*>(w.data) + row * cols * kSize;
  const float* x = call.x + token * call.x_stride;
  const auto step = [&](const uint8_t* wp, size_t row_bytes, const float* xp, size_t x_stride) {
    Lanes rows[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) rows[r] = LoadWeights<kType>(wp + r * row_bytes);
#pragma GCC unroll 2
    for (int n = 0; n < kTokens; ++n) {
      const Lanes xs = LoadFloats(xp + n * x_stride);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[r][n].low = _mm256_fmadd_ps(rows[r].low, xs.low, acc[r][n].low);
        acc[r][n].high = _mm256_fmadd_ps(rows[r].high, xs.high, acc[r][n].high);
      }
    }
  };
  size_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    step(weights + c * kSize, cols * kSize, x + c, call.x_stride);
  }
  if (c < cols) {  // the rest, padded with zeros so that no load passes an end
    uint8_t tail[kRows][kLanes * kSize] = {};
    float tail_x[kTokens][kLanes] = {};
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(tail[r], weights + (r * cols + c) * kSize, (cols - c) * kSize);
    }
    for (int n = 0; n < kTokens; ++n) {
      __builtin_memcpy(tail_x[n], x + n * call.x_stride + c, (cols - c) * sizeof(float));
    }
    step(tail[0], kLanes * kSize, tail_x[0], kLanes);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kTokens; ++n) {
      call.y[(token + n) * call.y_stride + row + r] = Reduce(acc[r][n]);
    }
  }
}

template <DenseType kType>
void Rows(const DenseView& w, const LinearCall& call) {
  int row = call.row_begin;
  for (; row + 4 <= call.row_end; row += 4) {
    int t = 0;
    for (; t + 2 <= call.tokens; t += 2) {
      Block<kType, 2, 2>(w, call, row, t);
      Block<kType, 2, 2>(w, call, row + 2, t);
    }
    if (t < call.tokens) Block<kType, 4, 1>(w, call, row, t);
  }
  for (; row < call.row_end; ++row) {
    for (int t = 0; t < call.tokens; ++t) Block<kType, 1, 1>(w, call, row, t);
  }
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

}  // namespace fewbit::cpu::avx2
