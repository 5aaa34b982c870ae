// Arrays as NumPy's .npy files (format version 1.0, little endian, C order), for exchange with
// Python.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fewbit {

// Writes float32 [rows, cols] under a temporary name beside `path`, then renames. REQUIRES:
// values.size() == rows * cols.
absl::Status WriteNpy(const std::string& path, std::span<const float> values, int64_t rows,
                      int64_t cols);

struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<float> floats;  // of a "<f4" file, else empty
  std::vector<int32_t> ints;  // of a "<i4" file, else empty
};

// NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT (not .npy, another type or order, a size that
// does not fit the header) with the path.
absl::StatusOr<NpyArray> ReadNpy(const std::string& path);

}  // namespace fewbit
