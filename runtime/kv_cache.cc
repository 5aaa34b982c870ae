#include "runtime/kv_cache.h"

#include <sys/mman.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "scheduler/check.h"

namespace fewbit {

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const kv::BlockShape& shape,
                                                         int32_t num_layers, int32_t num_blocks) {
  FEWBIT_CHECK(shape.num_heads > 0 && shape.head_dim > 0 && num_layers > 0 && num_blocks > 0)
      << "an empty KV cache was asked for";
  const size_t bytes = shape.block_bytes() * num_blocks * num_layers;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot reserve ", bytes,
                                                     " bytes for the KV cache of ", num_blocks,
                                                     " blocks and ", num_layers, " layers"));
  }
  // Fewer page faults and TLB misses; a system that refuses is no error.
  (void)madvise(memory, bytes, MADV_HUGEPAGE);
  return std::unique_ptr<KvCache>(
      new KvCache(shape, num_layers, num_blocks, static_cast<uint8_t*>(memory)));
}

KvCache::KvCache(const kv::BlockShape& shape, int32_t num_layers, int32_t num_blocks,
                 uint8_t* memory)
    : shape_(shape),
      num_layers_(num_layers),
      num_blocks_(num_blocks),
      layer_bytes_(shape.block_bytes() * num_blocks),
      memory_(memory) {}

KvCache::~KvCache() { munmap(memory_, layer_bytes_ * num_layers_); }

}  // namespace fewbit
