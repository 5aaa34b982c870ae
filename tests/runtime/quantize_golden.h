// Runs of the quantizer on a golden checkpoint, with settings that make them small.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/quantize/checkpoint_quantizer.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {

inline std::vector<TokenId> SomeIds(int count, int vocab = 320) {
  std::vector<TokenId> ids;
  uint32_t state = 12345;
  for (int i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    ids.push_back(TokenId{static_cast<int32_t>((state >> 8) % vocab)});
  }
  return ids;
}

inline QuantizeOptions GoldenOptions(const TempDirectory& directory,
                                     const std::string& name = "llama2") {
  QuantizeOptions options;
  options.model_dir = GoldenDirectory(name);
  options.out_dir = directory / "out";
  // Rows of 4 strips: anything else would make them all 4-bit. It is for the methods that do not
  // share bits out; "default" takes the smallest, which for 4 strips is 4 bits.
  options.share4 = 0.0;
  options.bits = 2.0;
  options.threads = 2;
  options.context = 32;
  options.calibration_windows = 8;
  return options;
}

inline absl::StatusOr<QuantizeReport> QuantizeGolden(const QuantizeOptions& options,
                                                     int ids = 400) {
  return QuantizeCheckpoint(options, SomeIds(ids), nullptr, nullptr);
}

// Every file below a directory by its path there.
inline std::map<std::string, std::string> Files(const std::string& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    files[entry.path().lexically_relative(directory).string()] = ReadText(entry.path().string());
  }
  return files;
}

inline bool Empty(const TempDirectory& directory) {
  return std::filesystem::is_empty(directory.path());
}

}  // namespace fewbit
