// A fixed array on its own cache lines, zero at first: scratch that is allocated once and written
// by several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "scheduler/check.h"

namespace fewbit {

inline constexpr size_t kCacheLine = 64;

// Thread rule: the owner's.
template <typename T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size) : size_(size) {
    // Whole cache lines, so that no two buffers share one.
    const size_t bytes = (size * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    // Large ones come as zero pages from the system, which whoever writes them makes his.
    void* block = std::calloc(bytes + 2 * kCacheLine, 1);
    FEWBIT_CHECK(block != nullptr) << "no memory for " << bytes << " bytes";
    const auto address = reinterpret_cast<uintptr_t>(block);
    data_ = std::unique_ptr<T, Free>(
        reinterpret_cast<T*>((address + kCacheLine - 1) / kCacheLine * kCacheLine), Free{block});
  }

  T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void* block = nullptr;
    void operator()(T* /*data*/) const { std::free(block); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace fewbit
