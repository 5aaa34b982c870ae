// The generator of runtime/philox.h on the device: Philox4x32-10 (Salmon et al., SC 2011).
#pragma once

#include <cstdint>

namespace fewbit::cuda {

// Uniform in [0, 1) with 53 random bits, key `seed` and counter `position`.
__device__ inline double PhiloxUniform(uint64_t seed, uint64_t position) {
  uint32_t x0 = static_cast<uint32_t>(position), x1 = static_cast<uint32_t>(position >> 32);
  uint32_t x2 = 0, x3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * x0, b = uint64_t{0xCD9E8D57} * x2;
    x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ k0;
    x1 = static_cast<uint32_t>(b);
    x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ k1;
    x3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  const uint64_t bits = static_cast<uint64_t>(x0) << 32 | x1;
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace fewbit::cuda
