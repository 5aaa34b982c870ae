// Host memory (mapped files, as a rule) to the device at the speed of the bus: several threads copy
// a piece into pinned memory while the piece before it is on its way.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/cuda/device_memory.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Thread rule: one caller at a time. Errors are INTERNAL with CUDA's words.
class Stager {
 public:
  // `team` outlives the object. RESOURCE_EXHAUSTED: no pinned or device memory.
  static absl::StatusOr<std::unique_ptr<Stager>> Create(ThreadTeam* team);
  ~Stager();

  cudaStream_t stream() const { return stream_; }

  // `bytes` as they are. `from` may go once this returns, `to` is complete after Finish.
  absl::Status Copy(const void* from, size_t bytes, void* to);

  // What is put into the pinned memory for units [first, first + count); called on every rank of
  // the team, which share the work.
  using Fill = std::function<void(int rank, int64_t first, int64_t count, uint8_t* pinned)>;
  // Enqueues on stream() what makes the final form of these units out of `scratch`, a 16-byte
  // aligned copy of what Fill wrote.
  using Rewrite = std::function<cudaError_t(int64_t first, int64_t count, const uint8_t* scratch)>;
  // `units` units of `unit_bytes` through scratch memory on the device. REQUIRES: unit_bytes <=
  // kSlotBytes.
  absl::Status Through(size_t unit_bytes, int64_t units, const Fill& fill, const Rewrite& rewrite);
  // The same with units that lie behind each other at `from`.
  absl::Status Through(const void* from, size_t unit_bytes, int64_t units, const Rewrite& rewrite);

  // Waits for all that was asked for.
  absl::Status Finish();

  static constexpr size_t kSlotBytes = size_t{16} << 20;

 private:
  static constexpr int kSlots = 3;
  struct Slot {
    PinnedMemory pinned;
    DeviceMemory scratch;
    cudaEvent_t done = nullptr;  // recorded behind the last use
  };

  explicit Stager(ThreadTeam* team) : team_(team) {}
  absl::Status NextSlot(Slot** slot);

  ThreadTeam* const team_;
  cudaStream_t stream_ = nullptr;
  std::array<Slot, kSlots> slots_;
  int next_ = 0;
};

}  // namespace fewbit
