// Barriers: PTX ISA, bar, barrier.cluster, mbarrier; mapa; and what has nothing to do here, because
// instructions are executed one at a time and kernels one after the other.
#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

// An mbarrier in its 64 bits. `valid` tells one that was initialised from other memory.
struct PhaseBarrier {
  static constexpr uint64_t kValid = 2;
  uint32_t phase, expected, pending;
  int32_t bytes;  // that are still to be copied; below 0: copied before they were announced

  static bool Read(const uint8_t* at, PhaseBarrier* barrier) {
    uint64_t bits;
    std::memcpy(&bits, at, 8);
    barrier->phase = bits & 1;
    barrier->expected = bits >> 1 & 0xfffff;
    barrier->pending = bits >> 21 & 0xfffff;
    barrier->bytes = static_cast<int32_t>(static_cast<int64_t>(bits << 2) >> 43);
    return bits >> 62 == kValid;
  }
  void Write(uint8_t* at) const {
    const uint64_t bits = phase | uint64_t{expected} << 1 | uint64_t{pending} << 21 |
                          (static_cast<uint64_t>(bytes) & 0x1fffff) << 41 | kValid << 62;
    std::memcpy(at, &bits, 8);
  }
  void EndPhaseIfComplete() {
    if (pending != 0 || bytes != 0) return;
    phase ^= 1;
    pending = expected;
  }
};

uint8_t* BarrierPlace(Warp& warp, const Instruction& in, int operand, int lane) {
  const Operand& o = warp.operand(in, operand);
  const uint32_t at = std::as_const(warp).Cells(o)[lane] + static_cast<uint32_t>(o.offset);
  return LocateShared(warp, in, lane, at, 8, 8);
}

Flow Initialise(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t* count = std::as_const(warp).Cells(warp.operand(in, 1));
  ForLanes(lanes, [&](int lane) {
    if (count[lane] == 0 || count[lane] > 0xfffff) Fault(warp, in, lane, "mbarrier of that count");
    PhaseBarrier{0, count[lane], count[lane], 0}.Write(BarrierPlace(warp, in, 0, lane));
  });
  return Flow::kNext;
}

// Operands: with `kArrives` a result that nobody reads, then the address, then bytes if `kExpects`.
template <bool kArrives, bool kExpects>
Flow Arrive(Warp& warp, const Instruction& in, uint32_t lanes) {
  constexpr int kAddress = kArrives ? 1 : 0;
  if (kArrives && warp.operand(in, 0).place != 0) Fault(warp, in, 0, "a state is not emulated");
  ForLanes(lanes, [&](int lane) {
    uint8_t* at = BarrierPlace(warp, in, kAddress, lane);
    PhaseBarrier barrier;
    if (!PhaseBarrier::Read(at, &barrier))
      Fault(warp, in, lane, "no mbarrier was initialised here");
    if (kExpects) {
      barrier.bytes +=
          static_cast<int32_t>(std::as_const(warp).Cells(warp.operand(in, kAddress + 1))[lane]);
    }
    if (kArrives) {
      if (barrier.pending == 0) Fault(warp, in, lane, "more arrivals than the mbarrier's count");
      --barrier.pending;
    }
    barrier.EndPhaseIfComplete();
    barrier.Write(at);
  });
  return Flow::kNext;
}

// mbarrier.try_wait may suspend a thread until the phase is over: a warp whose lanes are together
// sleeps, diverged lanes get their "no".
Flow TryWait(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t* parity = std::as_const(warp).Cells(warp.operand(in, 2));
  uint32_t over = 0;
  const uint8_t* open = nullptr;
  uint32_t open_parity = 0;
  ForLanes(lanes, [&](int lane) {
    const uint8_t* at = BarrierPlace(warp, in, 1, lane);
    PhaseBarrier barrier;
    if (!PhaseBarrier::Read(at, &barrier))
      Fault(warp, in, lane, "no mbarrier was initialised here");
    if (PhaseIsOver(at, parity[lane])) {
      over |= 1u << lane;
    } else {
      open = at;
      open_parity = parity[lane];
    }
  });
  if (open != nullptr && warp.groups.size() == 1) {
    warp.wait = {Wait::For::kPhase, 0, 0, open, open_parity, nullptr};
    return Flow::kWait;
  }
  warp.SetPredicate(warp.operand(in, 0), lanes, over);
  return open == nullptr ? Flow::kNext : Flow::kYield;
}

BlockBarrier& NamedBarrierOf(Warp& warp, const Instruction& in, int operand) {
  const uint32_t id = *std::as_const(warp).Cells(warp.operand(in, operand));
  if (id >= warp.block->barriers.size()) Fault(warp, in, 0, "a block has 16 barriers");
  return warp.block->barriers[id];
}

// Whoever arrives last lets all others go on; without a number all threads of the block take part.
void ArriveAtBarrier(Warp& warp, const Instruction& in, BlockBarrier* barrier, int threads) {
  const uint32_t expected =
      threads < 0 ? warp.block->alive_warps * kWarpLanes : static_cast<uint32_t>(threads);
  if (expected % kWarpLanes != 0) Fault(warp, in, 0, "a barrier takes whole warps");
  barrier->arrived += kWarpLanes;
  barrier->of_all = threads < 0;
  if (barrier->arrived > expected) Fault(warp, in, 0, "more threads than the barrier's number");
  if (barrier->arrived == expected) barrier->LetPass();
}

int Number(const Warp& warp, const Instruction& in, int operand) {
  if (operand >= in.operand_count) return -1;
  return static_cast<int>(*warp.Cells(warp.operand(in, operand)));
}

// bar.sync id [, threads], and with kReduce: bar.red.or.pred p, id, q.
template <bool kReduce>
Flow BarrierSync(Warp& warp, const Instruction& in, uint32_t lanes) {
  constexpr int kId = kReduce ? 1 : 0;
  BlockBarrier& barrier = NamedBarrierOf(warp, in, kId);
  const bool arrives = warp.wait.reason == Wait::For::kNothing;
  if (arrives) {
    const uint32_t generation = barrier.generation;
    if (kReduce && (warp.Predicate(warp.operand(in, 2)) & lanes) != 0) barrier.any = true;
    ArriveAtBarrier(warp, in, &barrier, kReduce ? -1 : Number(warp, in, 1));
    if (barrier.generation == generation) {
      warp.wait = {Wait::For::kBarrier,
                   static_cast<uint32_t>(&barrier - &warp.block->barriers[0]),
                   generation,
                   nullptr,
                   0,
                   nullptr};
      return Flow::kWait;
    }
  }
  warp.wait = {};
  if (kReduce) warp.SetPredicate(warp.operand(in, 0), lanes, barrier.last_any ? kAllLanes : 0);
  return Flow::kYield;
}

Flow BarrierArrive(Warp& warp, const Instruction& in, uint32_t) {
  ArriveAtBarrier(warp, in, &NamedBarrierOf(warp, in, 0), Number(warp, in, 1));
  return Flow::kNext;
}

ClusterBarrier& BarrierOfCluster(Warp& warp) {
  const Block& first = *warp.block->cluster[0];
  const LaunchShape& shape = warp.block->grid->shape;
  return warp.block->grid
      ->clusters[first.index[0] +
                 shape.grid[0] * (first.index[1] + shape.grid[1] * first.index[2])];
}

Flow ClusterArrive(Warp& warp, const Instruction& in, uint32_t) {
  ClusterBarrier& barrier = BarrierOfCluster(warp);
  uint32_t warps = 0;
  for (const Block* block : warp.block->cluster) warps += block->alive_warps;
  if (warp.cluster_arrived) Fault(warp, in, 0, "arrives twice");
  warp.cluster_arrived = true;
  warp.cluster_generation = barrier.generation;
  if (++barrier.arrived < warps) return Flow::kNext;
  barrier.arrived = 0;
  ++barrier.generation;
  return Flow::kNext;
}

Flow ClusterWait(Warp& warp, const Instruction& in, uint32_t) {
  if (!warp.cluster_arrived) Fault(warp, in, 0, "waits without having arrived");
  if (BarrierOfCluster(warp).generation == warp.cluster_generation) {
    warp.wait = {Wait::For::kCluster,    0, warp.cluster_generation, nullptr, 0,
                 &BarrierOfCluster(warp)};
    return Flow::kWait;
  }
  warp.wait = {};
  warp.cluster_arrived = false;
  return Flow::kYield;
}

// Addresses in other blocks of the cluster: kGeneric ones have 64 bits.
template <typename T>
Flow MapAddress(Warp& warp, const Instruction& in, uint32_t lanes) {
  const CellOf<T>* from = Source<T>(std::as_const(warp), warp.operand(in, 1));
  const uint32_t* rank = std::as_const(warp).Cells(warp.operand(in, 2));
  CellOf<T>* to = Target<T>(warp, warp.operand(in, 0));
  ForLanes(lanes, [&](int lane) {
    constexpr T kWithin = (T{1} << kRankShift) - 1;
    const T window = sizeof(T) == 8 ? static_cast<T>(kSharedWindow) : T{0};
    to[lane] = window | static_cast<T>(rank[lane] + 1) << kRankShift | (from[lane] & kWithin);
  });
  return Flow::kNext;
}

Flow Nothing(Warp&, const Instruction&, uint32_t) { return Flow::kNext; }
Flow Sleep(Warp&, const Instruction&, uint32_t) { return Flow::kYield; }
Flow Trap(Warp& warp, const Instruction& in, uint32_t lanes) {
  Fault(warp, in, FirstLane(lanes), "the kernel gives up");
}

Flow WaitForKernels(Warp& warp, const Instruction&, uint32_t) {
  warp.block->has_waited = true;
  return Flow::kNext;
}
Flow LetNextStart(Warp& warp, const Instruction&, uint32_t) {
  Grid& grid = *warp.block->grid;
  grid.lets_next = true;
  grid.lets_next_late |= warp.block->has_waited;
  return Flow::kNext;
}

constexpr Meeting kAll = Meeting::kWholeWarp;

constexpr NamedOperation kOperations[] = {
    {"mbarrier.init.shared::cta.b64", {Initialise, 2}},
    {"mbarrier.arrive.shared::cta.b64", {Arrive<true, false>, 2}},
    {"mbarrier.arrive.shared::cluster.b64", {Arrive<true, false>, 2}},
    {"mbarrier.arrive.expect_tx.shared::cta.b64", {Arrive<true, true>, 3}},
    {"mbarrier.expect_tx.relaxed.cta.shared::cta.b64", {Arrive<false, true>, 2}},
    {"mbarrier.try_wait.parity.shared::cta.b64", {TryWait, 3}},
    {"mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64", {TryWait, 3}},
    {"bar.sync", {BarrierSync<false>, -1, kAll}},
    {"bar.red.or.pred", {BarrierSync<true>, 3, kAll}},
    {"bar.arrive", {BarrierArrive, 2, kAll}},
    {"barrier.cluster.arrive.aligned", {ClusterArrive, 0, kAll}},
    {"barrier.cluster.arrive.relaxed.aligned", {ClusterArrive, 0, kAll}},
    {"barrier.cluster.arrive.release.aligned", {ClusterArrive, 0, kAll}},
    {"barrier.cluster.wait.aligned", {ClusterWait, 0, kAll}},
    {"barrier.cluster.wait.acquire.aligned", {ClusterWait, 0, kAll}},
    {"mapa.u64", {MapAddress<uint64_t>, 3}},
    {"mapa.shared::cluster.u32", {MapAddress<uint32_t>, 3}},
    {"fence.mbarrier_init.release.cluster", {Nothing, 0}},
    {"fence.proxy.async.shared::cta", {Nothing, 0}},
    {"fence.acq_rel.gpu", {Nothing, 0}},
    {"fence.acq_rel.cta", {Nothing, 0}},
    {"fence.sc.gpu", {Nothing, 0}},
    {"membar.gl", {Nothing, 0}},
    {"membar.cta", {Nothing, 0}},
    {"griddepcontrol.wait", {WaitForKernels, 0}},
    {"griddepcontrol.launch_dependents", {LetNextStart, 0}},
    {"setmaxnreg.inc.sync.aligned.u32", {Nothing, 1}},
    {"setmaxnreg.dec.sync.aligned.u32", {Nothing, 1}},
    {"prefetch.global.L2", {Nothing, 1}},
    {"nanosleep.u32", {Sleep, 1}},
    {"trap", {Trap, 0}},
};

}  // namespace

bool PhaseIsOver(const uint8_t* at, uint32_t parity) {
  PhaseBarrier barrier;
  PhaseBarrier::Read(at, &barrier);
  return barrier.phase != (parity & 1);
}

std::string DescribePhase(const uint8_t* at, uint32_t parity) {
  PhaseBarrier barrier;
  PhaseBarrier::Read(at, &barrier);
  return "phase " + std::to_string(barrier.phase) + ", waits for the end of phase " +
         std::to_string(parity & 1) + "; " + std::to_string(barrier.pending) + " of " +
         std::to_string(barrier.expected) + " arrivals and " + std::to_string(barrier.bytes) +
         " bytes are missing";
}

void CompleteBytes(uint8_t* at, uint64_t bytes) {
  PhaseBarrier barrier;
  if (!PhaseBarrier::Read(at, &barrier)) {
    throw KernelFault("a copy is counted where no mbarrier was initialised");
  }
  barrier.bytes -= static_cast<int32_t>(bytes);
  barrier.EndPhaseIfComplete();
  barrier.Write(at);
}

std::span<const NamedOperation> BarrierOperations() { return kOperations; }

}  // namespace fewbit::emulator
