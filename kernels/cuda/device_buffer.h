// Device memory with an owner, and a check for CUDA calls at start-up and in tools. Not for the
// token path, which allocates nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

namespace fewbit::cuda {

// Ends the process with what failed: after a CUDA error the context is of no use.
inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

// `count` elements of T in device memory. Movable; one thread at a time.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t count) : count_(count) {
    if (count > 0)
      CheckCuda(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceBuffer(const std::vector<T>& from) : DeviceBuffer(from.size()) {
    Upload(from.data(), from.size());
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }

  T* get() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

  void Upload(const T* from, size_t count) {
    if (count == 0) return;
    CheckCuda(cudaMemcpy(data_, from, count * sizeof(T), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<T> Download() const {
    std::vector<T> out(count_);
    if (count_ > 0) {
      CheckCuda(cudaMemcpy(out.data(), data_, bytes(), cudaMemcpyDeviceToHost), "download");
    }
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace fewbit::cuda
