// Runs a warp: which of its lanes go on, and one instruction after the other.
#include "tests/emulator/warp.h"

#include <algorithm>

namespace fewbit::emulator {
namespace {

// The lanes of a member mask, or all, that have not exited.
uint32_t LanesToMeet(const Warp& warp, const Instruction& in, uint32_t lanes) {
  if (in.meeting == Meeting::kWholeWarp) return warp.alive;
  const Operand& mask = warp.operand(in, in.operand_count - 1);
  return warp.Cells(mask)[FirstLane(lanes)] & warp.alive;
}

}  // namespace

void Fault(const Warp& warp, const Instruction& in, int lane, const std::string& message) {
  const Kernel& kernel = *warp.kernel;
  const Statement& statement = kernel.statements[in.text];
  const Block& block = *warp.block;
  throw KernelFault(kernel.name + "\n  block (" + std::to_string(block.index[0]) + ", " +
                    std::to_string(block.index[1]) + ", " + std::to_string(block.index[2]) +
                    "), warp " + std::to_string(warp.index) + ", lane " + std::to_string(lane) +
                    ", line " + std::to_string(statement.line) + ": " + statement.text + "\n  " +
                    message);
}

void Warp::ChooseGroup() {
  for (size_t i = 0; i < groups.size(); ++i) {
    for (size_t j = groups.size() - 1; j > i; --j) {
      if (groups[j].pc != groups[i].pc) continue;
      groups[i].lanes |= groups[j].lanes;
      groups[i].waits = false;
      groups.erase(groups.begin() + static_cast<long>(j));
    }
  }
  if (groups.size() <= 1) {
    current = 0;
    return;
  }
  const uint32_t any = block->grid->Random(8) == 0
                           ? block->grid->Random(static_cast<uint32_t>(groups.size()))
                           : kAllLanes;
  current = groups.size();
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].waits) continue;
    if (current == groups.size() || i == any ||
        (groups[i].pc < groups[current].pc && current != any)) {
      current = i;
    }
  }
  if (current < groups.size()) return;
  const Instruction& in = kernel->code[groups[0].pc];
  Fault(*this, in, FirstLane(groups[0].lanes), "lanes wait for others that wait elsewhere");
}

void Warp::Exit(uint32_t lanes) {
  alive &= ~lanes;
  LaneGroup& group = groups[current];
  group.lanes &= ~lanes;
  ++group.pc;
  if (group.lanes == 0) groups.erase(groups.begin() + static_cast<long>(current));
  // Those who wait may have waited for the lanes that are gone.
  for (LaneGroup& other : groups) other.waits = false;
  if (alive != 0) {
    ChooseGroup();
    return;
  }
  --block->alive_warps;
  for (BlockBarrier& barrier : block->barriers) {
    if (barrier.of_all && barrier.arrived > 0 &&
        barrier.arrived == block->alive_warps * kWarpLanes) {
      barrier.LetPass();
    }
  }
}

void Warp::Branch(const Instruction& in, uint32_t taken) {
  LaneGroup& group = groups[current];
  const uint32_t rest = group.lanes & ~taken;
  if (rest == 0) {
    group.pc = in.target;
  } else {
    ++group.pc;
    if (taken == 0) return;
    group.lanes = rest;
    groups.push_back({in.target, taken});
  }
  if (groups.size() > 1) ChooseGroup();
}

bool Warp::Run(int steps) {
  bool has_run = false;
  if (wait.reason == Wait::For::kPhase) wait = {};
  while (steps-- > 0 && alive != 0) {
    LaneGroup& group = groups[current];
    const Instruction& in = kernel->code[group.pc];
    uint32_t lanes = group.lanes;
    if (in.guard >= 0) {
      const uint32_t guard = registers[static_cast<size_t>(in.guard)];
      lanes &= in.guard_negated ? ~guard : guard;
    }
    if (in.kind == Kind::kBranch) {
      Branch(in, lanes);
      has_run = true;
      continue;
    }
    if (in.kind == Kind::kExit) {
      Exit(lanes);
      has_run = true;
      continue;
    }
    if (lanes != 0) {
      if (in.meeting != Meeting::kNone && (LanesToMeet(*this, in, lanes) & ~lanes) != 0) {
        group.waits = true;
        has_run = true;
        ChooseGroup();
        continue;
      }
      const Flow flow = in.handler(*this, in, lanes);
      if (flow == Flow::kWait) return has_run;
      if (flow == Flow::kYield) steps = 0;
    }
    has_run = true;
    ++group.pc;
    if (groups.size() > 1 && (kernel->code[group.pc].is_label || steps == 0)) ChooseGroup();
  }
  return has_run;
}

}  // namespace fewbit::emulator
