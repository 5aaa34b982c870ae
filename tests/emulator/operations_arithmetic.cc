// Numbers in registers: PTX ISA, "Integer Arithmetic", "Floating Point", "Half Precision",
// "Comparison and Selection", "Logic and Shift" and mov.
#include <cfenv>
#include <cmath>
#include <limits>

#include "tests/emulator/halves.h"
#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

template <typename T>
T Min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T Max(T a, T b) {
  return a < b ? b : a;
}
// A NaN is dropped if the other is a number.
float Min(float a, float b) { return std::fmin(a, b); }
float Max(float a, float b) { return std::fmax(a, b); }

// Shifts by the width and more leave nothing, or signs.
template <typename T>
T ShiftLeft(T a, U32 by) {
  return by >= sizeof(T) * 8 ? T{0} : static_cast<T>(a << by);
}
template <typename T>
T ShiftRight(T a, U32 by) {
  constexpr U32 kWidth = sizeof(T) * 8;
  return by < kWidth ? static_cast<T>(a >> by) : static_cast<T>(a < 0 ? -1 : 0);
}

template <typename T>
T InsertBits(T field, T base, U32 position, U32 bits) {
  constexpr U32 kWidth = sizeof(T) * 8;
  position &= 0xff;
  bits &= 0xff;
  if (position >= kWidth || bits == 0) return base;
  const T ones = bits >= kWidth ? ~T{0} : (T{1} << bits) - 1;
  return (base & ~(ones << position)) | ((field & ones) << position);
}

U32 Permute(U32 a, U32 b, U32 selector) {
  const U64 bytes = static_cast<U64>(b) << 32 | a;
  U32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const U32 nibble = selector >> (4 * i);
    U32 byte = static_cast<U32>(bytes >> (8 * (nibble & 7))) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

U32 Logic3(U32 a, U32 b, U32 c, U32 table) {
  U32 result = 0;
  for (U32 i = 0; i < 8; ++i) {
    if ((table >> i & 1) == 0) continue;
    result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}

U32 ReverseBits(U32 x) {
  U32 result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
  return result;
}

// How far left the highest one can be shifted; all ones if there is none.
U32 HighestOneShift(U32 x) { return x == 0 ? kAllLanes : static_cast<U32>(std::countl_zero(x)); }

float MultiplyAddDown(float a, float b, float c) {
  const int mode = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float x = a, y = b, z = c;
  const volatile float result = std::fma(x, y, z);
  std::fesetround(mode);
  return result;
}

float FlushSubnormal(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// Division by zero is all ones on the device.
template <typename T>
T Divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::numeric_limits<T>::is_signed && b == static_cast<T>(-1)) return static_cast<T>(T{0} - a);
  return a / b;
}
template <typename T>
T Remainder(T a, T b) {
  if (b == 0) return a;
  if (std::numeric_limits<T>::is_signed && b == static_cast<T>(-1)) return 0;
  return a % b;
}

// Two halves in a cell.
template <typename F>
U32 Halves(F f) {
  U32 result = 0;
  for (int i = 0; i < 2; ++i)
    result |= static_cast<U32>(ToF16(RoundToOdd(f(16 * i))).bits) << 16 * i;
  return result;
}
double Half(U32 cell, int shift) { return ToFloat(F16{static_cast<U16>(cell >> shift)}); }

template <typename T>
Flow Select(Warp& warp, const Instruction& in, uint32_t lanes) {
  const CellOf<T>* a = Source<T>(std::as_const(warp), warp.operand(in, 1));
  const CellOf<T>* b = Source<T>(std::as_const(warp), warp.operand(in, 2));
  const uint32_t first = warp.Predicate(warp.operand(in, 3));
  CellOf<T>* to = Target<T>(warp, warp.operand(in, 0));
  ForLanes(lanes, [&](int lane) { to[lane] = first >> lane & 1 ? a[lane] : b[lane]; });
  return Flow::kNext;
}

template <typename F>
constexpr Operation PredicateOperation(F, int sources) {
  const Handler handler = [](Warp& warp, const Instruction& in, uint32_t lanes) {
    const uint32_t a = warp.Predicate(warp.operand(in, 1));
    const uint32_t b = in.operand_count > 2 ? warp.Predicate(warp.operand(in, 2)) : 0;
    warp.SetPredicate(warp.operand(in, 0), lanes, F{}(a, b));
    return Flow::kNext;
  };
  return {handler, sources + 1};
}

// mov of one value, or between a value and its parts, which fill it.
template <typename Whole>
Flow Move(Warp& warp, const Instruction& in, uint32_t lanes) {
  const int parts = in.operand_count - 1;
  const int bits = static_cast<int>(sizeof(Whole)) * 8 / parts;
  const Whole ones = parts == 1 ? ~Whole{0} : (Whole{1} << bits) - 1;
  if (in.first_group == 1) {
    std::array<Whole, kWarpLanes> whole = {};
    for (int i = 0; i < parts; ++i) {
      const Operand& o = warp.operand(in, 1 + i);
      ForLanes(lanes, [&](int lane) {
        const Whole part = bits == 64 ? static_cast<Whole>(std::as_const(warp).Pairs(o)[lane])
                                      : static_cast<Whole>(std::as_const(warp).Cells(o)[lane]);
        whole[lane] |= (part & ones) << (i * bits % (static_cast<int>(sizeof(Whole)) * 8));
      });
    }
    CellOf<Whole>* to = Target<Whole>(warp, warp.operand(in, 0));
    ForLanes(lanes, [&](int lane) { to[lane] = whole[lane]; });
    return Flow::kNext;
  }
  std::array<Whole, kWarpLanes> whole;
  const CellOf<Whole>* from = Source<Whole>(std::as_const(warp), warp.operand(in, parts));
  ForLanes(lanes, [&](int lane) { whole[lane] = static_cast<Whole>(from[lane]); });
  for (int i = 0; i < parts; ++i) {
    uint32_t* to = warp.Cells(warp.operand(in, i));
    ForLanes(lanes,
             [&](int lane) { to[lane] = static_cast<uint32_t>(whole[lane] >> i * bits & ones); });
  }
  return Flow::kNext;
}

// createpolicy: the cache is not emulated.
Flow Policy(Warp& warp, const Instruction& in, uint32_t lanes) {
  uint64_t* to = warp.Pairs(warp.operand(in, 0));
  ForLanes(lanes, [&](int lane) { to[lane] = 0; });
  return Flow::kNext;
}

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSubtract = [](auto a, auto b) { return a - b; };
constexpr auto kMultiply = [](auto a, auto b) { return a * b; };
constexpr auto kMultiplyAdd = [](auto a, auto b, auto c) { return std::fma(a, b, c); };
constexpr auto kMin = [](auto a, auto b) { return Min(a, b); };
constexpr auto kMax = [](auto a, auto b) { return Max(a, b); };
constexpr auto kAnd = [](auto a, auto b) { return a & b; };
constexpr auto kOr = [](auto a, auto b) { return a | b; };
constexpr auto kXor = [](auto a, auto b) { return a ^ b; };
constexpr auto kNot = [](auto a) { return ~a; };
constexpr auto kLeft = [](auto a, U32 by) { return ShiftLeft(a, by); };
constexpr auto kRight = [](auto a, U32 by) { return ShiftRight(a, by); };
constexpr auto kInsert = [](auto a, auto b, U32 p, U32 n) { return InsertBits(a, b, p, n); };
constexpr auto kDivide = [](auto a, auto b) { return Divide(a, b); };
constexpr auto kRemainder = [](auto a, auto b) { return Remainder(a, b); };
constexpr auto kQuotient = [](auto a, auto b) { return a / b; };
constexpr auto kNegate = [](auto a) { return -a; };
constexpr auto kIntoShared = [](U64 a) { return a - kSharedWindow; };
constexpr auto kFromShared = [](U64 a) { return a + kSharedWindow; };

constexpr NamedOperation kIntegers[] = {
    {"add.s16", Elementwise<U16, U16, U16>(kAdd)},
    {"add.s32", Elementwise<U32, U32, U32>(kAdd)},
    {"add.u32", Elementwise<U32, U32, U32>(kAdd)},
    {"add.s64", Elementwise<U64, U64, U64>(kAdd)},
    {"add.u64", Elementwise<U64, U64, U64>(kAdd)},
    {"sub.s16", Elementwise<U16, U16, U16>(kSubtract)},
    {"sub.s32", Elementwise<U32, U32, U32>(kSubtract)},
    {"sub.s64", Elementwise<U64, U64, U64>(kSubtract)},
    {"mul.lo.s16", Elementwise<U16, U16, U16>([](U32 a, U32 b) { return a * b; })},
    {"mul.lo.s32", Elementwise<U32, U32, U32>(kMultiply)},
    {"mul.lo.s64", Elementwise<U64, U64, U64>(kMultiply)},
    {"mul.hi.s32", Elementwise<S32, S32, S32>([](S64 a, S64 b) { return a * b >> 32; })},
    {"mul.hi.u32", Elementwise<U32, U32, U32>([](U64 a, U64 b) { return a * b >> 32; })},
    {"mul.wide.s16", Elementwise<S32, S16, S16>([](S32 a, S32 b) { return a * b; })},
    {"mul.wide.u16", Elementwise<U32, U16, U16>([](U32 a, U32 b) { return a * b; })},
    {"mul.wide.s32", Elementwise<S64, S32, S32>([](S64 a, S64 b) { return a * b; })},
    {"mul.wide.u32", Elementwise<U64, U32, U32>([](U64 a, U64 b) { return a * b; })},
    {"mad.lo.s32", Elementwise<U32, U32, U32, U32>([](U32 a, U32 b, U32 c) { return a * b + c; })},
    {"mad.lo.s64", Elementwise<U64, U64, U64, U64>([](U64 a, U64 b, U64 c) { return a * b + c; })},
    {"mad.wide.s32",
     Elementwise<S64, S32, S32, S64>([](S64 a, S64 b, S64 c) { return a * b + c; })},
    {"mad.wide.u32",
     Elementwise<U64, U32, U32, U64>([](U64 a, U64 b, U64 c) { return a * b + c; })},
    {"div.s32", Elementwise<S32, S32, S32>(kDivide)},
    {"div.u32", Elementwise<U32, U32, U32>(kDivide)},
    {"div.s64", Elementwise<S64, S64, S64>(kDivide)},
    {"div.u64", Elementwise<U64, U64, U64>(kDivide)},
    {"rem.s32", Elementwise<S32, S32, S32>(kRemainder)},
    {"rem.u32", Elementwise<U32, U32, U32>(kRemainder)},
    {"rem.s64", Elementwise<S64, S64, S64>(kRemainder)},
    {"rem.u64", Elementwise<U64, U64, U64>(kRemainder)},
    {"min.s32", Elementwise<S32, S32, S32>(kMin)},
    {"min.u32", Elementwise<U32, U32, U32>(kMin)},
    {"min.s64", Elementwise<S64, S64, S64>(kMin)},
    {"min.u64", Elementwise<U64, U64, U64>(kMin)},
    {"max.s32", Elementwise<S32, S32, S32>(kMax)},
    {"max.u32", Elementwise<U32, U32, U32>(kMax)},
    {"max.s64", Elementwise<S64, S64, S64>(kMax)},
    {"max.u64", Elementwise<U64, U64, U64>(kMax)},
    {"neg.s32", Elementwise<U32, U32>(kNegate)},
    {"neg.s64", Elementwise<U64, U64>(kNegate)},
    {"abs.s32", Elementwise<S32, S32>([](S32 a) { return a < 0 ? 0 - static_cast<U32>(a) : a; })},
    {"and.b16", Elementwise<U16, U16, U16>(kAnd)},
    {"and.b32", Elementwise<U32, U32, U32>(kAnd)},
    {"and.b64", Elementwise<U64, U64, U64>(kAnd)},
    {"or.b16", Elementwise<U16, U16, U16>(kOr)},
    {"or.b32", Elementwise<U32, U32, U32>(kOr)},
    {"or.b64", Elementwise<U64, U64, U64>(kOr)},
    {"xor.b16", Elementwise<U16, U16, U16>(kXor)},
    {"xor.b32", Elementwise<U32, U32, U32>(kXor)},
    {"xor.b64", Elementwise<U64, U64, U64>(kXor)},
    {"not.b16", Elementwise<U16, U16>(kNot)},
    {"not.b32", Elementwise<U32, U32>(kNot)},
    {"not.b64", Elementwise<U64, U64>(kNot)},
    {"shl.b16", Elementwise<U16, U16, U32>(kLeft)},
    {"shl.b32", Elementwise<U32, U32, U32>(kLeft)},
    {"shl.b64", Elementwise<U64, U64, U32>(kLeft)},
    {"shr.u16", Elementwise<U16, U16, U32>(kRight)},
    {"shr.s16", Elementwise<S16, S16, U32>(kRight)},
    {"shr.u32", Elementwise<U32, U32, U32>(kRight)},
    {"shr.s32", Elementwise<S32, S32, U32>(kRight)},
    {"shr.u64", Elementwise<U64, U64, U32>(kRight)},
    {"shr.s64", Elementwise<S64, S64, U32>(kRight)},
    {"bfi.b32", Elementwise<U32, U32, U32, U32, U32>(kInsert)},
    {"bfi.b64", Elementwise<U64, U64, U64, U32, U32>(kInsert)},
    {"brev.b32", Elementwise<U32, U32>([](U32 a) { return ReverseBits(a); })},
    {"bfind.shiftamt.u32", Elementwise<U32, U32>([](U32 a) { return HighestOneShift(a); })},
    {"popc.b32", Elementwise<U32, U32>([](U32 a) { return std::popcount(a); })},
    {"clz.b32", Elementwise<U32, U32>([](U32 a) { return std::countl_zero(a); })},
    {"prmt.b32",
     Elementwise<U32, U32, U32, U32>([](U32 a, U32 b, U32 s) { return Permute(a, b, s); })},
    {"lop3.b32", Elementwise<U32, U32, U32, U32, U32>(
                     [](U32 a, U32 b, U32 c, U32 t) { return Logic3(a, b, c, t); })},
    {"cvta.to.global.u64", Elementwise<U64, U64>(kSame)},
    {"cvta.global.u64", Elementwise<U64, U64>(kSame)},
    {"cvta.shared.u64", Elementwise<U64, U64>(kFromShared)},
    {"cvta.to.shared.u64", Elementwise<U64, U64>(kIntoShared)},
};

constexpr NamedOperation kFloats[] = {
    {"add.f32", Elementwise<F32, F32, F32>(kAdd)},
    {"add.rn.f32", Elementwise<F32, F32, F32>(kAdd)},
    {"add.f64", Elementwise<F64, F64, F64>(kAdd)},
    {"add.rn.f64", Elementwise<F64, F64, F64>(kAdd)},
    {"sub.f32", Elementwise<F32, F32, F32>(kSubtract)},
    {"sub.rn.f32", Elementwise<F32, F32, F32>(kSubtract)},
    {"sub.f64", Elementwise<F64, F64, F64>(kSubtract)},
    {"mul.f32", Elementwise<F32, F32, F32>(kMultiply)},
    {"mul.rn.f32", Elementwise<F32, F32, F32>(kMultiply)},
    {"mul.f64", Elementwise<F64, F64, F64>(kMultiply)},
    {"mul.rn.f64", Elementwise<F64, F64, F64>(kMultiply)},
    {"fma.rn.f32", Elementwise<F32, F32, F32, F32>(kMultiplyAdd)},
    {"fma.rn.f64", Elementwise<F64, F64, F64, F64>(kMultiplyAdd)},
    {"fma.rm.f32",
     Elementwise<F32, F32, F32, F32>([](F32 a, F32 b, F32 c) { return MultiplyAddDown(a, b, c); })},
    {"div.rn.f32", Elementwise<F32, F32, F32>(kQuotient)},
    {"div.approx.f32", Elementwise<F32, F32, F32>(kQuotient)},
    {"div.full.f32", Elementwise<F32, F32, F32>(kQuotient)},
    {"div.rn.f64", Elementwise<F64, F64, F64>(kQuotient)},
    {"rcp.rn.f32", Elementwise<F32, F32>([](F32 a) { return 1.0f / a; })},
    {"rcp.approx.ftz.f64", Elementwise<F64, F64>([](F64 a) { return 1.0 / a; })},
    {"sqrt.rn.f32", Elementwise<F32, F32>([](F32 a) { return std::sqrt(a); })},
    {"rsqrt.approx.f32", Elementwise<F32, F32>([](F32 a) { return 1.0f / std::sqrt(a); })},
    {"ex2.approx.f32", Elementwise<F32, F32>([](F32 a) { return std::exp2(a); })},
    {"ex2.approx.ftz.f32",
     Elementwise<F32, F32>([](F32 a) { return FlushSubnormal(std::exp2(FlushSubnormal(a))); })},
    {"lg2.approx.f32", Elementwise<F32, F32>([](F32 a) { return std::log2(a); })},
    {"lg2.approx.ftz.f32",
     Elementwise<F32, F32>([](F32 a) { return std::log2(FlushSubnormal(a)); })},
    {"min.f32", Elementwise<F32, F32, F32>(kMin)},
    {"max.f32", Elementwise<F32, F32, F32>(kMax)},
    {"max.NaN.f32", Elementwise<F32, F32, F32>([](F32 a, F32 b) {
       return std::isnan(a) || std::isnan(b) ? std::numeric_limits<F32>::quiet_NaN() : Max(a, b);
     })},
    {"neg.f32", Elementwise<F32, F32>(kNegate)},
    {"neg.f64", Elementwise<F64, F64>(kNegate)},
    {"abs.f32", Elementwise<F32, F32>([](F32 a) { return std::fabs(a); })},
    {"abs.f64", Elementwise<F64, F64>([](F64 a) { return std::fabs(a); })},
    {"fma.rn.f16x2", Elementwise<U32, U32, U32, U32>([](U32 a, U32 b, U32 c) {
       return Halves([&](int i) { return std::fma(Half(a, i), Half(b, i), Half(c, i)); });
     })},
    {"add.f16x2", Elementwise<U32, U32, U32>([](U32 a, U32 b) {
       return Halves([&](int i) { return Half(a, i) + Half(b, i); });
     })},
    {"sub.f16x2", Elementwise<U32, U32, U32>([](U32 a, U32 b) {
       return Halves([&](int i) { return Half(a, i) - Half(b, i); });
     })},
    {"mul.f16x2", Elementwise<U32, U32, U32>([](U32 a, U32 b) {
       return Halves([&](int i) { return Half(a, i) * Half(b, i); });
     })},
};

constexpr NamedOperation kMoves[] = {
    {"mov.u16", Elementwise<U16, U16>(kSame)},
    {"mov.b16", Elementwise<U16, U16>(kSame)},
    {"mov.u32", Elementwise<U32, U32>(kSame)},
    {"mov.s32", Elementwise<U32, U32>(kSame)},
    {"mov.f32", Elementwise<U32, U32>(kSame)},
    {"mov.u64", Elementwise<U64, U64>(kSame)},
    {"mov.s64", Elementwise<U64, U64>(kSame)},
    {"mov.f64", Elementwise<U64, U64>(kSame)},
    {"mov.b32", {Move<U32>}},
    {"mov.b64", {Move<U64>}},
    {"selp.b16", {Select<U16>, 4}},
    {"selp.u16", {Select<U16>, 4}},
    {"selp.s16", {Select<U16>, 4}},
    {"selp.b32", {Select<U32>, 4}},
    {"selp.u32", {Select<U32>, 4}},
    {"selp.s32", {Select<U32>, 4}},
    {"selp.f32", {Select<F32>, 4}},
    {"selp.b64", {Select<U64>, 4}},
    {"selp.u64", {Select<U64>, 4}},
    {"selp.s64", {Select<U64>, 4}},
    {"selp.f64", {Select<F64>, 4}},
    {"mov.pred", PredicateOperation([](U32 a, U32) { return a; }, 1)},
    {"not.pred", PredicateOperation([](U32 a, U32) { return ~a; }, 1)},
    {"and.pred", PredicateOperation([](U32 a, U32 b) { return a & b; }, 2)},
    {"or.pred", PredicateOperation([](U32 a, U32 b) { return a | b; }, 2)},
    {"xor.pred", PredicateOperation([](U32 a, U32 b) { return a ^ b; }, 2)},
    {"createpolicy.fractional.L2::evict_first.b64", {Policy, 2}},
};

template <typename T, typename F>
constexpr Operation Compare(F) {
  const Handler handler = [](Warp& warp, const Instruction& in, uint32_t lanes) {
    const CellOf<T>* a = Source<T>(std::as_const(warp), warp.operand(in, 1));
    const CellOf<T>* b = Source<T>(std::as_const(warp), warp.operand(in, 2));
    uint32_t result = 0;
    ForLanes(lanes, [&](int lane) {
      result |= static_cast<uint32_t>(F{}(FromCell<T>(a[lane]), FromCell<T>(b[lane]))) << lane;
    });
    warp.SetPredicate(warp.operand(in, 0), lanes, result);
    return Flow::kNext;
  };
  return {handler, 3};
}

template <typename T>
Operation FindCompareOf(std::string_view how) {
  const std::pair<std::string_view, Operation> table[] = {
      {"eq", Compare<T>([](T a, T b) { return a == b; })},
      {"ne", Compare<T>([](T a, T b) { return a < b || b < a; })},
      {"lt", Compare<T>([](T a, T b) { return a < b; })},
      {"le", Compare<T>([](T a, T b) { return a <= b; })},
      {"gt", Compare<T>([](T a, T b) { return a > b; })},
      {"ge", Compare<T>([](T a, T b) { return a >= b; })},
      {"equ", Compare<T>([](T a, T b) { return !(a < b || b < a); })},
      {"neu", Compare<T>([](T a, T b) { return a != b; })},
      {"ltu", Compare<T>([](T a, T b) { return !(a >= b); })},
      {"leu", Compare<T>([](T a, T b) { return !(a > b); })},
      {"gtu", Compare<T>([](T a, T b) { return !(a <= b); })},
      {"geu", Compare<T>([](T a, T b) { return !(a < b); })},
      {"num", Compare<T>([](T a, T b) { return a == a && b == b; })},
      {"nan", Compare<T>([](T a, T b) { return a != a || b != b; })},
  };
  for (const auto& [name, operation] : table) {
    if (name == how) return operation;
  }
  return {};
}

}  // namespace

Operation FindCompare(std::string_view opcode) {
  const size_t dot = opcode.find('.', 5);
  if (dot == std::string_view::npos) return {};
  const std::string_view how = opcode.substr(5, dot - 5), type = opcode.substr(dot + 1);
  if (type == "s16") return FindCompareOf<S16>(how);
  if (type == "u16" || type == "b16") return FindCompareOf<U16>(how);
  if (type == "s32") return FindCompareOf<S32>(how);
  if (type == "u32" || type == "b32") return FindCompareOf<U32>(how);
  if (type == "s64") return FindCompareOf<S64>(how);
  if (type == "u64" || type == "b64") return FindCompareOf<U64>(how);
  if (type == "f32") return FindCompareOf<F32>(how);
  if (type == "f64") return FindCompareOf<F64>(how);
  return {};
}

std::span<const NamedOperation> IntegerOperations() { return kIntegers; }
std::span<const NamedOperation> FloatOperations() { return kFloats; }
std::span<const NamedOperation> MoveOperations() { return kMoves; }

}  // namespace fewbit::emulator
