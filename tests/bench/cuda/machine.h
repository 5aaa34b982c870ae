// What the CSV files of the GPU benches say about where and when.
#pragma once

#include <cuda_runtime_api.h>

#include <ctime>
#include <string>

#include "kernels/cuda/device_buffer.h"

namespace fewbit::bench {

inline std::string Today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", std::gmtime(&now));
  return text;
}

inline std::string GpuName() {
  cudaDeviceProp prop;
  cuda::CheckCuda(cudaGetDeviceProperties(&prop, 0), "device properties");
  return prop.name;
}

}  // namespace fewbit::bench
