// Tests that take long where the device is emulated (tests/emulator).
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

namespace fewbit::testing {

// How much of something a test does: `device`, or `emulated` where that is thousands of times
// slower and takes another order of blocks, warps and copies in every launch anyway.
inline int OnDevice(int device, int emulated) {
  cudaDeviceProp properties;
  const bool is_emulated = cudaGetDeviceProperties(&properties, 0) == cudaSuccess &&
                           std::string_view(properties.name).starts_with("emulated");
  return is_emulated ? emulated : device;
}

}  // namespace fewbit::testing
