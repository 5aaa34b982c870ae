// Random values on the device in any stored type, and outputs in poisoned memory.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/device_buffer.h"
#include "kernels/matrix.h"
#include "kernels/quant_pack.h"
#include "tests/gpu/gpu_linear.h"

namespace fewbit::testing {

inline std::vector<float> NormalValues(size_t count, float scale, std::mt19937* rng) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(count);
  for (float& x : out) x = normal(*rng);
  return out;
}

// `x` as it is stored in `type`; the values should have been rounded to it (RoundTo).
inline std::vector<uint8_t> StoredAs(DType type, const std::vector<float>& x) {
  const size_t width = type == DType::kF32 ? 4 : 2;
  std::vector<uint8_t> bytes(x.size() * width);
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &x[i], sizeof(bits));
    if (type == DType::kF16) bits = quant::FloatToHalf(x[i]);
    if (type == DType::kBF16) bits >>= 16;
    std::memcpy(bytes.data() + i * width, &bits, width);
  }
  return bytes;
}

// Device memory full of 0xFF bytes: NaN in every type, -1 as an integer.
template <typename T>
cuda::DeviceBuffer<T> Poisoned(size_t count) {
  cuda::DeviceBuffer<T> buffer(count);
  cuda::CheckCuda(cudaMemset(buffer.get(), 0xFF, buffer.bytes()), "poison");
  return buffer;
}

// `count` values of `type` as floats; what was not written is NaN.
inline std::vector<float> ReadAs(DType type, const void* device, size_t count) {
  const size_t width = type == DType::kF32 ? 4 : 2;
  std::vector<uint8_t> bytes(count * width);
  cuda::CheckCuda(cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost), "read");
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, bytes.data() + i * width, sizeof(half));
    if (type == DType::kF32) {
      std::memcpy(&out[i], bytes.data() + i * width, sizeof(float));
    } else {
      out[i] = FromBits(type, half);
    }
  }
  return out;
}

}  // namespace fewbit::testing
