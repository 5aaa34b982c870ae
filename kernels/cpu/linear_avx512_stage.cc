// Staging of activations: permute strips, quantize each chunk to int8, order the bytes for the
// kernel that follows.
#include <immintrin.h>

#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu::avx512 {
namespace {

constexpr uint16_t kNoStrip = 0xFFFF;
constexpr int kStrip = 16;

// max|v| as bits: integers order magnitudes, and NaN lies above everything.
inline uint32_t MaxBits(const __m512* v, int count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  __m512i max = _mm512_setzero_si512();
  for (int i = 0; i < count; ++i) {
    max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v[i]), magnitude));
  }
  return _mm512_reduce_max_epu32(max);
}

struct ChunkScale {
  float inverse;  // 0: the chunk is staged as zeros
  float scale;
};

inline ChunkScale ScaleOf(uint32_t max_bits) {
  if (max_bits >= kInfBits) return {0.0f, __builtin_nanf("")};
  if (max_bits < kMinMagnitudeBits) return {0.0f, 0.0f};
  const float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(max_bits))));
  return {kMaxCode / max, max / kMaxCode};
}

// Four strips to 64 bytes in natural order. A scale of zero must not meet Inf or NaN.
inline __m512i Quantize4(const __m512* v, float inverse) {
  if (inverse == 0.0f) return _mm512_setzero_si512();
  const __m512 factor = _mm512_set1_ps(inverse);
  __m128i q[4];
  for (int i = 0; i < 4; ++i) {
    q[i] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[i], factor)));
  }
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(q[2]), q[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

inline void LoadStrips(const float* x, const uint16_t* strips, int count, __m512* v) {
  for (int s = 0; s < count; ++s) {
    v[s] = strips[s] == kNoStrip ? _mm512_setzero_ps()
                                 : _mm512_loadu_ps(x + static_cast<size_t>(strips[s]) * kStrip);
  }
}

// The sum of every dword's four bytes.
inline __m512i DwordSums(__m512i q) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), q);
}

// Bytes of a strip from natural order to dword t = [khi][e].
inline __m512i ToExpanded(__m512i q) {
  const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  return _mm512_shuffle_epi8(q, _mm512_broadcast_i32x4(order));
}

inline void StoreExpanded2(__m512i q0, __m512i q1, uint8_t* out) {
  _mm512_storeu_si512(out, ToExpanded(q0));
  _mm512_storeu_si512(out + 64, ToExpanded(q1));
  const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(DwordSums(q0), DwordSums(q1)));
  *reinterpret_cast<int32_t*>(out + kChunk2Codes) = -128 * sum;
}

// The kernel subtracts 15 per strip, or with zero-points 30 from codes biased by 30.
inline void StoreExpanded4(__m512i q, bool zero_points, uint8_t* out) {
  const __m512i ordered = ToExpanded(q);
  _mm512_storeu_si512(out, ordered);
  // Qwords [strip][t >> 1]: add the two dwords of each.
  const __m512i sums = DwordSums(ordered);
  const __m512i pairs = _mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32));
  const __m256i halves = _mm512_cvtepi64_epi32(pairs);
  const __m256i bias =
      zero_points ? halves : _mm256_add_epi32(halves, _mm256_shuffle_epi32(halves, 0xB1));
  const __m256i factor = _mm256_set1_epi32(zero_points ? -30 : -15);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kChunk4Codes),
                      _mm256_mullo_epi32(bias, factor));
}

// Dwords from [strip = 4u + 2h + l][khi][t >> 1] to [l][khi][u][h][t >> 1].
inline void StoreDirect2(__m512i q0, __m512i q1, bool zero_points, uint8_t* out) {
  const __m512i low = _mm512_setr_epi32(0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27);
  const __m512i four = _mm512_set1_epi32(4);
  const __m512i l0 = _mm512_permutex2var_epi32(q0, low, q1);
  const __m512i l1 = _mm512_permutex2var_epi32(q0, _mm512_add_epi32(low, four), q1);
  _mm512_storeu_si512(out, l0);
  _mm512_storeu_si512(out + 64, l1);
  const __m256i factor = _mm256_set1_epi32(zero_points ? -2 : -3);
  const __m512i sums[2] = {DwordSums(l0), DwordSums(l1)};
  for (int l = 0; l < 2; ++l) {
    const __m256i both_khi =
        _mm256_add_epi32(_mm512_castsi512_si256(sums[l]), _mm512_extracti64x4_epi64(sums[l], 1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kChunk2Codes + 32 * l),
                        _mm256_mullo_epi32(both_khi, factor));
  }
}

// Dwords from [strip = 2u + j][khi][t >> 1] to [khi][u][j][t >> 1].
inline void StoreDirect4(__m512i q, bool zero_points, uint8_t* out) {
  const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m512i ordered = _mm512_permutexvar_epi32(order, q);
  _mm512_storeu_si512(out, ordered);
  const __m512i sums = DwordSums(ordered);
  const __m256i both_khi =
      _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kChunk4Codes),
                      _mm256_mullo_epi32(both_khi, _mm256_set1_epi32(zero_points ? -2 : -15)));
}

void StageToken(const PackedView& w, const StageCall& call, int token) {
  const float* x = call.x + token * call.x_stride;
  uint8_t* record = call.activations + token * call.layout.token_stride;
  float* scales = reinterpret_cast<float*>(record + call.layout.scale_offset);
  const bool direct = call.tokens == 1;
  const uint16_t* strips = w.strip_order;
  __m512 v[8];
  for (int chunk = 0; chunk < w.chunks2; ++chunk, strips += 8) {
    LoadStrips(x, strips, 8, v);
    const ChunkScale s = ScaleOf(MaxBits(v, 8));
    scales[chunk] = s.scale * kHalfStep;
    const __m512i q0 = Quantize4(v, s.inverse), q1 = Quantize4(v + 4, s.inverse);
    uint8_t* out = record + static_cast<size_t>(chunk) * kChunk2Stride;
    if (direct) {
      StoreDirect2(q0, q1, w.zero_points, out);
    } else {
      StoreExpanded2(q0, q1, out);
    }
  }
  for (int chunk = 0; chunk < w.chunks4; ++chunk, strips += 4) {
    LoadStrips(x, strips, 4, v);
    const ChunkScale s = ScaleOf(MaxBits(v, 4));
    scales[w.chunks2 + chunk] = s.scale * kHalfStep;
    const __m512i q = Quantize4(v, s.inverse);
    uint8_t* out = record + call.layout.chunk4_offset + static_cast<size_t>(chunk) * kChunk4Stride;
    if (direct) {
      StoreDirect4(q, w.zero_points, out);
    } else {
      StoreExpanded4(q, w.zero_points, out);
    }
  }
}

}  // namespace

void StagePacked(const PackedView& w, const StageCall& call) {
  for (int t = call.token_begin; t < call.token_end; ++t) StageToken(w, call, t);
  if (call.layout.transposed_offset == 0) return;
  for (int begin = call.token_begin; begin < call.token_end;) {
    const int first = begin / kTransposeTokens * kTransposeTokens;
    const int group_end = first + kTransposeTokens;
    const int end = group_end < call.token_end ? group_end : call.token_end;
    StageTransposed(w, call, first, begin, end);
    begin = end;
  }
}

void StageInt8(const Int8View& w, const StageCall& call) {
  for (int t = call.token_begin; t < call.token_end; ++t) {
    const float* x = call.x + t * call.x_stride;
    uint8_t* record = call.activations + t * call.layout.token_stride;
    float* scales = reinterpret_cast<float*>(record + call.layout.scale_offset);
    int32_t* bias = reinterpret_cast<int32_t*>(record + call.layout.bias_offset);
    for (int b = 0; b < w.blocks; ++b) {
      __m512 v[8];
      for (int i = 0; i < 8; ++i) {
        const int at = b * kInt8Block + 16 * i, left = w.cols - at;
        const __mmask16 mask = left >= 16 ? 0xFFFF
                               : left > 0 ? static_cast<__mmask16>((1u << left) - 1u)
                                          : 0;
        v[i] = _mm512_maskz_loadu_ps(mask, x + at);
      }
      const ChunkScale s = ScaleOf(MaxBits(v, 8));
      const __m512i q0 = Quantize4(v, s.inverse), q1 = Quantize4(v + 4, s.inverse);
      _mm512_storeu_si512(record + b * kInt8Block, q0);
      _mm512_storeu_si512(record + b * kInt8Block + 64, q1);
      bias[b] = -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(DwordSums(q0), DwordSums(q1)));
      scales[b] = s.scale;
    }
  }
}

}  // namespace fewbit::cpu::avx512
