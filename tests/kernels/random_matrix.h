// Random weight matrices of the three kinds for the kernel tests, in plain form and as the kernels
// read them, with every array that a kernel reads placed so that the byte behind its end is not
// mapped: a kernel that reads past an end crashes.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/quant_pack.h"

namespace fewbit::testing {

// `bytes` bytes that end where an unreadable page begins, aligned to `alignment` when bytes is a
// multiple of it.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t bytes);
  ~GuardedBytes();
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  uint8_t* data() const { return data_; }

 private:
  uint8_t* mapping_ = nullptr;
  size_t mapped_ = 0;
  uint8_t* data_ = nullptr;
};

template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t count) : bytes_(count * sizeof(T)), count_(count) {}
  explicit Guarded(const std::vector<T>& from) : Guarded(from.size()) {
    if (!from.empty()) std::memcpy(data(), from.data(), from.size() * sizeof(T));
  }
  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data()[i]; }

 private:
  GuardedBytes bytes_;
  size_t count_;
};

struct PackedOptions {
  int rows = 16;
  int cols = 128;
  double share4 = 0.25;  // of strips with 4 bits
  bool zero_points = false;
  double outlier_share = 0.0;  // of the weights in 2-bit strips
  int extra_padding = 0;       // chunks of nothing but padding strips, per width
};
std::string Describe(const PackedOptions& options);

quant::UnpackedMatrix RandomUnpacked(const PackedOptions& options, std::mt19937* rng);

// A matrix of any kind in guarded memory.
struct TestMatrix {
  std::string name;
  Matrix matrix;
  std::vector<std::shared_ptr<void>> memory;
  quant::UnpackedMatrix plain;  // packed only
};
TestMatrix RandomPacked(const PackedOptions& options, std::mt19937* rng);
TestMatrix RandomInt8(int rows, int cols, std::mt19937* rng);
TestMatrix RandomDense(DType dtype, int rows, int cols, std::mt19937* rng);

// [count] normal values, a few of them large and some exactly zero.
std::vector<float> RandomActivations(size_t count, std::mt19937* rng);

}  // namespace fewbit::testing
