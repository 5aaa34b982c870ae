// Numbers too many for memory: a file without a name that is mapped, so that only what is worked on
// is resident.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace fewbit {

// Thread rule: one owner.
class ScratchFloats {
 public:
  ScratchFloats() = default;
  // `count` zeros in a file in `directory` that has no name and goes with the object.
  // RESOURCE_EXHAUSTED when the disk is full, the codes of open and mmap otherwise.
  static absl::StatusOr<ScratchFloats> InDirectory(const std::string& directory, size_t count);
  // Likewise in memory; aborts if there is none.
  static ScratchFloats InMemory(size_t count);
  // A place for as many numbers as `other` has, where it has them.
  static absl::StatusOr<ScratchFloats> Like(const ScratchFloats& other);
  ~ScratchFloats();
  ScratchFloats(ScratchFloats&& other) noexcept { *this = std::move(other); }
  ScratchFloats& operator=(ScratchFloats&& other) noexcept;

  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  std::span<float> values() { return {data_, size_}; }
  std::span<const float> values() const { return {data_, size_}; }

  // [begin, begin + count) is not needed for now: its pages may leave memory, the file keeps them.
  void Release(size_t begin, size_t count);

  // They are not needed any more, and become zeros. In memory only; whole pages are given back.
  void Drop(size_t begin, size_t count);

 private:
  void Advise(size_t begin, size_t count, int advice);

  float* data_ = nullptr;
  size_t size_ = 0;
  std::string directory_;  // empty: in memory
};

}  // namespace fewbit
