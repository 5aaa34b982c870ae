// Checkpoint directories made by tests: a golden one, taken apart, changed and written again.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"
#include "runtime/weights/safetensors.h"

namespace fewbit {

// A new directory below the system's temporary one, removed with everything in it.
class TempDirectory {
 public:
  TempDirectory();
  ~TempDirectory();
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const;

 private:
  std::string path_;
};

std::string GoldenDirectory(std::string_view name);
std::string ReadText(const std::string& path);
void WriteText(const std::string& path, std::string_view text);

// A file in the safetensors framing around any header text and data.
std::string FrameSafetensors(std::string_view header, std::string_view data);

struct OwnedTensor {
  std::string name;
  TensorType type = TensorType::kBF16;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

// A checkpoint in memory.
struct EditableCheckpoint {
  nlohmann::json config;
  std::vector<OwnedTensor> tensors;

  OwnedTensor& Get(std::string_view name);  // fails the process when there is none
  void Remove(std::string_view name);
};

EditableCheckpoint ReadGolden(std::string_view name);
// With `align_bytes` U8 tensors whose size allows it lie at multiples of 16, as our own writer
// places packed ones.
void WriteSafetensorsFile(const std::string& path, const std::vector<OwnedTensor>& tensors,
                          bool align_bytes = true);
void WriteCheckpoint(const std::string& directory, const EditableCheckpoint& checkpoint);

}  // namespace fewbit
