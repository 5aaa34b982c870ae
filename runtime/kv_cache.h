// The memory of the paged KV cache: per layer an array of blocks in the layout of
// kernels/kv_layout.h. It is reserved whole at the start (zero pages that become memory when first
// written) and never grows; which block belongs to whom is the scheduler's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/kv_layout.h"

namespace fewbit {

// Thread rule: blocks may be written by different threads; the object itself is immutable.
class KvCache {
 public:
  // RESOURCE_EXHAUSTED with the number of bytes if the system refuses the memory. REQUIRES: all
  // numbers positive.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const kv::BlockShape& shape,
                                                         int32_t num_layers, int32_t num_blocks);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const kv::BlockShape& shape() const { return shape_; }
  int32_t num_layers() const { return num_layers_; }
  int32_t num_blocks() const { return num_blocks_; }
  int64_t bytes() const { return static_cast<int64_t>(layer_bytes_) * num_layers_; }

  // Block 0 of a layer; block b lies b * shape().block_bytes() further.
  uint8_t* layer(int32_t layer) const { return memory_ + layer_bytes_ * layer; }

 private:
  KvCache(const kv::BlockShape& shape, int32_t num_layers, int32_t num_blocks, uint8_t* memory);

  const kv::BlockShape shape_;
  const int32_t num_layers_;
  const int32_t num_blocks_;
  const size_t layer_bytes_;
  uint8_t* const memory_;
};

}  // namespace fewbit
