// Asynchronous copies: PTX ISA, cp.async, cp.async.bulk, st.async. What is copied is read, and
// written, at any time between the instruction and the moment that somebody who waits may know of
// it.
#include <algorithm>

#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

constexpr uint32_t kLongestDelay = 4000;  // ticks

uint8_t* SharedPlace(Warp& warp, const Instruction& in, int operand, int lane, size_t bytes,
                     size_t alignment, uint32_t rank_bits = 0) {
  const Operand& o = warp.operand(in, operand);
  const uint32_t at = std::as_const(warp).Cells(o)[lane] + static_cast<uint32_t>(o.offset);
  return LocateShared(warp, in, lane, at | rank_bits << kRankShift, bytes, alignment);
}

// Puts a copy under way. Most are quick; some take long.
void Start(Grid* grid, std::unique_ptr<Copy> copy) {
  const uint32_t longest = grid->Random(8) == 0 ? kLongestDelay : kLongestDelay / 40;
  copy->due = grid->tick + grid->Random(longest);
  copy->read_late = grid->Random(2) == 0;
  const bool write_early = grid->Random(2) == 0;
  if (write_early) {
    for (uint8_t* to : copy->to) std::memcpy(to, copy->from, copy->size);
    copy->to.clear();
  } else if (!copy->read_late) {
    copy->bytes.assign(copy->from, copy->from + copy->size);
  }
  grid->copies.push_back(std::move(copy));
}

// [to], [from], bytes, [barrier] (, mask of blocks) (, policy of the cache)
template <bool kMulticast>
Flow BulkCopy(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t* bytes = std::as_const(warp).Cells(warp.operand(in, 2));
  const Operand& from = warp.operand(in, 1);
  ForLanes(lanes, [&](int lane) {
    const size_t size = bytes[lane];
    if (size % 16 != 0) Fault(warp, in, lane, "bulk copies take multiples of 16 bytes");
    auto copy = std::make_unique<Copy>();
    copy->size = size;
    copy->from = Locate(warp, in, lane, Space::kGlobal,
                        std::as_const(warp).Pairs(from)[lane] + static_cast<uint64_t>(from.offset),
                        size, 16);
    CheckRead(warp, in, lane, copy->from, size);
    const uint32_t blocks =
        kMulticast ? std::as_const(warp).Cells(warp.operand(in, 4))[lane] & 0xffff : 1;
    for (uint32_t rank = 0; rank < 16; ++rank) {
      if ((blocks >> rank & 1) == 0) continue;
      const uint32_t bits = kMulticast ? rank + 1 : 0;
      copy->to.push_back(SharedPlace(warp, in, 0, lane, size, 16, bits));
      copy->barriers.push_back(SharedPlace(warp, in, 3, lane, 8, 8, bits));
    }
    Start(warp.block->grid, std::move(copy));
  });
  return Flow::kNext;
}

// [to], {4 floats}, [barrier], all in the shared memory of any block of the cluster.
Flow StoreAsync(Warp& warp, const Instruction& in, uint32_t lanes) {
  ForLanes(lanes, [&](int lane) {
    auto copy = std::make_unique<Copy>();
    copy->size = 16;
    copy->bytes.resize(16);
    for (int i = 0; i < 4; ++i) {
      std::memcpy(copy->bytes.data() + 4 * i,
                  &std::as_const(warp).Cells(warp.operand(in, 1 + i))[lane], 4);
    }
    copy->from = copy->bytes.data();
    copy->to.push_back(SharedPlace(warp, in, 0, lane, 16, 16));
    copy->barriers.push_back(SharedPlace(warp, in, 5, lane, 8, 8));
    Start(warp.block->grid, std::move(copy));
  });
  return Flow::kNext;
}

// [to], [from], bytes (, bytes that are read; the rest are zeros)
Flow LaneCopies(Warp& warp, const Instruction& in, uint32_t lanes) {
  const bool late = warp.block->grid->Random(2) == 0;
  const Operand& from = warp.operand(in, 1);
  const auto cells = [&](int i) { return std::as_const(warp).Cells(warp.operand(in, i)); };
  ForLanes(lanes, [&](int lane) {
    const auto bytes = static_cast<uint8_t>(cells(2)[lane]);
    LaneCopy copy{warp.copy_group[lane], lane, nullptr, nullptr, bytes, bytes};
    if (in.operand_count > 3) copy.read_bytes = static_cast<uint8_t>(cells(3)[lane]);
    copy.to = SharedPlace(warp, in, 0, lane, bytes, bytes);
    if (copy.read_bytes > 0) {
      copy.from = Locate(warp, in, lane, Space::kGlobal,
                         std::as_const(warp).Pairs(from)[lane] + static_cast<uint64_t>(from.offset),
                         copy.read_bytes, 1);
      CheckRead(warp, in, lane, copy.from, copy.read_bytes);
    }
    if (late) {
      warp.copies.push_back(copy);
    } else {
      copy.Execute();
    }
  });
  return Flow::kNext;
}

Flow CommitCopies(Warp& warp, const Instruction&, uint32_t lanes) {
  ForLanes(lanes, [&](int lane) { ++warp.copy_group[lane]; });
  return Flow::kNext;
}

template <bool kAll>
Flow WaitForCopies(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t pending = kAll ? 0 : *std::as_const(warp).Cells(warp.operand(in, 0));
  const auto is_waited_for = [&](const LaneCopy& copy) {
    return (lanes >> copy.lane & 1) != 0 &&
           (kAll || copy.group + pending < warp.copy_group[copy.lane]);
  };
  for (const LaneCopy& copy : warp.copies) {
    if (is_waited_for(copy)) copy.Execute();
  }
  std::erase_if(warp.copies, is_waited_for);
  return Flow::kNext;
}

constexpr NamedOperation kOperations[] = {
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", {BulkCopy<false>, 4}},
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint",
     {BulkCopy<false>, 5}},
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster",
     {BulkCopy<true>, 5}},
    {"st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32", {StoreAsync, 6}},
    {"cp.async.cg.shared.global", {LaneCopies}},
    {"cp.async.ca.shared.global", {LaneCopies}},
    {"cp.async.commit_group", {CommitCopies, 0}},
    {"cp.async.wait_group", {WaitForCopies<false>, 1}},
    {"cp.async.wait_all", {WaitForCopies<true>, 0}},
};

}  // namespace

void LaneCopy::Execute() const {
  std::memset(to, 0, bytes);
  if (read_bytes > 0) std::memcpy(to, from, read_bytes);
}

void Copy::Finish() {
  const uint8_t* source = bytes.empty() ? from : bytes.data();
  for (uint8_t* place : to) std::memcpy(place, source, size);
  for (uint8_t* barrier : barriers) CompleteBytes(barrier, size);
}

std::span<const NamedOperation> CopyOperations() { return kOperations; }

}  // namespace fewbit::emulator
