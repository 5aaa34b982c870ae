#include "runtime/weights/safetensors_writer.h"

#include <algorithm>
#include <cstring>

#include "nlohmann/json.hpp"
#include "runtime/weights/file.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr size_t kDataAlignment = 64;

}  // namespace

absl::Status WriteSafetensors(const std::string& path, std::vector<TensorToWrite> tensors) {
  for (TensorToWrite& tensor : tensors) {
    int64_t bytes = TensorTypeBytes(tensor.type);
    for (const int64_t dimension : tensor.shape) bytes *= dimension;
    FEWBIT_CHECK(bytes == static_cast<int64_t>(tensor.data.size())) << tensor.name;
    tensor.alignment = std::max(tensor.alignment, TensorTypeBytes(tensor.type));
    FEWBIT_CHECK(bytes % tensor.alignment == 0) << tensor.name;
  }
  // After a tensor of a multiple of its own alignment everything of the same or a smaller one is
  // aligned, too.
  std::stable_sort(
      tensors.begin(), tensors.end(),
      [](const TensorToWrite& a, const TensorToWrite& b) { return a.alignment > b.alignment; });
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  size_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    FEWBIT_CHECK(!header.contains(tensor.name)) << tensor.name << " twice";
    header[tensor.name] = {{"dtype", TensorTypeName(tensor.type)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.data.size()}}};
    offset += tensor.data.size();
  }
  std::string text = header.dump();
  uint64_t length = text.size() + sizeof(length);
  length = (length + kDataAlignment - 1) / kDataAlignment * kDataAlignment - sizeof(length);
  text.resize(length, ' ');
  text.insert(0, reinterpret_cast<const char*>(&length), sizeof(length));

  std::vector<std::span<const uint8_t>> parts;
  parts.emplace_back(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  for (const TensorToWrite& tensor : tensors) parts.push_back(tensor.data);
  return WriteFileDurably(path, parts);
}

}  // namespace fewbit
