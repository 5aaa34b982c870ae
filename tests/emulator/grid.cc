// Runs the blocks of a grid, as many at a time as the machine holds.
#include <algorithm>
#include <numeric>

#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Warp>> warps;
};

class GridRun {
 public:
  GridRun(const Kernel& kernel, const LaunchShape& shape, std::span<const std::byte> arguments,
          const Machine& machine) {
    grid_.kernel = &kernel;
    grid_.shape = shape;
    grid_.arguments = arguments;
    grid_.machine = &machine;
    grid_.random.seed(static_cast<uint32_t>(machine.seed));
    blocks_ = shape.grid[0] * shape.grid[1] * shape.grid[2];
    cluster_blocks_ = shape.cluster[0];
    grid_.clusters.resize(blocks_);
    most_clusters_ = static_cast<size_t>(
        std::max(1, machine.multiprocessors * ResidentBlocks(kernel, shape, machine) /
                        static_cast<int>(cluster_blocks_)));
  }

  NextStarts Run() {
    while (true) {
      while (clusters_.size() < most_clusters_ && next_block_ < blocks_) StartCluster();
      if (clusters_.empty()) break;
      if (!RunSome() && !FinishCopies(/*at_least_one=*/true)) ReportStandstill();
      FinishCopies(/*at_least_one=*/false);
      Retire();
    }
    if (!grid_.lets_next) return NextStarts::kAtTheEnd;
    return grid_.lets_next_late ? NextStarts::kAfterWait : NextStarts::kBeforeWait;
  }

 private:
  void StartCluster() {
    auto cluster = std::make_unique<Cluster>();
    const LaunchShape& shape = grid_.shape;
    const Kernel& kernel = *grid_.kernel;
    for (unsigned rank = 0; rank < cluster_blocks_; ++rank, ++next_block_) {
      auto block = std::make_unique<Block>();
      block->grid = &grid_;
      block->index = {next_block_ % shape.grid[0], next_block_ / shape.grid[0] % shape.grid[1],
                      next_block_ / shape.grid[0] / shape.grid[1]};
      block->rank = rank;
      // What was never written is NaN, or far from any sensible number.
      block->shared.assign(kernel.static_shared_bytes + shape.dynamic_shared_bytes, 0xff);
      const unsigned threads = shape.block[0] * shape.block[1] * shape.block[2];
      for (unsigned first = 0; first < threads; first += kWarpLanes) {
        cluster->warps.push_back(StartWarp(block.get(), first, threads));
      }
      block->alive_warps = (threads + kWarpLanes - 1) / kWarpLanes;
      cluster->blocks.push_back(std::move(block));
    }
    for (auto& block : cluster->blocks) {
      for (auto& other : cluster->blocks) block->cluster.push_back(other.get());
    }
    clusters_.push_back(std::move(cluster));
  }

  std::unique_ptr<Warp> StartWarp(Block* block, unsigned first, unsigned threads) {
    const Kernel& kernel = *grid_.kernel;
    auto warp = std::make_unique<Warp>();
    warp->block = block;
    warp->kernel = &kernel;
    warp->index = static_cast<int>(first / kWarpLanes);
    warp->constants = kernel.constants.data();
    if (free_registers_.empty()) {
      warp->registers = std::make_unique<uint32_t[]>(kernel.register_cells);
    } else {
      warp->registers = std::move(free_registers_.back());
      free_registers_.pop_back();
    }
    const unsigned lanes = std::min(threads - first, static_cast<unsigned>(kWarpLanes));
    warp->alive = lanes == kWarpLanes ? kAllLanes : (1u << lanes) - 1;
    warp->groups.push_back({0, warp->alive});
    const LaunchShape& shape = grid_.shape;
    for (size_t i = 0; i < kSpecialRegisters.size(); ++i) {
      if (kernel.special_cells[i] < 0) continue;
      for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
        const unsigned thread = first + lane;
        const std::array<unsigned, kSpecialRegisters.size()> values = {
            thread % shape.block[0],
            thread / shape.block[0] % shape.block[1],
            thread / shape.block[0] / shape.block[1],
            shape.block[0],
            shape.block[1],
            block->index[0],
            block->index[1],
            shape.grid[0],
            shape.grid[1],
            block->rank,
            cluster_blocks_,
            lane};
        warp->registers[static_cast<size_t>(kernel.special_cells[i]) + lane] = values[i];
      }
    }
    return warp;
  }

  static bool IsReady(const Warp& warp) {
    if (warp.alive == 0) return false;
    switch (warp.wait.reason) {
      case Wait::For::kNothing:
        return true;
      case Wait::For::kBarrier:
        return warp.block->barriers[warp.wait.id].generation != warp.wait.generation;
      case Wait::For::kCluster:
        return warp.wait.cluster->generation != warp.wait.generation;
      case Wait::For::kPhase:
        return PhaseIsOver(warp.wait.phase, warp.wait.parity);
    }
    return true;
  }

  // Lets every warp, in an order that changes, run for a while, short or long. False if none could.
  bool RunSome() {
    bool has_run = false;
    const size_t first = grid_.Random(static_cast<uint32_t>(clusters_.size()));
    for (size_t i = 0; i < clusters_.size(); ++i) {
      Cluster& cluster = *clusters_[(first + i) % clusters_.size()];
      const size_t first_warp = grid_.Random(static_cast<uint32_t>(cluster.warps.size()));
      for (size_t j = 0; j < cluster.warps.size(); ++j) {
        Warp& warp = *cluster.warps[(first_warp + j) % cluster.warps.size()];
        if (!IsReady(warp)) continue;
        ++grid_.tick;
        has_run |= warp.Run(1 << grid_.Random(12));
      }
    }
    return has_run;
  }

  bool FinishCopies(bool at_least_one) {
    auto& copies = grid_.copies;
    if (copies.empty()) return false;
    if (at_least_one) {
      uint64_t earliest = ~uint64_t{0};
      for (const auto& copy : copies) earliest = std::min(earliest, copy->due);
      grid_.tick = std::max(grid_.tick, earliest);
    }
    for (const auto& copy : copies) {
      if (copy->due <= grid_.tick) copy->Finish();
    }
    std::erase_if(copies, [&](const auto& copy) { return copy->due <= grid_.tick; });
    return true;
  }

  void Retire() {
    std::erase_if(clusters_, [&](const std::unique_ptr<Cluster>& cluster) {
      for (const auto& block : cluster->blocks) {
        if (block->alive_warps != 0) return false;
      }
      for (const auto& block : cluster->blocks) CheckNoCopyInto(*block);
      for (auto& warp : cluster->warps) {
        if (!warp->copies.empty() || !warp->products.empty()) {
          Fault(*warp, grid_.kernel->code.back(), 0, "ends while copies or products are under way");
        }
        free_registers_.push_back(std::move(warp->registers));
      }
      return true;
    });
  }

  void CheckNoCopyInto(const Block& block) const {
    const uint8_t* begin = block.shared.data();
    for (const auto& copy : grid_.copies) {
      for (const uint8_t* barrier : copy->barriers) {
        if (barrier < begin || barrier >= begin + block.shared.size()) continue;
        throw KernelFault(grid_.kernel->name +
                          ": a block ends while a copy into its shared memory is under way");
      }
    }
  }

  [[noreturn]] void ReportStandstill() {
    std::string text = grid_.kernel->name + ": all wait:";
    int shown = 0;
    for (const auto& cluster : clusters_) {
      for (const auto& warp : cluster->warps) {
        if (warp->alive == 0 || shown++ > 40) continue;
        const Instruction& in = grid_.kernel->code[warp->groups[warp->current].pc];
        const Statement& statement = grid_.kernel->statements[in.text];
        text += "\n  block " + std::to_string(warp->block->index[0]) + ", warp " +
                std::to_string(warp->index) + ", line " + std::to_string(statement.line) + ": " +
                statement.text;
        if (warp->wait.reason == Wait::For::kPhase) {
          text += "\n    " + DescribePhase(warp->wait.phase, warp->wait.parity);
        }
      }
    }
    throw KernelFault(text);
  }

  Grid grid_;
  unsigned blocks_, cluster_blocks_, next_block_ = 0;
  size_t most_clusters_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<std::unique_ptr<uint32_t[]>> free_registers_;
};

}  // namespace

int ResidentBlocks(const Kernel& kernel, const LaunchShape& shape, const Machine& machine) {
  // Every block takes a kibibyte of the system, too.
  const size_t bytes = kernel.static_shared_bytes + shape.dynamic_shared_bytes + 1024;
  const int threads = static_cast<int>(shape.block[0] * shape.block[1] * shape.block[2]);
  return std::min({static_cast<int>(machine.shared_bytes / bytes), machine.threads / threads, 32});
}

NextStarts Run(const Kernel& kernel, const LaunchShape& shape, std::span<const std::byte> arguments,
               const Machine& machine) {
  return GridRun(kernel, shape, arguments, machine).Run();
}

}  // namespace fewbit::emulator
