// One writer publishes a small struct, any thread reads a consistent copy, and neither waits for a
// lock: a sequence lock whose data are atomic words (H.-J. Boehm, "Can seqlocks get along with
// programming language memory models?", MSPC 2012).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fewbit {

// Write: one thread. Read: thread-safe; repeats while a Write (some nanoseconds) is under way.
template <typename T>
class Published {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Published(const T& value) { Write(value); }

  void Write(const T& value) {
    Words words{};
    std::memcpy(words.data(), &value, sizeof(T));
    const uint64_t version = version_.load(std::memory_order_relaxed);
    version_.store(version + 1, std::memory_order_relaxed);
    // Release: whoever sees a new word sees the odd version as well.
    for (size_t i = 0; i < kWords; ++i) words_[i].store(words[i], std::memory_order_release);
    version_.store(version + 2, std::memory_order_release);
  }

  T Read() const {
    Words words;
    uint64_t before = 0;
    do {
      before = version_.load(std::memory_order_acquire);
      for (size_t i = 0; i < kWords; ++i) words[i] = words_[i].load(std::memory_order_acquire);
    } while (before % 2 != 0 || before != version_.load(std::memory_order_relaxed));
    T value;
    std::memcpy(static_cast<void*>(&value), words.data(), sizeof(T));
    return value;
  }

 private:
  static constexpr size_t kWords = (sizeof(T) + sizeof(uint64_t) - 1) / sizeof(uint64_t);
  using Words = std::array<uint64_t, kWords>;

  std::atomic<uint64_t> version_{0};  // odd while a Write is under way
  std::array<std::atomic<uint64_t>, kWords> words_{};
};

}  // namespace fewbit
