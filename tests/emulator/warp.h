// The state of a grid that runs, and the words that operations are written in.
#pragma once

#include <bit>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <tuple>
#include <type_traits>

#include "tests/emulator/ptx.h"

namespace fewbit::emulator {

struct Grid;

// A named barrier of a block (PTX: bar).
struct BlockBarrier {
  uint32_t arrived = 0;     // threads
  uint32_t generation = 0;  // how often it was passed
  bool of_all = false;      // those who arrived wait for all warps that have not exited
  bool any = false;         // bar.red.or of those who arrived
  bool last_any = false;    // of the last generation

  void LetPass() {
    arrived = 0;
    last_any = any;
    any = false;
    ++generation;
  }
};

struct Block {
  Grid* grid = nullptr;
  std::array<unsigned, 3> index = {};
  unsigned rank = 0;  // in its cluster
  std::vector<Block*> cluster;
  std::vector<uint8_t> shared;
  std::array<BlockBarrier, 16> barriers;
  uint32_t alive_warps = 0;
  // For the kernels before (griddepcontrol.wait): some warp, which may have told the others.
  bool has_waited = false;
};

struct ClusterBarrier {
  uint32_t arrived = 0, generation = 0;
};

// A copy that is under way: Grid::copies.
struct Copy {
  uint64_t due;  // tick
  bool read_late;
  size_t size;
  std::vector<uint8_t*> to;  // empty: has been written
  const uint8_t* from;
  std::vector<uint8_t> bytes;      // that were read; empty: not yet
  std::vector<uint8_t*> barriers;  // that count it

  void Finish();
};

// Lanes that are at the same instruction.
struct LaneGroup {
  uint32_t pc, lanes;
  bool waits = false;  // for other lanes to meet
};

struct ClusterBarrier;
struct Wait {
  enum class For : uint8_t { kNothing, kBarrier, kCluster, kPhase } reason = For::kNothing;
  uint32_t id = 0, generation = 0;  // kBarrier, kCluster
  const uint8_t* phase = nullptr;   // kPhase: the mbarrier
  uint32_t parity = 0;
  const ClusterBarrier* cluster = nullptr;  // kCluster
};

// cp.async: copies of a lane until its next wait.
struct LaneCopy {
  uint32_t group;  // of the lane
  int lane;
  uint8_t* to;
  const uint8_t* from;
  uint8_t bytes, read_bytes;  // zeros behind those that are read

  void Execute() const;
};

// Operand a of a product: 4 cells of every lane.
using FragmentA = std::array<std::array<uint32_t, kWarpLanes>, 4>;

// A product that runs on its own: operands in memory are read when it is executed.
struct LateProduct {
  uint32_t group;
  const Instruction* instruction;
  uint64_t descriptor;
  bool add;
  FragmentA a;
  void (*execute)(Warp&, const LateProduct&);
};

struct Warp {
  // Executes up to `steps` instructions; fewer if it has to wait or ends. False if it executed
  // none.
  bool Run(int steps);

  Block* block = nullptr;
  const Kernel* kernel = nullptr;
  std::unique_ptr<uint32_t[]> registers;
  const uint32_t* constants = nullptr;
  uint32_t alive = 0;  // lanes that have not exited
  std::vector<LaneGroup> groups;
  size_t current = 0;
  Wait wait;
  bool cluster_arrived = false;     // and has not waited yet
  uint32_t cluster_generation = 0;  // when it arrived
  std::array<uint32_t, kWarpLanes> copy_group = {};
  std::vector<LaneCopy> copies;
  uint32_t product_group = 0;
  bool products_late = false;
  std::vector<LateProduct> products;
  int index = 0;  // in the block

  // Makes another group of lanes current: most often the one that is furthest behind, so that lanes
  // come together again; sometimes any.
  void ChooseGroup();
  void Branch(const Instruction& in, uint32_t taken);
  void Exit(uint32_t lanes);

  // Whether kernels before may still run.
  bool MayBeEarly() const;

  const Operand& operand(const Instruction& in, int i) const {
    return kernel->operands[in.operands + static_cast<uint32_t>(i)];
  }
  const uint32_t* Cells(const Operand& o) const {
    return o.place & Operand::kConstant ? constants + (o.place & ~Operand::kConstant)
                                        : registers.get() + o.place;
  }
  const uint64_t* Pairs(const Operand& o) const {
    return reinterpret_cast<const uint64_t*>(
        o.place & Operand::kConstant ? constants + (o.place & ~Operand::kConstant) + kWarpLanes
                                     : registers.get() + o.place);
  }
  uint32_t* Cells(const Operand& o) { return registers.get() + o.place; }
  uint64_t* Pairs(const Operand& o) {
    return reinterpret_cast<uint64_t*>(registers.get() + o.place);
  }
  uint32_t Predicate(const Operand& o) const {
    const uint32_t cell = *Cells(o);
    return o.place & Operand::kConstant ? (cell != 0 ? kAllLanes : 0) : cell;
  }
  void SetPredicate(const Operand& o, uint32_t lanes, uint32_t value) {
    uint32_t& cell = *Cells(o);
    cell = (cell & ~lanes) | (value & lanes);
  }
};

struct Grid {
  const Kernel* kernel;
  LaunchShape shape;
  std::span<const std::byte> arguments;
  const Machine* machine;
  std::mt19937 random;
  uint64_t tick = 0;
  std::vector<std::unique_ptr<Copy>> copies;
  std::vector<ClusterBarrier> clusters;  // by index of the cluster in the grid
  MemoryRange last_allocation;
  // Whether some block let the next kernel start, and whether one did so behind its wait.
  bool lets_next = false, lets_next_late = false;

  // Uniform in [0, n).
  uint32_t Random(uint32_t n) { return static_cast<uint32_t>(random() >> 3) % n; }
};

inline bool Warp::MayBeEarly() const {
  const Machine& machine = *block->grid->machine;
  return !block->has_waited && machine.first_unfinished != machine.launch;
}

[[noreturn]] void Fault(const Warp& warp, const Instruction& in, int lane,
                        const std::string& message);

// Where `bytes` at an address lie in this process; a fault if they are not in one piece there or
// the address is not a multiple of `alignment`, a power of two.
uint8_t* LocateAnywhere(Warp& warp, const Instruction& in, int lane, Space space, uint64_t address,
                        size_t bytes, size_t alignment);

// The same; nearly all addresses are in the last allocation or in the block's own shared memory.
inline uint8_t* Locate(Warp& warp, const Instruction& in, int lane, Space space, uint64_t address,
                       size_t bytes, size_t alignment) {
  Block& block = *warp.block;
  if ((address & (alignment - 1)) == 0) {
    const MemoryRange& last = block.grid->last_allocation;
    const uint64_t place = address - last.begin;
    if (space == Space::kGlobal && place < last.bytes && last.bytes - place >= bytes) {
      return reinterpret_cast<uint8_t*>(address);
    }
    const uint64_t offset = address - kSharedBegin;
    if (space == Space::kShared && offset < block.shared.size() &&
        block.shared.size() - offset >= bytes) {
      return block.shared.data() + offset;
    }
  }
  return LocateAnywhere(warp, in, lane, space, address, bytes, alignment);
}
inline uint8_t* LocateShared(Warp& warp, const Instruction& in, int lane, uint32_t address,
                             size_t bytes, size_t alignment) {
  return Locate(warp, in, lane, Space::kShared, address, bytes, alignment);
}

// For bytes of global memory that were located: faults if a kernel that may still run has written
// them, and the warp has not waited for it; notes who writes.
void CheckEarlyRead(Warp& warp, const Instruction& in, int lane, const uint8_t* at, size_t bytes);
inline void CheckRead(Warp& warp, const Instruction& in, int lane, const uint8_t* at,
                      size_t bytes) {
  if (warp.MayBeEarly()) CheckEarlyRead(warp, in, lane, at, bytes);
}
void NoteWrite(Warp& warp, const Instruction& in, int lane, const uint8_t* at, size_t bytes);

// mbarriers (operations_barrier.cc): the counts are kept where the program put the barrier.
void CompleteBytes(uint8_t* barrier, uint64_t bytes);
bool PhaseIsOver(const uint8_t* barrier, uint32_t parity);
std::string DescribePhase(const uint8_t* barrier, uint32_t parity);

template <typename F>
inline void ForLanes(uint32_t lanes, F f) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kWarpLanes; ++lane) f(lane);
    return;
  }
  for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
}
inline int FirstLane(uint32_t lanes) { return std::countr_zero(lanes); }

// A value in a cell or in a pair of cells.
template <typename T>
using CellOf = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <typename T>
inline T FromCell(CellOf<T> cell) {
  T value;
  std::memcpy(&value, &cell, sizeof(T));
  return value;
}
template <typename T>
inline CellOf<T> ToCell(T value) {
  CellOf<T> cell = 0;
  std::memcpy(&cell, &value, sizeof(T));
  return cell;
}
template <typename T>
inline const CellOf<T>* Source(const Warp& warp, const Operand& o) {
  if constexpr (sizeof(T) == 8) {
    return warp.Pairs(o);
  } else {
    return warp.Cells(o);
  }
}
template <typename T>
inline CellOf<T>* Target(Warp& warp, const Operand& o) {
  if constexpr (sizeof(T) == 8) {
    return warp.Pairs(o);
  } else {
    return warp.Cells(o);
  }
}

// The operation that stores f(sources...) of type R; f has no state.
template <typename R, typename... A, typename F>
constexpr Operation Elementwise(F) {
  const Handler handler = [](Warp& warp, const Instruction& in, uint32_t lanes) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      CellOf<R>* to = Target<R>(warp, warp.operand(in, 0));
      const std::tuple<const CellOf<A>*...> from = {
          Source<A>(std::as_const(warp), warp.operand(in, static_cast<int>(I) + 1))...};
      ForLanes(lanes, [&](int lane) {
        to[lane] = ToCell<R>(static_cast<R>(F{}(FromCell<A>(std::get<I>(from)[lane])...)));
      });
    }
    (std::index_sequence_for<A...>{});
    return Flow::kNext;
  };
  return {handler, static_cast<int>(sizeof...(A)) + 1};
}

// Types by their names in PTX.
using U8 = uint8_t;
using U16 = uint16_t;
using U32 = uint32_t;
using U64 = uint64_t;
using S8 = int8_t;
using S16 = int16_t;
using S32 = int32_t;
using S64 = int64_t;
using F32 = float;
using F64 = double;

inline constexpr auto kSame = [](auto a) { return a; };

struct NamedOperation {
  std::string_view opcode;
  Operation operation;
};

// Each file of operations has its table and, where opcodes have many parts, a function that reads
// them.
std::span<const NamedOperation> IntegerOperations();
std::span<const NamedOperation> FloatOperations();
std::span<const NamedOperation> MoveOperations();
std::span<const NamedOperation> ConversionOperations();
std::span<const NamedOperation> ExchangeOperations();
std::span<const NamedOperation> MatrixOperations();
std::span<const NamedOperation> BarrierOperations();
std::span<const NamedOperation> CopyOperations();
Operation FindCompare(std::string_view opcode);
Operation FindMemory(std::string_view opcode);

}  // namespace fewbit::emulator
