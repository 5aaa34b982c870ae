#include "tests/emulator/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

namespace fewbit::emulator {

namespace {

constexpr size_t kPage = 4096;
// From here on zeroing gives pages back instead of touching them; above every allocation that is
// not made of pages of its own (memory.cc).
constexpr size_t kZeroByPages = size_t{64} << 20;
// Multiprocessors that share what a cluster may spread over; the last group may be smaller.
constexpr int kMultiprocessorsPerGroup = 16;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (*end == '\0') return value;
  std::fprintf(stderr, "emulator: %s=%s is not a number\n", name, text);
  std::exit(2);
}

// Figures of an H100 and of an A100.
constexpr Device kDevices[] = {
    {90, "90a", "emulated sm_90a", 132, 227 << 10, 228 << 10},
    {80, "80", "emulated sm_80", 108, 163 << 10, 164 << 10},
};

const Device& DeviceOf(uint64_t compute) {
  for (const Device& device : kDevices) {
    if (device.compute == compute) return device;
  }
  std::fprintf(stderr, "emulator: FEWBIT_EMULATOR_COMPUTE is 80 or 90\n");
  std::exit(2);
}

// Spreads the bits of a counter (the finalizer of SplitMix64).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t Product(const std::array<unsigned, 3>& a) { return uint64_t{a[0]} * a[1] * a[2]; }

// None, with a message, if an attribute is not known here.
std::optional<LaunchShape> ShapeOf(const cudaLaunchConfig_t& config) {
  LaunchShape shape;
  shape.grid = {config.gridDim.x, config.gridDim.y, config.gridDim.z};
  shape.block = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
  shape.dynamic_shared_bytes = config.dynamicSmemBytes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      const auto& cluster = attribute.val.clusterDim;
      shape.cluster = {cluster.x, cluster.y, cluster.z};
    } else if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization) {
      // The one passed over says whether kernels may overlap: MayOverlap().
      std::fprintf(stderr, "emulator: launch attribute %d is not known\n",
                   static_cast<int>(attribute.id));
      return std::nullopt;
    }
  }
  return shape;
}

// With the kernel before it in its stream (programmatic dependent launch).
bool MayOverlap(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      return config.attrs[i].val.programmaticStreamSerializationAllowed != 0;
    }
  }
  return false;
}

std::vector<std::byte> ArgumentBlock(const Kernel& kernel, void** arguments) {
  std::vector<std::byte> block;
  size_t i = 0;
  for (const Parameter& parameter : Parameters(kernel)) {
    block.resize(std::max(block.size(), parameter.offset + parameter.bytes));
    std::memcpy(block.data() + parameter.offset, arguments[i++], parameter.bytes);
  }
  return block;
}

}  // namespace

cudaError_t& LastError() {
  static thread_local cudaError_t error = cudaSuccess;
  return error;
}

cudaError_t Remember(cudaError_t error) {
  if (error == cudaSuccess && Runtime::Get().faulted()) error = cudaErrorIllegalAddress;
  if (error != cudaSuccess) LastError() = error;
  return error;
}

Runtime& Runtime::Get() {
  static Runtime* const runtime = new Runtime;
  return *runtime;
}

Runtime::Runtime()
    : device_(DeviceOf(FromEnvironment("FEWBIT_EMULATOR_COMPUTE", kDevices[0].compute))),
      multiprocessors_(static_cast<int>(
          FromEnvironment("FEWBIT_EMULATOR_MULTIPROCESSORS", device_.multiprocessors))),
      seed_(FromEnvironment("FEWBIT_EMULATOR_SEED", 1)),
      ptx_(std::string(FEWBIT_PTX_FOLDER "/") + device_.folder) {}

void Runtime::AddFunction(const void* function, const char* entry) {
  functions_[function].entry = entry;
}

Runtime::Function* Runtime::Find(const void* function) {
  const auto found = functions_.find(function);
  if (found == functions_.end()) {
    std::fprintf(stderr, "emulator: %p is not a kernel\n", function);
    return nullptr;
  }
  Function& f = found->second;
  if (f.kernel == nullptr) f.kernel = ptx_.Find(f.entry);
  return f.kernel == nullptr ? nullptr : &f;
}

Machine Runtime::NextMachine(uint64_t seed) const {
  return {multiprocessors_, device_.shared_per_multiprocessor, kThreadsPerMultiprocessor, seed,
          &memory_};
}

cudaError_t Runtime::SetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  Function* found = Find(function);
  if (found == nullptr) return cudaErrorInvalidDeviceFunction;
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize: {
      const size_t bytes = StaticSharedBytes(*found->kernel) + static_cast<size_t>(value);
      if (value < 0 || bytes > device_.shared_per_block) return cudaErrorInvalidValue;
      found->dynamic_limit = std::max(bytes, kSharedPerBlock);
      return cudaSuccess;
    }
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      found->largest_cluster = value != 0 ? kLargestCluster : kPortableCluster;
      return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
    default:
      std::fprintf(stderr, "emulator: function attribute %d is not known\n",
                   static_cast<int>(attribute));
      return cudaErrorInvalidValue;
  }
}

cudaError_t Runtime::CheckShape(const Function& function, const LaunchShape& shape) const {
  const auto& [grid, block, cluster, dynamic] = shape;
  const uint64_t threads = Product(block);
  if (threads == 0 || threads > kThreadsPerBlock || block[2] > 64) {
    return cudaErrorInvalidConfiguration;
  }
  if (Product(grid) == 0 || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (threads > MaxThreads(*function.kernel)) return cudaErrorInvalidValue;
  const uint64_t blocks = Product(cluster);
  if (blocks == 0 || blocks > static_cast<uint64_t>(function.largest_cluster)) {
    return cudaErrorInvalidClusterSize;
  }
  for (int i = 0; i < 3; ++i) {
    if (grid[i] % cluster[i] != 0) return cudaErrorInvalidConfiguration;
  }
  if (StaticSharedBytes(*function.kernel) + dynamic > function.dynamic_limit) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t Runtime::MaxActiveBlocks(const void* function, int threads, size_t dynamic_shared_bytes,
                                     int* count) {
  Function* found = Find(function);
  if (found == nullptr) return cudaErrorInvalidDeviceFunction;
  if (threads < 1) return cudaErrorInvalidValue;
  LaunchShape shape;
  shape.block[0] = static_cast<unsigned>(threads);
  shape.dynamic_shared_bytes = dynamic_shared_bytes;
  *count = CheckShape(*found, shape) != cudaSuccess
               ? 0
               : ResidentBlocks(*found->kernel, shape, NextMachine(seed_));
  return cudaSuccess;
}

cudaError_t Runtime::MaxActiveClusters(const void* function, const cudaLaunchConfig_t& config,
                                       int* count) {
  Function* found = Find(function);
  if (found == nullptr) return cudaErrorInvalidDeviceFunction;
  const std::optional<LaunchShape> shape = ShapeOf(config);
  if (!shape) return cudaErrorInvalidValue;
  const cudaError_t error = CheckShape(*found, *shape);
  if (error != cudaSuccess) return error;
  const int blocks = ResidentBlocks(*found->kernel, *shape, NextMachine(seed_));
  const int cluster = static_cast<int>(Product(shape->cluster));
  *count = 0;
  for (int first = 0; first < multiprocessors_; first += kMultiprocessorsPerGroup) {
    *count += std::min(kMultiprocessorsPerGroup, multiprocessors_ - first) * blocks / cluster;
  }
  return cudaSuccess;
}

cudaError_t Runtime::Launch(const void* function, const cudaLaunchConfig_t& config,
                            void** arguments) {
  Function* found = Find(function);
  if (found == nullptr) return cudaErrorInvalidDeviceFunction;
  const std::optional<LaunchShape> shape = ShapeOf(config);
  if (!shape) return cudaErrorInvalidValue;
  const cudaError_t error = CheckShape(*found, *shape);
  if (error != cudaSuccess) return error;
  if (ResidentBlocks(*found->kernel, *shape, NextMachine(seed_)) == 0) {
    return cudaErrorLaunchOutOfResources;
  }
  return streams_.Enqueue(
      config.stream, [this, kernel = found->kernel, shape = *shape, overlaps = MayOverlap(config),
                      block = ArgumentBlock(*found->kernel, arguments)] {
        return RunNow(*kernel, shape, overlaps, block);
      });
}

cudaError_t Runtime::RunNow(const Kernel& kernel, const LaunchShape& shape, bool overlaps,
                            const std::vector<std::byte>& arguments) {
  ++launches_;
  if (!overlaps) first_unfinished_ = launches_;
  Machine machine = NextMachine(Mix(seed_ + Mix(launches_)));
  machine.launch = launches_;
  machine.first_unfinished = first_unfinished_;
  try {
    switch (Run(kernel, shape, arguments, machine)) {
      case NextStarts::kAtTheEnd:
        first_unfinished_ = launches_ + 1;
        break;
      case NextStarts::kAfterWait:
        first_unfinished_ = launches_;
        break;
      case NextStarts::kBeforeWait:
        break;
    }
  } catch (const KernelFault& fault) {
    std::fprintf(stderr, "emulator: %s\n", fault.what());
    faulted_ = true;
  }
  return faulted_ ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t Runtime::Allocate(size_t bytes, void** address) {
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (bytes > kDeviceBytes - memory_.allocated_bytes()) return cudaErrorMemoryAllocation;
  *address = memory_.Allocate(bytes);
  return *address != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t Runtime::Free(void* address) {
  return address == nullptr || memory_.Free(address) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t Runtime::AllocateHost(size_t bytes, void** address) {
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  *address = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  if (*address == nullptr) return cudaErrorMemoryAllocation;
  memory_.Register(*address, bytes);
  pinned_.insert(*address);
  return cudaSuccess;
}

cudaError_t Runtime::FreeHost(void* address) {
  if (address == nullptr) return cudaSuccess;
  if (pinned_.erase(address) == 0) return cudaErrorInvalidValue;
  memory_.Unregister(address);
  std::free(address);
  return cudaSuccess;
}

bool Runtime::IsDevice(const void* address, size_t bytes) const {
  const auto at = reinterpret_cast<uint64_t>(address);
  return memory_.Contains(at, bytes) &&
         !pinned_.contains(reinterpret_cast<const void*>(memory_.AllocationAround(at).begin));
}

bool Runtime::IsHost(const void* address, size_t bytes) const {
  const auto at = reinterpret_cast<uint64_t>(address);
  const uint64_t begin = memory_.AllocationAround(at).begin;
  if (begin == 0) return address != nullptr;
  return pinned_.contains(reinterpret_cast<const void*>(begin)) && memory_.Contains(at, bytes);
}

cudaError_t Runtime::CopyNow(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) const {
  if (bytes == 0) return cudaSuccess;
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind == cudaMemcpyDefault) {
    to_device = IsDevice(to, 1);
    from_device = IsDevice(from, 1);
  }
  const bool to_good = to_device ? IsDevice(to, bytes) : IsHost(to, bytes);
  const bool from_good = from_device ? IsDevice(from, bytes) : IsHost(from, bytes);
  if (to_good && from_good) {
    std::memmove(to, from, bytes);
    return cudaSuccess;
  }
  std::fprintf(
      stderr, "emulator: copy of %zu bytes, kind %d: %s %p is not in one allocation of %s\n", bytes,
      static_cast<int>(kind), to_good ? "source" : "destination", to_good ? from : to,
      (to_good ? from_device : to_device) ? "the device" : "the host");
  return cudaErrorInvalidValue;
}

cudaError_t Runtime::Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                          cudaStream_t stream) {
  return streams_.Enqueue(stream, [this, to, from, bytes, kind] {
    AllEnded();
    return CopyNow(to, from, bytes, kind);
  });
}

cudaError_t Runtime::Set(void* to, int value, size_t bytes, cudaStream_t stream) {
  return streams_.Enqueue(stream, [this, to, value, bytes] {
    AllEnded();
    if (bytes == 0) return cudaSuccess;
    if (!IsDevice(to, bytes)) {
      std::fprintf(stderr, "emulator: memset of %zu bytes at %p: not in one allocation\n", bytes,
                   to);
      return cudaErrorInvalidValue;
    }
    if ((value & 0xff) != 0 || bytes < kZeroByPages) {
      std::memset(to, value, bytes);
      return cudaSuccess;
    }
    const auto begin = reinterpret_cast<uintptr_t>(to), end = begin + bytes;
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    std::memset(to, 0, first - begin);
    std::memset(reinterpret_cast<void*>(last), 0, end - last);
    if (madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) != 0) {
      std::memset(to, 0, bytes);
    }
    return cudaSuccess;
  });
}

}  // namespace fewbit::emulator
