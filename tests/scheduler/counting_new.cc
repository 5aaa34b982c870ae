// In a file of its own: inlined into its callers, the compiler takes malloc and free for a
// mismatched pair.
#include "tests/scheduler/counting_new.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace fewbit {
namespace {

thread_local int64_t allocations = 0;

void* Allocate(size_t size) {
  ++allocations;
  void* const memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}

void* AllocateAligned(size_t size, std::align_val_t alignment) {
  ++allocations;
  const size_t unit = static_cast<size_t>(alignment);
  void* const memory = std::aligned_alloc(unit, (size + unit - 1) / unit * unit);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

int64_t AllocationsOnThisThread() { return allocations; }

}  // namespace fewbit

// The remaining forms of the standard library (nothrow) call these.
void* operator new(size_t size) { return fewbit::Allocate(size); }
void* operator new[](size_t size) { return fewbit::Allocate(size); }
void* operator new(size_t size, std::align_val_t a) { return fewbit::AllocateAligned(size, a); }
void* operator new[](size_t size, std::align_val_t a) { return fewbit::AllocateAligned(size, a); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
