// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011): a counter-based generator. The numbers of a (key, counter) pair do not depend on what was
// drawn before, so a request's tokens depend on its seed and positions alone.
#pragma once

#include <array>
#include <cstdint>

namespace fewbit {

using PhiloxBlock = std::array<uint32_t, 4>;

PhiloxBlock Philox4x32(const PhiloxBlock& counter, const std::array<uint32_t, 2>& key);

// Uniform in [0, 1) with 53 random bits: words 0 and 1 of the block with key `seed` and counter
// `position`.
double PhiloxUniform(uint64_t seed, uint64_t position);

}  // namespace fewbit
