// The operations of ops.h for AVX2 with FMA and F16C: a vector of 16 is two registers.
#include <immintrin.h>

#include "kernels/cpu/ops_table.h"

namespace fewbit::cpu {
namespace {

struct Vec {
  __m256 lo, hi;
};

constexpr int kScoreRows = 4;
constexpr int kScoreBlocks = 1;
constexpr int kValueRows = 4;
constexpr int kValueCols = 1;

inline Vec Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline Vec LoadFirst(const float* p, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return Load(lanes);
}
inline void StoreFirst(float* p, Vec v, int n) {
  float lanes[16];
  Store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
inline Vec LoadHalf(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void StoreHalf(uint16_t* p, Vec v) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.lo, kRound));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.hi, kRound));
}
inline Vec Add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec Sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec Div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec Fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
// a > b ? a : b, so b when either is NaN.
inline Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec Min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
// Keeps the lanes whose bit is set, fills the others.
inline Vec Keep(Vec v, uint32_t bits, float fill) {
  const __m256i one = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i word = _mm256_set1_epi32(static_cast<int>(bits));
  const __m256i high = _mm256_slli_epi32(one, 8);
  const __m256i keep_lo = _mm256_cmpeq_epi32(_mm256_and_si256(word, one), one);
  const __m256i keep_hi = _mm256_cmpeq_epi32(_mm256_and_si256(word, high), high);
  const __m256 other = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(other, v.lo, _mm256_castsi256_ps(keep_lo)),
          _mm256_blendv_ps(other, v.hi, _mm256_castsi256_ps(keep_hi))};
}
inline uint32_t BitsEqual(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ))) << 8;
}
// v where !(x < limit), else 0.
inline Vec ZeroBelow(Vec v, Vec x, Vec limit) {
  return {_mm256_and_ps(v.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_NLT_UQ)),
          _mm256_and_ps(v.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_NLT_UQ))};
}
// 2^n where `magic` = n + 1.5 * 2^23 in float.
inline __m256 HalfPowerOfTwo(__m256 magic) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(magic), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3F800000)));
}
inline Vec PowerOfTwo(Vec magic) { return {HalfPowerOfTwo(magic.lo), HalfPowerOfTwo(magic.hi)}; }
inline float FoldSum(Vec v) {
  const __m256 a = _mm256_add_ps(v.lo, v.hi);
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float FoldMax(Vec v) {
  const __m256 a = _mm256_max_ps(v.lo, v.hi);
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

#include "kernels/cpu/ops_attention_body.h"
#include "kernels/cpu/ops_rows_body.h"

}  // namespace

const OpsTable kAvx2Ops = FEWBIT_OPS_TABLE;

}  // namespace fewbit::cpu
