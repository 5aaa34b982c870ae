// Tensor cores: PTX ISA, "Matrix multiply-accumulate" and "Asynchronous warpgroup". A sum of
// products is rounded once: the device's own order and width of such sums are not documented.
#include <algorithm>
#include <array>

#include "tests/emulator/halves.h"
#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

FragmentA CopyA(const Warp& warp, const Instruction& in, int first) {
  FragmentA fragment;
  for (int j = 0; j < 4; ++j) {
    std::copy_n(warp.Cells(warp.operand(in, first + j)), kWarpLanes, fragment[j].begin());
  }
  return fragment;
}

// Operand a of 16 rows: row r, element k is in lane 4 (r % 8) + ..., as the sections on fragments
// say. A cell holds 2 halves or 4 bytes that follow each other along k; `kPerCell` of them. Cells 0
// and 1: rows r and r + 8 of the first half of k, cells 2 and 3: of the second.
template <typename T, int kPerCell>
struct Fragments {
  static constexpr int kDepth = 8 * kPerCell;  // k of one product

  static T Element(uint32_t cell, int i) {
    if constexpr (kPerCell == 2) {
      return T{static_cast<uint16_t>(cell >> 16 * i)};
    } else {
      return static_cast<T>(cell >> 8 * i);
    }
  }
  template <typename To>
  static void ReadA(const FragmentA& fragment, To (&a)[16][kDepth]) {
    for (int j = 0; j < 4; ++j) {
      const auto& cells = fragment[j];
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        for (int i = 0; i < kPerCell; ++i) {
          a[lane / 4 + 8 * (j % 2)][(lane % 4) * kPerCell + i + 4 * kPerCell * (j / 2)] =
              ToNumber(Element(cells[lane], i));
        }
      }
    }
  }
  static auto ToNumber(T x) {
    if constexpr (kPerCell == 2) {
      return ToFloat(x);
    } else {
      return static_cast<int32_t>(x);
    }
  }
};

// sums += a b^T, b by columns.
template <int kDepth>
float Sum(float start, const float (&a)[kDepth], const float* b) {
  double sum = 0;
  for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[k]) * b[k];
  return static_cast<float>(start + sum);
}
template <int kDepth>
int32_t Sum(int32_t start, const int32_t (&a)[kDepth], const int32_t* b) {
  auto sum = static_cast<uint32_t>(start);
  for (int k = 0; k < kDepth; ++k) sum += static_cast<uint32_t>(a[k] * b[k]);
  return static_cast<int32_t>(sum);
}

// d = a b + c, 16 x 8: operands are 4 of d, 4 of a, 2 of b, 4 of c. Lane 4 g + t has columns 2 t
// and 2 t + 1 of rows g and g + 8 of the sums.
template <typename A, typename B, int kPerCell, typename S>
Flow WarpProduct(Warp& warp, const Instruction& in, uint32_t) {
  constexpr int kDepth = Fragments<A, kPerCell>::kDepth;
  S a[16][kDepth], b[8][kDepth], sums[16][8];
  Fragments<A, kPerCell>::ReadA(CopyA(warp, in, 4), a);
  for (int j = 0; j < 2; ++j) {
    const uint32_t* cells = std::as_const(warp).Cells(warp.operand(in, 8 + j));
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      for (int i = 0; i < kPerCell; ++i) {
        b[lane / 4][lane % 4 * kPerCell + i + 4 * kPerCell * j] =
            Fragments<B, kPerCell>::ToNumber(Fragments<B, kPerCell>::Element(cells[lane], i));
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    const uint32_t* cells = std::as_const(warp).Cells(warp.operand(in, 10 + i));
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      sums[row][column] = Sum<kDepth>(FromCell<S>(cells[lane]), a[row], b[column]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    uint32_t* cells = warp.Cells(warp.operand(in, i));
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      cells[lane] = ToCell<S>(sums[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2]);
    }
  }
  return Flow::kNext;
}

// Operand b of a warpgroup's product, in shared memory ("Matrix Descriptor Format", "Shared Memory
// Matrix Layout"). Strides in bytes.
struct SharedMatrix {
  uint32_t begin, leading, stride;
  int swizzle;  // bits that are exchanged: 0 to 3

  explicit SharedMatrix(uint64_t descriptor)
      : begin(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        leading(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4) {
    constexpr int kBits[] = {0, 3, 2, 1};  // none, 128, 64 and 32 bytes
    swizzle = kBits[descriptor >> 62];
  }

  // Of the element at byte `k` along a column; 16 << swizzle bytes of a column are in one piece,
  // without swizzling pieces of 16 bytes are `leading` apart.
  uint32_t AlongColumns(uint32_t column, uint32_t k) const {
    const uint32_t at =
        swizzle == 0 ? begin + column / 8 * stride + column % 8 * 16 + k / 16 * leading + k % 16
                     : begin + column / 8 * stride + column % 8 * (16u << swizzle) + k;
    return Swizzled(at);
  }
  // Columns along rows of 128 bytes, rows are k; panels of 64 halves are `leading` apart.
  uint32_t AlongRows(uint32_t column, uint32_t k) const {
    return Swizzled(begin + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2);
  }
  uint32_t Swizzled(uint32_t at) const { return at ^ ((at >> 7 & ((1u << swizzle) - 1)) << 4); }
};

template <typename T, int kPerCell, typename S, int kColumns>
void ReadB(Warp& warp, const Instruction& in, uint64_t descriptor, bool transposed,
           S (&b)[kColumns][8 * kPerCell]) {
  constexpr int kBytes = 4 / kPerCell;
  const SharedMatrix matrix(descriptor);
  if (transposed && matrix.swizzle != 3) Fault(warp, in, 0, "a layout that is not emulated");
  for (uint32_t column = 0; column < kColumns; ++column) {
    for (uint32_t k = 0; k < 8 * kPerCell; ++k) {
      const uint32_t at =
          transposed ? matrix.AlongRows(column, k) : matrix.AlongColumns(column, k * kBytes);
      uint32_t cell = 0;
      std::memcpy(&cell, LocateShared(warp, in, 0, at, kBytes, kBytes), kBytes);
      b[column][k] = Fragments<T, kPerCell>::ToNumber(Fragments<T, kPerCell>::Element(cell, 0));
    }
  }
}

// One warp's 16 rows of 64. Operands: sums, 4 cells of a, the descriptor, whether to add, and for
// halves factors 1 and 1 and whether b is transposed.
template <typename A, typename B, int kPerCell, typename S, int kColumns>
void ExecuteProduct(Warp& warp, const LateProduct& product) {
  const Instruction& in = *product.instruction;
  constexpr int kDepth = Fragments<A, kPerCell>::kDepth, kSums = kColumns / 2;
  S a[16][kDepth], b[kColumns][kDepth];
  Fragments<A, kPerCell>::ReadA(product.a, a);
  bool transposed = false;
  if (kPerCell == 2) {
    const auto constant = [&](int i) { return *std::as_const(warp).Cells(warp.operand(in, i)); };
    if (constant(kSums + 6) != 1 || constant(kSums + 7) != 1) Fault(warp, in, 0, "factors are 1");
    transposed = constant(kSums + 8) != 0;
  }
  ReadB<B, kPerCell>(warp, in, product.descriptor, transposed, b);
  for (int i = 0; i < kSums; ++i) {
    uint32_t* cells = warp.Cells(warp.operand(in, i));
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int row = lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      const S start = product.add ? FromCell<S>(cells[lane]) : S{0};
      cells[lane] = ToCell<S>(Sum<kDepth>(start, a[row], b[column]));
    }
  }
}

using Execute = void (*)(Warp&, const LateProduct&);

// Starts a product: it is executed here, or not before it is waited for. The registers of a are
// read here: by then others may share their cells.
template <Execute kExecute, int kSums>
Flow StartProduct(Warp& warp, const Instruction& in, uint32_t) {
  const LateProduct product = {warp.product_group,
                               &in,
                               *std::as_const(warp).Pairs(warp.operand(in, kSums + 4)),
                               (warp.Predicate(warp.operand(in, kSums + 5)) & 1) != 0,
                               CopyA(warp, in, kSums),
                               kExecute};
  if (warp.products.empty()) warp.products_late = warp.block->grid->Random(2) == 0;
  if (warp.products_late) {
    warp.products.push_back(product);
  } else {
    kExecute(warp, product);
  }
  return Flow::kNext;
}

Flow CommitProducts(Warp& warp, const Instruction&, uint32_t) {
  ++warp.product_group;
  return Flow::kNext;
}

Flow WaitForProducts(Warp& warp, const Instruction& in, uint32_t) {
  const uint32_t pending = *std::as_const(warp).Cells(warp.operand(in, 0));
  size_t done = 0;
  while (done < warp.products.size() && warp.products[done].group + pending < warp.product_group) {
    const LateProduct& product = warp.products[done++];
    product.execute(warp, product);
  }
  warp.products.erase(warp.products.begin(), warp.products.begin() + static_cast<long>(done));
  return Flow::kNext;
}

Flow Nothing(Warp&, const Instruction&, uint32_t) { return Flow::kNext; }

template <typename T, int kColumns>
constexpr Operation HalvesProduct() {
  constexpr Execute kExecute = ExecuteProduct<T, T, 2, float, kColumns>;
  return {StartProduct<kExecute, kColumns / 2>, kColumns / 2 + 9, Meeting::kWholeWarp};
}
template <int kColumns>
constexpr Operation BytesProduct() {
  constexpr Execute kExecute = ExecuteProduct<uint8_t, int8_t, 4, int32_t, kColumns>;
  return {StartProduct<kExecute, kColumns / 2>, kColumns / 2 + 6, Meeting::kWholeWarp};
}

constexpr Meeting kAll = Meeting::kWholeWarp;

constexpr NamedOperation kOperations[] = {
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
     {WarpProduct<F16, F16, 2, float>, 14, kAll}},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
     {WarpProduct<Bf16, Bf16, 2, float>, 14, kAll}},
    {"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
     {WarpProduct<uint8_t, int8_t, 4, int32_t>, 14, kAll}},
    {"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
     {WarpProduct<int8_t, int8_t, 4, int32_t>, 14, kAll}},
    {"wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16", HalvesProduct<F16, 16>()},
    {"wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16", HalvesProduct<F16, 32>()},
    {"wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", HalvesProduct<F16, 64>()},
    {"wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16", HalvesProduct<F16, 128>()},
    {"wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16", HalvesProduct<F16, 256>()},
    {"wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", HalvesProduct<Bf16, 64>()},
    {"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", HalvesProduct<Bf16, 128>()},
    {"wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16", HalvesProduct<Bf16, 256>()},
    {"wgmma.mma_async.sync.aligned.m64n16k32.s32.u8.s8", BytesProduct<16>()},
    {"wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8", BytesProduct<32>()},
    {"wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8", BytesProduct<64>()},
    {"wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8", BytesProduct<128>()},
    {"wgmma.fence.sync.aligned", {Nothing, 0, kAll}},
    {"wgmma.commit_group.sync.aligned", {CommitProducts, 0, kAll}},
    {"wgmma.wait_group.sync.aligned", {WaitForProducts, 1, kAll}},
};

}  // namespace

std::span<const NamedOperation> MatrixOperations() { return kOperations; }

}  // namespace fewbit::emulator
