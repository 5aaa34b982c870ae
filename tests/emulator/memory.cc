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

void* Reserve(size_t bytes) {
  const size_t total = BytesWithGuards(bytes);
  if (bytes > kLazyBytes) {
    void* base = mmap(nullptr, total, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? nullptr : base;
  }
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

}  // namespace

GlobalMemory::~GlobalMemory() {
  for (const auto& [address, area] : areas_) {
    if (area.base != nullptr) Release(area.base, area.bytes);
  }
}

void* GlobalMemory::Allocate(size_t bytes) {
  if (bytes == 0 || bytes > std::numeric_limits<size_t>::max() / 2) return nullptr;
  void* base = Reserve(bytes);
  if (base == nullptr) return nullptr;
  void* address = static_cast<std::byte*>(base) + kGuardBytes;
  areas_[reinterpret_cast<uint64_t>(address)] = {bytes, base};
  allocated_bytes_ += bytes;
  return address;
}

bool GlobalMemory::Free(void* address) {
  const auto found = areas_.find(reinterpret_cast<uint64_t>(address));
  if (found == areas_.end() || found->second.base == nullptr) return false;
  Release(found->second.base, found->second.bytes);
  allocated_bytes_ -= found->second.bytes;
  areas_.erase(found);
  return true;
}

void GlobalMemory::Register(const void* address, size_t bytes) {
  areas_[reinterpret_cast<uint64_t>(address)] = {bytes, nullptr};
}

void GlobalMemory::Unregister(const void* address) {
  const auto found = areas_.find(reinterpret_cast<uint64_t>(address));
  if (found != areas_.end() && found->second.base == nullptr) areas_.erase(found);
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
  const auto [begin, size] = AllocationAround(address);
  return bytes <= size && address - begin <= size - bytes;
}

std::pair<uint64_t, size_t> GlobalMemory::AllocationAround(uint64_t address) const {
  auto after = areas_.upper_bound(address);
  if (after == areas_.begin()) return {0, 0};
  const auto& [begin, area] = *std::prev(after);
  if (address - begin >= area.bytes) return {0, 0};
  return {begin, area.bytes};
}

}  // namespace fewbit::emulator
