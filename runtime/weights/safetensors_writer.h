// Writes safetensors files, aligned so that a mapped file can be used in place.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/weights/safetensors.h"

namespace fewbit {

struct TensorToWrite {
  std::string name;
  TensorType type = TensorType::kU8;
  std::vector<int64_t> shape;
  std::span<const uint8_t> data;  // must stay until the file is written
  int alignment = 0;              // bytes, a power of two up to 64; 0: that of the type
};

// The data begins at a multiple of 64 and every tensor is aligned as asked. REQUIRES: distinct
// names, sizes that match type and shape, the size of a tensor a multiple of its alignment (the
// format has no gaps). Codes of WriteFileDurably.
absl::Status WriteSafetensors(const std::string& path, std::vector<TensorToWrite> tensors);

}  // namespace fewbit
