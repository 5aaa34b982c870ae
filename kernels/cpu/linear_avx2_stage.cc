// Staging of activations: permute strips, quantize each chunk to int8, order the bytes for the
// kernels.
#include <immintrin.h>

#include "kernels/cpu/linear_avx2.h"

namespace fewbit::cpu::avx2 {
namespace {

constexpr uint16_t kNoStrip = 0xFFFF;
constexpr int kStrip = 16;

inline uint32_t ReduceMax(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4E));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xB1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

// max|v| as bits: integers order magnitudes, and NaN lies above everything.
inline uint32_t MaxBits(const __m256* v, int count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i max = _mm256_setzero_si256();
  for (int i = 0; i < count; ++i) {
    max = _mm256_max_epu32(max, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
  }
  return ReduceMax(max);
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

// One strip, two vectors of floats, to 16 bytes in natural order.
inline __m128i QuantizeStrip(const __m256* v, float inverse) {
  if (inverse == 0.0f) return _mm_setzero_si128();
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(v[0], factor));
  const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(v[1], factor));
  const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  return _mm_packs_epi16(low, high);
}

inline void LoadStrip(const float* x, uint16_t strip, __m256* v) {
  if (strip == kNoStrip) {
    v[0] = v[1] = _mm256_setzero_ps();
    return;
  }
  v[0] = _mm256_loadu_ps(x + static_cast<size_t>(strip) * kStrip);
  v[1] = _mm256_loadu_ps(x + static_cast<size_t>(strip) * kStrip + 8);
}

// Words [strip 0..3][t], one khi, to [t: 0 2 1 3][strip].
inline __m256i Interleave(__m128i s01, __m128i s23) {
  const __m128i t01 = _mm_unpacklo_epi32(s01, s23), t23 = _mm_unpackhi_epi32(s01, s23);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi64(t01, t23)),
                                 _mm_unpackhi_epi64(t01, t23), 1);
}

// Four strips that share a bit field: 32 bytes for khi = 0, 32 for khi = 1, and 16 sums of both
// times `factor`.
inline void StoreQuad(const __m128i* s, int step, int factor, uint8_t* out, uint8_t* sums) {
  const __m256i k0 =
      Interleave(_mm_unpacklo_epi16(s[0], s[step]), _mm_unpacklo_epi16(s[2 * step], s[3 * step]));
  const __m256i k1 =
      Interleave(_mm_unpackhi_epi16(s[0], s[step]), _mm_unpackhi_epi16(s[2 * step], s[3 * step]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), k0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), k1);
  const __m256i ones = _mm256_set1_epi8(1);
  const __m256i pairs =
      _mm256_add_epi16(_mm256_maddubs_epi16(ones, k0), _mm256_maddubs_epi16(ones, k1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums),
                      _mm256_mullo_epi16(pairs, _mm256_set1_epi16(static_cast<int16_t>(factor))));
}

void StageToken(const PackedView& w, const StageCall& call, int token) {
  const float* x = call.x + token * call.x_stride;
  uint8_t* record = call.activations + token * call.layout.token_stride;
  float* scales = reinterpret_cast<float*>(record + call.layout.scale_offset);
  const uint16_t* strips = w.strip_order;
  __m256 v[16];
  __m128i q[8];
  for (int chunk = 0; chunk < w.chunks2; ++chunk, strips += 8) {
    for (int s = 0; s < 8; ++s) LoadStrip(x, strips[s], v + 2 * s);
    const ChunkScale scale = ScaleOf(MaxBits(v, 16));
    scales[chunk] = scale.scale * kHalfStep;
    for (int s = 0; s < 8; ++s) q[s] = QuantizeStrip(v + 2 * s, scale.inverse);
    uint8_t* out = record + static_cast<size_t>(chunk) * kChunk2Stride;
    const int factor = w.zero_points ? -2 : -3;
    StoreQuad(q, 2, factor, out, out + kChunk2Codes);
    StoreQuad(q + 1, 2, factor, out + 64, out + kChunk2Codes + 32);
  }
  for (int chunk = 0; chunk < w.chunks4; ++chunk, strips += 4) {
    for (int s = 0; s < 4; ++s) LoadStrip(x, strips[s], v + 2 * s);
    const ChunkScale scale = ScaleOf(MaxBits(v, 8));
    scales[w.chunks2 + chunk] = scale.scale * kHalfStep;
    for (int s = 0; s < 4; ++s) q[s] = QuantizeStrip(v + 2 * s, scale.inverse);
    uint8_t* out = record + call.layout.chunk4_offset + static_cast<size_t>(chunk) * kChunk4Stride;
    StoreQuad(q, 1, w.zero_points ? -2 : -15, out, out + kChunk4Codes);
  }
}

}  // namespace

void StagePacked(const PackedView& w, const StageCall& call) {
  for (int t = call.token_begin; t < call.token_end; ++t) StageToken(w, call, t);
}

void StageInt8(const Int8View& w, const StageCall& call) {
  for (int t = call.token_begin; t < call.token_end; ++t) {
    const float* x = call.x + t * call.x_stride;
    uint8_t* record = call.activations + t * call.layout.token_stride;
    float* scales = reinterpret_cast<float*>(record + call.layout.scale_offset);
    for (int b = 0; b < w.blocks; ++b) {
      alignas(32) float values[kInt8Block] = {};
      const int begin = b * kInt8Block;
      const int count = w.cols - begin < kInt8Block ? w.cols - begin : kInt8Block;
      __builtin_memcpy(values, x + begin, static_cast<size_t>(count) * sizeof(float));
      __m256 v[16];
      for (int i = 0; i < 16; ++i) v[i] = _mm256_load_ps(values + 8 * i);
      const ChunkScale scale = ScaleOf(MaxBits(v, 16));
      scales[b] = scale.scale;
      for (int s = 0; s < 8; ++s) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(record + begin + 16 * s),
                         QuantizeStrip(v + 2 * s, scale.inverse));
      }
    }
  }
}

}  // namespace fewbit::cpu::avx2
