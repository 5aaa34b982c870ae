#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>

#include "tests/emulator/emulator.h"

namespace fewbit::emulator {

namespace {

constexpr size_t kGuardBytes = 4096;  // a page, so that what follows keeps its alignment
constexpr int kFill = 0xa5;
// Larger allocations stay untouched pages, which read as zero: a test may ask for most of a
// device's memory and use little of it.
constexpr size_t kLazyBytes = size_t{64} << 20;

// Of an allocation with its guards, in whole pages.
size_t BytesWithGuards(size_t bytes) { return (bytes + 3 * kGuardBytes - 1) & ~(kGuardBytes - 1); }

void* ZeroPages(size_t bytes) {
  void* begin = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return begin == MAP_FAILED ? nullptr : begin;
}

void* Reserve(size_t bytes) {
  const size_t total = BytesWithGuards(bytes);
  if (bytes > kLazyBytes) return ZeroPages(total);
  void* base = std::aligned_alloc(kGuardBytes, total);
  if (base != nullptr) std::memset(base, kFill, total);
  return base;
}

void Release(void* base, size_t bytes) {
  if (bytes > kLazyBytes) {
    munmap(base, BytesWithGuards(bytes));
  } else {
    std::free(base);
  }
}

// The writers of an allocation, of 4 bytes for 4 bytes.
size_t WriterBytes(size_t bytes) { return (bytes + 3) / 4 * sizeof(uint32_t); }

}  // namespace

GlobalMemory::~GlobalMemory() {
  for (const auto& [address, area] : areas_) {
    munmap(area.writers, WriterBytes(area.bytes));
    if (area.base != nullptr) Release(area.base, area.bytes);
  }
}

void GlobalMemory::Add(const void* address, size_t bytes, void* base) {
  auto* writers = static_cast<uint32_t*>(ZeroPages(WriterBytes(bytes)));
  areas_[reinterpret_cast<uint64_t>(address)] = {bytes, base, writers};
}

void* GlobalMemory::Allocate(size_t bytes) {
  if (bytes == 0 || bytes > std::numeric_limits<size_t>::max() / 2) return nullptr;
  void* base = Reserve(bytes);
  if (base == nullptr) return nullptr;
  void* address = static_cast<std::byte*>(base) + kGuardBytes;
  Add(address, bytes, base);
  allocated_bytes_ += bytes;
  return address;
}

bool GlobalMemory::Free(void* address) {
  const auto found = areas_.find(reinterpret_cast<uint64_t>(address));
  if (found == areas_.end() || found->second.base == nullptr) return false;
  munmap(found->second.writers, WriterBytes(found->second.bytes));
  Release(found->second.base, found->second.bytes);
  allocated_bytes_ -= found->second.bytes;
  areas_.erase(found);
  return true;
}

void GlobalMemory::Register(const void* address, size_t bytes) { Add(address, bytes, nullptr); }

void GlobalMemory::Unregister(const void* address) {
  const auto found = areas_.find(reinterpret_cast<uint64_t>(address));
  if (found == areas_.end() || found->second.base != nullptr) return;
  munmap(found->second.writers, WriterBytes(found->second.bytes));
  areas_.erase(found);
}

std::string GlobalMemory::Describe(uint64_t address) const {
  auto next = areas_.upper_bound(address);
  std::string text = "nothing is allocated there";
  if (next != areas_.begin()) {
    const auto& [begin, area] = *std::prev(next);
    const uint64_t end = begin + area.bytes;
    text = address < end ? std::to_string(end - address) + " bytes before the end of "
                         : std::to_string(address - end) + " bytes behind ";
    text += "an allocation of " + std::to_string(area.bytes) + " bytes";
  }
  if (next != areas_.end()) {
    text += ", " + std::to_string(next->first - address) + " bytes before one of " +
            std::to_string(next->second.bytes);
  }
  return text;
}

bool GlobalMemory::Contains(uint64_t address, size_t bytes) const {
  const MemoryRange around = AllocationAround(address);
  return bytes <= around.bytes && address - around.begin <= around.bytes - bytes;
}

MemoryRange GlobalMemory::AllocationAround(uint64_t address) const {
  auto after = areas_.upper_bound(address);
  if (after == areas_.begin()) return {};
  const auto& [begin, area] = *std::prev(after);
  if (address - begin >= area.bytes) return {};
  return {begin, area.bytes, area.writers};
}

}  // namespace fewbit::emulator
