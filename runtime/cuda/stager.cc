#include "runtime/cuda/stager.h"

#include <algorithm>
#include <cstring>

#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr char kWhat[] = "uploading weights";

// A rank's part of `bytes`, cut at pages so that no two threads fault on the same one.
void CopyShare(const uint8_t* from, size_t bytes, int rank, int ranks, uint8_t* to) {
  constexpr size_t kPage = 4096;
  const size_t pages = (bytes + kPage - 1) / kPage;
  const size_t begin = std::min(bytes, pages * rank / ranks * kPage);
  const size_t end = std::min(bytes, pages * (rank + 1) / ranks * kPage);
  if (begin < end) std::memcpy(to + begin, from + begin, end - begin);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Stager>> Stager::Create(ThreadTeam* team) {
  std::unique_ptr<Stager> stager(new Stager(team));
  absl::Status status =
      FromCuda(cudaStreamCreateWithFlags(&stager->stream_, cudaStreamNonBlocking), kWhat);
  if (!status.ok()) return status;
  for (Slot& slot : stager->slots_) {
    auto pinned = PinnedMemory::Allocate(kSlotBytes, "uploading weights (pinned)");
    if (!pinned.ok()) return pinned.status();
    slot.pinned = *std::move(pinned);
    auto scratch = DeviceMemory::Allocate(kSlotBytes, "uploading weights");
    if (!scratch.ok()) return scratch.status();
    slot.scratch = *std::move(scratch);
    const unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync;
    status = FromCuda(cudaEventCreateWithFlags(&slot.done, flags), kWhat);
    if (!status.ok()) return status;
  }
  return stager;
}

Stager::~Stager() {
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  for (const Slot& slot : slots_) {
    if (slot.done != nullptr) cudaEventDestroy(slot.done);
  }
}

absl::Status Stager::NextSlot(Slot** slot) {
  *slot = &slots_[next_];
  next_ = (next_ + 1) % kSlots;
  return FromCuda(cudaEventSynchronize((*slot)->done), kWhat);
}

absl::Status Stager::Copy(const void* from, size_t bytes, void* to) {
  for (size_t begin = 0; begin < bytes; begin += kSlotBytes) {
    const size_t count = std::min(kSlotBytes, bytes - begin);
    const uint8_t* part = static_cast<const uint8_t*>(from) + begin;
    Slot* slot = nullptr;
    if (absl::Status status = NextSlot(&slot); !status.ok()) return status;
    uint8_t* const pinned = slot->pinned.get();
    constexpr size_t kWorthSharing = 256 << 10;
    if (count < kWorthSharing) {
      std::memcpy(pinned, part, count);
    } else {
      team_->Run([&](int rank) { CopyShare(part, count, rank, team_->size(), pinned); });
    }
    absl::Status status = FromCuda(cudaMemcpyAsync(static_cast<uint8_t*>(to) + begin, pinned, count,
                                                   cudaMemcpyHostToDevice, stream_),
                                   kWhat);
    if (!status.ok()) return status;
    status = FromCuda(cudaEventRecord(slot->done, stream_), kWhat);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Stager::Through(size_t unit_bytes, int64_t units, const Fill& fill,
                             const Rewrite& rewrite) {
  FEWBIT_CHECK(unit_bytes <= kSlotBytes) << unit_bytes << " bytes in a slot of " << kSlotBytes;
  const int64_t most = static_cast<int64_t>(kSlotBytes / unit_bytes);
  for (int64_t first = 0; first < units; first += most) {
    const int64_t count = std::min(most, units - first);
    Slot* slot = nullptr;
    if (absl::Status status = NextSlot(&slot); !status.ok()) return status;
    uint8_t* const pinned = slot->pinned.get();
    team_->Run([&](int rank) { fill(rank, first, count, pinned); });
    absl::Status status = FromCuda(cudaMemcpyAsync(slot->scratch.get(), pinned, count * unit_bytes,
                                                   cudaMemcpyHostToDevice, stream_),
                                   kWhat);
    if (!status.ok()) return status;
    status = FromCuda(rewrite(first, count, slot->scratch.get()), kWhat);
    if (!status.ok()) return status;
    status = FromCuda(cudaEventRecord(slot->done, stream_), kWhat);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Stager::Through(const void* from, size_t unit_bytes, int64_t units,
                             const Rewrite& rewrite) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  const Fill fill = [&](int rank, int64_t first, int64_t count, uint8_t* pinned) {
    CopyShare(bytes + first * unit_bytes, count * unit_bytes, rank, team_->size(), pinned);
  };
  return Through(unit_bytes, units, fill, rewrite);
}

absl::Status Stager::Finish() { return FromCuda(cudaStreamSynchronize(stream_), "copying"); }

}  // namespace fewbit
