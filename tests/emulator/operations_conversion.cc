// PTX ISA, "Data Movement and Conversion Instructions: cvt".
#include <cmath>
#include <limits>

#include "tests/emulator/halves.h"
#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

// A rounded float as an integer: what does not fit becomes the nearest limit, NaN 0.
template <typename T>
T Clamp(double x) {
  if (std::isnan(x)) return 0;
  constexpr double kLow = static_cast<double>(std::numeric_limits<T>::min());
  constexpr double kEnd =
      2.0 * static_cast<double>(uint64_t{1} << (std::numeric_limits<T>::digits - 1));
  if (x <= kLow) return std::numeric_limits<T>::min();
  if (x >= kEnd) return std::numeric_limits<T>::max();
  return static_cast<T>(x);
}

// The smallest half that is not below x.
F16 ToF16Up(float x) {
  F16 nearest = ToF16(x);
  if (!(ToFloat(nearest) < x)) return nearest;
  if (nearest.bits == 0x8000) return {1};
  nearest.bits = static_cast<U16>(nearest.bits & 0x8000 ? nearest.bits - 1 : nearest.bits + 1);
  return nearest;
}

F32 Saturate(F32 x) { return std::isnan(x) ? 0.0f : std::fmin(std::fmax(x, 0.0f), 1.0f); }

constexpr auto kNearest = [](auto a) { return std::nearbyint(a); };

// The first source is the upper half.
template <typename Convert>
constexpr Operation Pair(Convert) {
  return Elementwise<U32, F32, F32>([](F32 high, F32 low) {
    return static_cast<U32>(Convert{}(high).bits) << 16 | Convert{}(low).bits;
  });
}

// Integers that are widened or narrowed: the source's own type says how.
constexpr NamedOperation kOperations[] = {
    {"cvt.u16.u8", Elementwise<U16, U8>(kSame)},
    {"cvt.s16.s8", Elementwise<S16, S8>(kSame)},
    {"cvt.s32.s8", Elementwise<S32, S8>(kSame)},
    {"cvt.u32.u8", Elementwise<U32, U8>(kSame)},
    {"cvt.u32.u16", Elementwise<U32, U16>(kSame)},
    {"cvt.s32.s16", Elementwise<S32, S16>(kSame)},
    {"cvt.u16.u32", Elementwise<U16, U32>(kSame)},
    {"cvt.s64.s32", Elementwise<S64, S32>(kSame)},
    {"cvt.u64.u32", Elementwise<U64, U32>(kSame)},
    {"cvt.u64.u16", Elementwise<U64, U16>(kSame)},
    {"cvt.s64.s16", Elementwise<S64, S16>(kSame)},
    {"cvt.u32.u64", Elementwise<U32, U64>(kSame)},
    {"cvt.u16.u64", Elementwise<U16, U64>(kSame)},
    {"cvt.rn.f32.s16", Elementwise<F32, S16>(kSame)},
    {"cvt.rn.f32.u16", Elementwise<F32, U16>(kSame)},
    {"cvt.rn.f32.s8", Elementwise<F32, S8>(kSame)},
    {"cvt.rn.f32.u8", Elementwise<F32, U8>(kSame)},
    {"cvt.rn.f32.s32", Elementwise<F32, S32>(kSame)},
    {"cvt.rn.f32.u32", Elementwise<F32, U32>(kSame)},
    {"cvt.rn.f32.s64", Elementwise<F32, S64>(kSame)},
    {"cvt.rn.f32.u64", Elementwise<F32, U64>(kSame)},
    {"cvt.rn.f64.s32", Elementwise<F64, S32>(kSame)},
    {"cvt.rn.f64.u32", Elementwise<F64, U32>(kSame)},
    {"cvt.rn.f64.s64", Elementwise<F64, S64>(kSame)},
    {"cvt.rn.f64.u64", Elementwise<F64, U64>(kSame)},
    {"cvt.rn.f32.f64", Elementwise<F32, F64>(kSame)},
    {"cvt.f64.f32", Elementwise<F64, F32>(kSame)},
    {"cvt.rni.s32.f32", Elementwise<S32, F32>([](F32 a) { return Clamp<S32>(std::nearbyint(a)); })},
    {"cvt.rzi.s32.f32", Elementwise<S32, F32>([](F32 a) { return Clamp<S32>(std::trunc(a)); })},
    {"cvt.rmi.s32.f32", Elementwise<S32, F32>([](F32 a) { return Clamp<S32>(std::floor(a)); })},
    {"cvt.rpi.s32.f32", Elementwise<S32, F32>([](F32 a) { return Clamp<S32>(std::ceil(a)); })},
    {"cvt.rzi.u32.f32", Elementwise<U32, F32>([](F32 a) { return Clamp<U32>(std::trunc(a)); })},
    {"cvt.rni.u32.f32", Elementwise<U32, F32>([](F32 a) { return Clamp<U32>(std::nearbyint(a)); })},
    {"cvt.rni.u64.f32", Elementwise<U64, F32>([](F32 a) { return Clamp<U64>(std::nearbyint(a)); })},
    {"cvt.rzi.u64.f64", Elementwise<U64, F64>([](F64 a) { return Clamp<U64>(std::trunc(a)); })},
    {"cvt.rzi.s64.f64", Elementwise<S64, F64>([](F64 a) { return Clamp<S64>(std::trunc(a)); })},
    {"cvt.rzi.s32.f64", Elementwise<S32, F64>([](F64 a) { return Clamp<S32>(std::trunc(a)); })},
    {"cvt.rni.s32.f64", Elementwise<S32, F64>([](F64 a) { return Clamp<S32>(std::nearbyint(a)); })},
    {"cvt.rni.f32.f32", Elementwise<F32, F32>(kNearest)},
    {"cvt.rni.f64.f64", Elementwise<F64, F64>(kNearest)},
    {"cvt.rzi.f32.f32", Elementwise<F32, F32>([](F32 a) { return std::trunc(a); })},
    {"cvt.rzi.f64.f64", Elementwise<F64, F64>([](F64 a) { return std::trunc(a); })},
    {"cvt.rmi.f32.f32", Elementwise<F32, F32>([](F32 a) { return std::floor(a); })},
    {"cvt.rpi.f32.f32", Elementwise<F32, F32>([](F32 a) { return std::ceil(a); })},
    {"cvt.rpi.f64.f64", Elementwise<F64, F64>([](F64 a) { return std::ceil(a); })},
    {"cvt.rmi.f64.f64", Elementwise<F64, F64>([](F64 a) { return std::floor(a); })},
    {"cvt.sat.f32.f32", Elementwise<F32, F32>([](F32 a) { return Saturate(a); })},
    {"cvt.f32.f16", Elementwise<F32, F16>([](F16 a) { return ToFloat(a); })},
    {"cvt.f32.bf16", Elementwise<F32, Bf16>([](Bf16 a) { return ToFloat(a); })},
    {"cvt.rn.f16.f32", Elementwise<F16, F32>([](F32 a) { return ToF16(a); })},
    {"cvt.rp.f16.f32", Elementwise<F16, F32>([](F32 a) { return ToF16Up(a); })},
    {"cvt.rn.bf16.f32", Elementwise<Bf16, F32>([](F32 a) { return ToBf16(a); })},
    {"cvt.rn.f16x2.f32", Pair([](F32 a) { return ToF16(a); })},
    {"cvt.rn.bf16x2.f32", Pair([](F32 a) { return ToBf16(a); })},
};

}  // namespace

std::span<const NamedOperation> ConversionOperations() { return kOperations; }

}  // namespace fewbit::emulator
