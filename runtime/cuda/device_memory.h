// Memory of the device, and pinned memory of the host, with an owner: allocated at the start, never
// on the step path. CUDA errors of the start as a Status.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace fewbit {

// INTERNAL: what failed, and CUDA's word for it.
inline absl::Status FromCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

// One allocation of bytes. Movable; one thread at a time.
template <cudaError_t (*kAllocate)(void**, size_t), cudaError_t (*kFree)(void*)>
class CudaMemory {
 public:
  CudaMemory() = default;
  ~CudaMemory() { kFree(data_); }
  CudaMemory(CudaMemory&& other) noexcept { *this = std::move(other); }
  CudaMemory& operator=(CudaMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  // RESOURCE_EXHAUSTED names `what` and the bytes.
  static absl::StatusOr<CudaMemory> Allocate(size_t bytes, const char* what) {
    CudaMemory memory;
    void* data = nullptr;
    const cudaError_t error = bytes == 0 ? cudaSuccess : kAllocate(&data, bytes);
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ",
                                                       what, ": ", cudaGetErrorString(error)));
    }
    memory.data_ = static_cast<uint8_t*>(data);
    memory.bytes_ = bytes;
    return memory;
  }

  uint8_t* get() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

namespace cuda_internal {
inline cudaError_t AllocateDevice(void** data, size_t bytes) { return cudaMalloc(data, bytes); }
inline cudaError_t AllocatePinned(void** data, size_t bytes) {
  return cudaHostAlloc(data, bytes, cudaHostAllocDefault);
}
}  // namespace cuda_internal

using DeviceMemory = CudaMemory<cuda_internal::AllocateDevice, cudaFree>;
using PinnedMemory = CudaMemory<cuda_internal::AllocatePinned, cudaFreeHost>;

}  // namespace fewbit
