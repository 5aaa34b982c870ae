// Runs the GPU kernels on a CPU, from the PTX that nvcc wrote for them: for tests on machines that
// have a toolkit and no GPU. Meant to find wrong results and wrong order, not to be fast: every
// order of blocks, warps, diverged lanes and asynchronous copies that the PTX ISA allows may be
// taken, chosen by a seed; accesses outside of an allocation stop the program.
//
// Semantics follow NVIDIA's "Parallel Thread Execution ISA", version 9.0; section names stand
// beside the code. What is not understood is an error when the kernel is loaded, never a guess.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fewbit::emulator {

// Bytes of the device that belong together.
struct MemoryRange {
  uint64_t begin = 0;
  size_t bytes = 0;  // 0: none
  // By word of 4 bytes: the number of the launch that wrote it last, 0: none.
  uint32_t* writers = nullptr;
};

// Allocations of the emulated device. Addresses are those of this process.
class GlobalMemory {
 public:
  GlobalMemory() = default;
  ~GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;

  // `bytes` at a 256-byte boundary, with bytes around them that belong to nobody; null if there is
  // no memory. The content is not zero: 0xa5 everywhere, so that what was never written shows.
  void* Allocate(size_t bytes);
  // False if `address` is not the begin of an allocation.
  bool Free(void* address);
  // Memory of the host that kernels may use, too (pinned memory). Not owned.
  void Register(const void* address, size_t bytes);
  void Unregister(const void* address);

  // Whether [address, address + bytes) lies in one allocation.
  bool Contains(uint64_t address, size_t bytes) const;
  // The one that `address` lies in.
  MemoryRange AllocationAround(uint64_t address) const;
  // Where an address lies, for messages.
  std::string Describe(uint64_t address) const;
  size_t allocated_bytes() const { return allocated_bytes_; }

 private:
  struct Area {
    size_t bytes;
    void* base;  // what free() takes; null: not owned
    uint32_t* writers;
  };
  void Add(const void* address, size_t bytes, void* base);

  std::map<uint64_t, Area> areas_;  // by first address
  size_t allocated_bytes_ = 0;
};

struct LaunchShape {
  std::array<unsigned, 3> grid = {1, 1, 1}, block = {1, 1, 1}, cluster = {1, 1, 1};
  size_t dynamic_shared_bytes = 0;
};

struct Parameter {
  size_t offset, bytes;  // in the kernel's block of arguments
};

class Kernel;  // ptx.h

// What nvcc wrote for one source file.
class Module {
 public:
  // Stops the program with a message if `ptx` holds something that is not understood.
  explicit Module(std::string_view ptx);
  ~Module();
  // Null if there is no such entry point. A name may be that of another compilation of the same
  // file. Instructions are decoded at the first call.
  const Kernel* Find(std::string_view entry);

 private:
  struct Source;
  std::unique_ptr<Source> source_;
};

std::span<const Parameter> Parameters(const Kernel& kernel);
size_t StaticSharedBytes(const Kernel& kernel);
unsigned MaxThreads(const Kernel& kernel);  // of a block

// What a kernel may not do: an address outside of all allocations, a misaligned one, a barrier that
// nobody can pass. what() says it with the kernel, the block, the thread and the line of PTX.
class KernelFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Machine {
  int multiprocessors;  // of the device
  size_t shared_bytes;  // of one multiprocessor
  int threads;          // of one multiprocessor
  uint64_t seed;        // of the order in which things happen
  const GlobalMemory* memory;
  // Launches are numbered from 1 on. Those from `first_unfinished` on may still run when this one
  // starts, if it is below `launch`: what they write may only be touched behind
  // griddepcontrol.wait.
  uint32_t launch = 1, first_unfinished = 1;
};

// When all blocks let a kernel start that may overlap with this one (griddepcontrol).
enum class NextStarts : uint8_t { kAtTheEnd, kAfterWait, kBeforeWait };

// How many blocks of this shape one multiprocessor holds (registers are not counted).
int ResidentBlocks(const Kernel& kernel, const LaunchShape& shape, const Machine& machine);

// Runs the whole grid. `arguments` is the block of arguments, laid out as Parameters() says.
// Throws KernelFault.
NextStarts Run(const Kernel& kernel, const LaunchShape& shape, std::span<const std::byte> arguments,
               const Machine& machine);

}  // namespace fewbit::emulator
