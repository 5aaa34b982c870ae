// How the memory of a GPU is shared out at the start: weights and buffers take what they need, the
// KV cache what is left, and nothing is allocated afterwards. Host arithmetic only; works in every
// build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace fewbit {

// Left to the driver for what it takes later: captured graphs, kernels loaded on first use.
inline constexpr int64_t kDriverReserveBytes = int64_t{256} << 20;

// All in bytes unless said otherwise.
struct MemoryRequest {
  int64_t total = 0;         // of the GPU
  int64_t free = 0;          // before anything of ours is allocated
  double utilization = 0.9;  // share of `total` that may be in use once we are up
  int64_t weights = 0;
  int64_t buffers = 0;
  int64_t block = 0;                // one KV block, all layers
  int32_t blocks_per_sequence = 0;  // of a full context
  int32_t max_sequences = 0;
  int64_t kv = 0;          // asked for; 0: what is left
  int32_t num_blocks = 0;  // asked for; 0: from `kv`
};

// KV blocks, at least one sequence's and at most max_sequences full contexts. INVALID_ARGUMENT: kv
// or num_blocks is too small for one sequence. RESOURCE_EXHAUSTED: it does not fit; the message
// names what is needed for what and what is there.
absl::StatusOr<int32_t> PlanKvBlocks(const MemoryRequest& request);

// Token counts up to `most` among which are those that take the most memory of each kind, whatever
// way Select (kernels/cuda/linear.h) has for them: all small ones, `most`, and the last before each
// multiple of 128, where another way may begin.
std::vector<int32_t> MemorySampleCounts(int32_t most);

// Hands out parts of one allocation, each on a 256-byte boundary. With a null base it only counts,
// so that the same code measures and then places.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}

  // Room for `count` elements of T; null while counting.
  template <typename T>
  T* Take(size_t count) {
    const size_t at = used_;
    used_ = (used_ + count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 256;
  uint8_t* const base_;
  size_t used_ = 0;
};

}  // namespace fewbit
