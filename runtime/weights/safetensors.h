// The safetensors container: 8 bytes of header length (little endian), a JSON header of names,
// types, shapes and offsets, then the tensors' bytes without holes. Owns the mapping; refuses every
// file whose header does not describe its bytes exactly.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/weights/file.h"

namespace fewbit {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit

enum class TensorType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64
};
int TensorTypeBytes(TensorType type);
const char* TensorTypeName(TensorType type);  // as in the header: "BF16"

// Bytes of one tensor, row-major, little endian. Memory belongs to the file.
struct Tensor {
  TensorType type = TensorType::kBF16;
  std::vector<int64_t> shape;
  std::span<const uint8_t> data;
};
std::string ShapeText(std::span<const int64_t> shape);  // "[320, 64]"

using TensorTable = std::map<std::string, Tensor, std::less<>>;

struct ParsedSafetensors {
  TensorTable tensors;
  size_t data_offset = 0;  // where the tensors' bytes begin in the file
};

// Parses a whole file in memory; tensors point into `bytes`. `file` is for messages. DATA_LOSS when
// the file ends too early, INVALID_ARGUMENT for everything else that is wrong.
absl::StatusOr<ParsedSafetensors> ParseSafetensors(std::span<const uint8_t> bytes,
                                                   std::string_view file);

// Thread rule: immutable after Open.
class SafetensorsFile {
 public:
  // Codes of MappedFile::Open and ParseSafetensors.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const TensorTable& tensors() const { return tensors_; }
  const std::shared_ptr<const MappedFile>& mapping() const { return mapping_; }

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> mapping_;
  TensorTable tensors_;
};

}  // namespace fewbit
