// The operations of ops.h in plain C++: a vector of 16 is an array, and the compiler does with it
// what it can.
#include "kernels/cpu/ops_table.h"

namespace fewbit::cpu {
namespace {

struct Vec {
  float lane[16];
};

constexpr int kScoreRows = 4;
constexpr int kScoreBlocks = 1;
constexpr int kValueRows = 4;
constexpr int kValueCols = 1;

// Fills every lane from its index.
template <typename Fn>
inline Vec Lanes(Fn fn) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = fn(i);
  return v;
}

inline uint32_t FloatBits(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float BitsFloat(uint32_t x) { return __builtin_bit_cast(float, x); }

inline float WidenHalf(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  if (magnitude >= 0x7C00) return BitsFloat(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  // Exact also for subnormal halves: the product only moves the exponent.
  return BitsFloat(sign | FloatBits(BitsFloat(magnitude << 13) * 0x1p112f));
}

inline uint16_t NarrowToHalf(float x) {
  const uint32_t bits = FloatBits(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7E00;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;
  if (magnitude < 0x38800000) {
    // Below the smallest normal half: adding 0.5 lets the float adder do the rounding.
    const float shifted = BitsFloat(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (FloatBits(shifted) - FloatBits(0.5f)));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

inline Vec Zero() {
  return Lanes([](int) { return 0.0f; });
}
inline Vec Set(float x) {
  return Lanes([=](int) { return x; });
}
inline Vec Load(const float* p) {
  return Lanes([=](int i) { return p[i]; });
}
inline Vec LoadFirst(const float* p, int n) {
  return Lanes([=](int i) { return i < n ? p[i] : 0.0f; });
}
inline void Store(float* p, const Vec& v) {
  for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
}
inline void StoreFirst(float* p, const Vec& v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v.lane[i];
}
inline Vec LoadHalf(const uint16_t* p) {
  return Lanes([=](int i) { return WidenHalf(p[i]); });
}
inline void StoreHalf(uint16_t* p, const Vec& v) {
  for (int i = 0; i < 16; ++i) p[i] = NarrowToHalf(v.lane[i]);
}
inline Vec Add(const Vec& a, const Vec& b) {
  return Lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec Sub(const Vec& a, const Vec& b) {
  return Lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec Mul(const Vec& a, const Vec& b) {
  return Lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec Div(const Vec& a, const Vec& b) {
  return Lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec Fma(const Vec& a, const Vec& b, const Vec& c) {
  return Lanes([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
inline Vec Max(const Vec& a, const Vec& b) {
  return Lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec Min(const Vec& a, const Vec& b) {
  return Lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec Keep(const Vec& v, uint32_t bits, float fill) {
  return Lanes([&](int i) { return bits >> i & 1 ? v.lane[i] : fill; });
}
inline uint32_t BitsEqual(const Vec& a, const Vec& b) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<uint32_t>(a.lane[i] == b.lane[i]) << i;
  return bits;
}
inline Vec ZeroBelow(const Vec& v, const Vec& x, const Vec& limit) {
  return Lanes([&](int i) { return x.lane[i] < limit.lane[i] ? 0.0f : v.lane[i]; });
}
inline Vec PowerOfTwo(const Vec& magic) {
  return Lanes([&](int i) { return BitsFloat((FloatBits(magic.lane[i]) << 23) + 0x3F800000); });
}
inline float FoldSum(Vec v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v.lane[i] += v.lane[i + half];
  }
  return v.lane[0];
}
inline float FoldMax(const Vec& v) {
  float max = v.lane[0];
  for (int i = 1; i < 16; ++i) max = max > v.lane[i] ? max : v.lane[i];
  return max;
}

#include "kernels/cpu/ops_attention_body.h"
#include "kernels/cpu/ops_rows_body.h"

}  // namespace

const OpsTable kPortableOps = FEWBIT_OPS_TABLE;

}  // namespace fewbit::cpu
