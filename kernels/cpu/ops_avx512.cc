// The operations of ops.h for AVX-512 (F, BW, VL, DQ): a vector of 16 is one register.
#include <immintrin.h>

#include "kernels/cpu/ops_table.h"

namespace fewbit::cpu {
namespace {

using Vec = __m512;

constexpr int kScoreRows = 8;    // query rows whose scores are computed together
constexpr int kScoreBlocks = 2;  // and blocks of keys, when there are that many rows
constexpr int kValueRows = 4;
constexpr int kValueCols = 4;  // vectors of a value row

inline Vec Zero() { return _mm512_setzero_ps(); }
inline Vec Set(float x) { return _mm512_set1_ps(x); }
inline Vec Load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec LoadFirst(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void StoreFirst(float* p, Vec v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
inline Vec LoadHalf(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void StoreHalf(uint16_t* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// a > b ? a : b, so b when either is NaN.
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
// Keeps the lanes whose bit is set, fills the others.
inline Vec Keep(Vec v, uint32_t bits, float fill) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), Set(fill), v);
}
inline uint32_t BitsEqual(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
// v where !(x < limit), else 0.
inline Vec ZeroBelow(Vec v, Vec x, Vec limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}
// 2^n where `magic` = n + 1.5 * 2^23 in float.
inline Vec PowerOfTwo(Vec magic) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(magic), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3F800000)));
}
inline float FoldSum(Vec v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float FoldMax(Vec v) { return _mm512_reduce_max_ps(v); }

#include "kernels/cpu/ops_attention_body.h"
#include "kernels/cpu/ops_rows_body.h"

}  // namespace

const OpsTable kAvx512Ops = FEWBIT_OPS_TABLE;

}  // namespace fewbit::cpu
