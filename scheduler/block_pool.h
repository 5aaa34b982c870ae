// Who holds which block of the KV cache. It knows numbers only: the memory belongs to the runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/check.h"
#include "scheduler/ids.h"

namespace fewbit {

// Allocates nothing after construction. Thread rule: engine thread only.
class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks) : held_(static_cast<size_t>(num_blocks), 0) {
    free_.reserve(held_.size());
    for (int32_t i = num_blocks - 1; i >= 0; --i) free_.push_back(BlockId{i});
  }

  int32_t num_total() const { return static_cast<int32_t>(held_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_used() const { return num_total() - num_free(); }
  bool held(BlockId block) const { return held_[static_cast<size_t>(ToInt(block))] != 0; }

  // Fills `blocks` with distinct free blocks, the most recently freed first. REQUIRES:
  // blocks.size() <= num_free().
  void Allocate(std::span<BlockId> blocks) {
    FEWBIT_CHECK_LE(blocks.size(), free_.size());
    for (BlockId& block : blocks) {
      block = free_.back();
      free_.pop_back();
      held_[static_cast<size_t>(ToInt(block))] = 1;
    }
  }

  // REQUIRES: every block is held.
  void Free(std::span<const BlockId> blocks) {
    for (const BlockId block : blocks) {
      FEWBIT_CHECK(held(block)) << "block " << ToInt(block) << " freed twice";
      held_[static_cast<size_t>(ToInt(block))] = 0;
      free_.push_back(block);
    }
  }

 private:
  std::vector<BlockId> free_;  // a stack: what was freed last is still in the caches
  std::vector<uint8_t> held_;  // per block
};

}  // namespace fewbit
