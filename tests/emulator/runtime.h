// State of the emulated CUDA runtime: one device, its memory, and the kernels that the program
// brings. cudart*.cc put the C functions of the CUDA runtime on top of it.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/emulator/emulator.h"
#include "tests/emulator/ptx_folder.h"
#include "tests/emulator/streams.h"

namespace fewbit::emulator {

// What is emulated, chosen by FEWBIT_EMULATOR_COMPUTE.
struct Device {
  uint64_t compute;  // capability, 10 major + minor
  const char *folder, *name;
  uint64_t multiprocessors;  // FEWBIT_EMULATOR_MULTIPROCESSORS may say another number
  size_t shared_per_block, shared_per_multiprocessor;  // bytes
};

inline constexpr size_t kDeviceBytes = size_t{8} << 30;
inline constexpr size_t kSharedPerBlock = 48 << 10;  // without asking for more
inline constexpr size_t kReservedShared = 1 << 10;
inline constexpr int kThreadsPerBlock = 1024, kThreadsPerMultiprocessor = 2048;
inline constexpr int kPortableCluster = 8, kLargestCluster = 16;

// What this thread's last failed call returned; cudaSuccess if none failed.
cudaError_t& LastError();
// Keeps `error` for cudaGetLastError if it is one; success becomes an error on a device that
// faulted.
cudaError_t Remember(cudaError_t error);

// Every function but Get() and lock() needs the lock held.
class Runtime {
 public:
  // Never destroyed: the program's static objects may use it until the very end.
  static Runtime& Get();
  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }

  // `function` is what the host program calls the kernel `entry` by.
  void AddFunction(const void* function, const char* entry);

  cudaError_t SetAttribute(const void* function, cudaFuncAttribute attribute, int value);
  cudaError_t MaxActiveClusters(const void* function, const cudaLaunchConfig_t& config, int* count);
  cudaError_t MaxActiveBlocks(const void* function, int threads, size_t dynamic_shared_bytes,
                              int* count);
  cudaError_t Launch(const void* function, const cudaLaunchConfig_t& config, void** arguments);

  cudaError_t Allocate(size_t bytes, void** address);
  cudaError_t Free(void* address);
  cudaError_t AllocateHost(size_t bytes, void** address);
  cudaError_t FreeHost(void* address);
  // Work of a stream; addresses are checked when it runs.
  cudaError_t Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                   cudaStream_t stream);
  cudaError_t Set(void* to, int value, size_t bytes, cudaStream_t stream);

  // Whoever comes next, or waits on the host, finds every launch so far ended.
  void AllEnded() { first_unfinished_ = launches_ + 1; }

  // After a kernel's fault every call fails.
  bool faulted() const { return faulted_; }

  Streams& streams() { return streams_; }
  const GlobalMemory& memory() const { return memory_; }
  const Device& device() const { return device_; }
  int multiprocessors() const { return multiprocessors_; }

 private:
  struct Function {
    std::string entry;
    const Kernel* kernel = nullptr;          // null: not decoded yet
    size_t dynamic_limit = kSharedPerBlock;  // bytes of static and dynamic shared memory
    int largest_cluster = kPortableCluster;
  };

  Runtime();

  // Null, with a message, if the program brought no such kernel.
  Function* Find(const void* function);
  cudaError_t CheckShape(const Function& function, const LaunchShape& shape) const;
  Machine NextMachine(uint64_t seed) const;
  cudaError_t RunNow(const Kernel& kernel, const LaunchShape& shape, bool overlaps,
                     const std::vector<std::byte>& arguments);
  bool IsDevice(const void* address, size_t bytes) const;
  bool IsHost(const void* address, size_t bytes) const;
  cudaError_t CopyNow(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) const;

  std::mutex mutex_;
  std::atomic<bool> faulted_ = false;
  const Device& device_;
  const int multiprocessors_;
  const uint64_t seed_;
  PtxFolder ptx_;
  uint32_t launches_ = 0;
  uint32_t first_unfinished_ = 1;  // see Machine
  GlobalMemory memory_;
  std::set<const void*> pinned_;
  Streams streams_;
  std::map<const void*, Function> functions_;
};

}  // namespace fewbit::emulator
