// What the lanes of a warp do together: PTX ISA, shfl.sync, vote.sync, redux.sync, bar.warp.sync,
// ldmatrix, stmatrix, movmatrix. Decode() made sure that the lanes have met.
#include <algorithm>
#include <array>

#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

enum class Shuffle { kUp, kDown, kButterfly, kIndex };

template <Shuffle kHow>
Flow Exchange(Warp& warp, const Instruction& in, uint32_t lanes) {
  const int sources = in.operand_count - 4;  // 1, or 2 with a predicate
  const auto cells = [&](int i) { return std::as_const(warp).Cells(warp.operand(in, i)); };
  std::array<uint32_t, kWarpLanes> values;
  std::copy_n(cells(sources), kWarpLanes, values.begin());
  std::array<uint32_t, kWarpLanes> result;
  uint32_t in_range = 0;
  ForLanes(lanes, [&](int lane) {
    const int by = static_cast<int>(cells(sources + 1)[lane] & 31);
    const uint32_t limits = cells(sources + 2)[lane];
    const int clamp = limits & 31, segment = limits >> 8 & 31;
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = 0;
    switch (kHow) {
      case Shuffle::kUp:
        from = lane - by;
        break;
      case Shuffle::kDown:
        from = lane + by;
        break;
      case Shuffle::kButterfly:
        from = lane ^ by;
        break;
      case Shuffle::kIndex:
        from = first | (by & ~segment);
        break;
    }
    const bool good = kHow == Shuffle::kUp ? from >= last : from <= last;
    if (!good) from = lane;
    if ((lanes >> from & 1) == 0) Fault(warp, in, lane, "shuffles from a lane that is not there");
    in_range |= static_cast<uint32_t>(good) << lane;
    result[lane] = values[from];
  });
  uint32_t* to = warp.Cells(warp.operand(in, 0));
  ForLanes(lanes, [&](int lane) { to[lane] = result[lane]; });
  if (sources == 2) warp.SetPredicate(warp.operand(in, 1), lanes, in_range);
  return Flow::kNext;
}

Flow Ballot(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t votes = warp.Predicate(warp.operand(in, 1)) & lanes;
  uint32_t* to = warp.Cells(warp.operand(in, 0));
  ForLanes(lanes, [&](int lane) { to[lane] = votes; });
  return Flow::kNext;
}

template <bool kAllOf>
Flow Vote(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t votes = warp.Predicate(warp.operand(in, 1)) & lanes;
  const bool result = kAllOf ? votes == lanes : votes != 0;
  warp.SetPredicate(warp.operand(in, 0), lanes, result ? kAllLanes : 0);
  return Flow::kNext;
}

template <typename T, typename F>
Flow Reduce(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t* from = std::as_const(warp).Cells(warp.operand(in, 1));
  T result = FromCell<T>(from[FirstLane(lanes)]);
  ForLanes(lanes & (lanes - 1), [&](int lane) { result = F{}(result, FromCell<T>(from[lane])); });
  uint32_t* to = warp.Cells(warp.operand(in, 0));
  ForLanes(lanes, [&](int lane) { to[lane] = ToCell<T>(result); });
  return Flow::kNext;
}
struct Greatest {
  template <typename T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};

Flow Meet(Warp&, const Instruction&, uint32_t) { return Flow::kNext; }

// Matrices of 8 x 8 halves: lane 4 r + c holds columns 2 c and 2 c + 1 of row r.
using Matrix = std::array<std::array<uint16_t, 8>, 8>;

Matrix FromFragment(const uint32_t* cells) {
  Matrix m;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    m[lane / 4][lane % 4 * 2] = static_cast<uint16_t>(cells[lane]);
    m[lane / 4][lane % 4 * 2 + 1] = static_cast<uint16_t>(cells[lane] >> 16);
  }
  return m;
}
void ToFragment(const Matrix& m, uint32_t* cells) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& row = m[lane / 4];
    cells[lane] = row[lane % 4 * 2] | static_cast<uint32_t>(row[lane % 4 * 2 + 1]) << 16;
  }
}
Matrix Transposed(const Matrix& m) {
  Matrix t;
  for (int r = 0; r < 8; ++r) {
    for (int c = 0; c < 8; ++c) t[c][r] = m[r][c];
  }
  return t;
}

// Lane 8 i + r gives the address of row r of matrix i.
uint8_t* MatrixRow(Warp& warp, const Instruction& in, const Operand& address, int lane) {
  const uint32_t at =
      std::as_const(warp).Cells(address)[lane] + static_cast<uint32_t>(address.offset);
  return LocateShared(warp, in, lane, at, 16, 16);
}

template <bool kTransposed>
Flow LoadMatrices(Warp& warp, const Instruction& in, uint32_t) {
  const int count = in.operand_count - 1;
  std::array<Matrix, 4> matrices;
  for (int i = 0; i < count; ++i) {
    for (int r = 0; r < 8; ++r) {
      std::memcpy(&matrices[i][r], MatrixRow(warp, in, warp.operand(in, count), 8 * i + r), 16);
    }
  }
  for (int i = 0; i < count; ++i) {
    ToFragment(kTransposed ? Transposed(matrices[i]) : matrices[i],
               warp.Cells(warp.operand(in, i)));
  }
  return Flow::kNext;
}

template <bool kTransposed>
Flow StoreMatrices(Warp& warp, const Instruction& in, uint32_t) {
  for (int i = 0; i < in.operand_count - 1; ++i) {
    Matrix m = FromFragment(std::as_const(warp).Cells(warp.operand(in, 1 + i)));
    if (kTransposed) m = Transposed(m);
    for (int r = 0; r < 8; ++r) {
      std::memcpy(MatrixRow(warp, in, warp.operand(in, 0), 8 * i + r), &m[r], 16);
    }
  }
  return Flow::kNext;
}

Flow TransposeMatrix(Warp& warp, const Instruction& in, uint32_t) {
  const Matrix m = FromFragment(std::as_const(warp).Cells(warp.operand(in, 1)));
  ToFragment(Transposed(m), warp.Cells(warp.operand(in, 0)));
  return Flow::kNext;
}

constexpr Meeting kMembers = Meeting::kMemberMask, kAll = Meeting::kWholeWarp;

constexpr NamedOperation kOperations[] = {
    {"shfl.sync.up.b32", {Exchange<Shuffle::kUp>, -1, kMembers}},
    {"shfl.sync.down.b32", {Exchange<Shuffle::kDown>, -1, kMembers}},
    {"shfl.sync.bfly.b32", {Exchange<Shuffle::kButterfly>, -1, kMembers}},
    {"shfl.sync.idx.b32", {Exchange<Shuffle::kIndex>, -1, kMembers}},
    {"vote.sync.ballot.b32", {Ballot, 3, kMembers}},
    {"vote.sync.any.pred", {Vote<false>, 3, kMembers}},
    {"vote.sync.all.pred", {Vote<true>, 3, kMembers}},
    {"redux.sync.add.s32", {Reduce<uint32_t, std::plus<>>, 3, kMembers}},
    {"redux.sync.max.u32", {Reduce<uint32_t, Greatest>, 3, kMembers}},
    {"redux.sync.max.s32", {Reduce<int32_t, Greatest>, 3, kMembers}},
    {"bar.warp.sync", {Meet, 1, kMembers}},
    {"ldmatrix.sync.aligned.m8n8.x1.shared.b16", {LoadMatrices<false>, 2, kAll}},
    {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", {LoadMatrices<false>, 3, kAll}},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", {LoadMatrices<false>, 5, kAll}},
    {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", {LoadMatrices<true>, 3, kAll}},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", {LoadMatrices<true>, 5, kAll}},
    {"stmatrix.sync.aligned.m8n8.x4.shared.b16", {StoreMatrices<false>, 5, kAll}},
    {"stmatrix.sync.aligned.m8n8.x4.trans.shared.b16", {StoreMatrices<true>, 5, kAll}},
    {"movmatrix.sync.aligned.m8n8.trans.b16", {TransposeMatrix, 2, kAll}},
};

}  // namespace

std::span<const NamedOperation> ExchangeOperations() { return kOperations; }

}  // namespace fewbit::emulator
