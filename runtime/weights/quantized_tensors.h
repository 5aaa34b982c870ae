// Packed and 8-bit matrices of a quantized checkpoint, checked before any kernel sees them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/matrix.h"
#include "runtime/weights/tensor_store.h"

namespace fewbit {

// The matrix `name` (without suffix), its tensors present and of consistent shapes; contents are
// not looked at yet, apart from the shape itself. INVALID_ARGUMENT otherwise.
absl::StatusOr<quant::PackedMatrix> FindPacked(const TensorStore& store, const std::string& name,
                                               int32_t rows, int32_t cols, bool zero_points);

// Reads every table that indexes memory and every second-order scale. INVALID_ARGUMENT names what
// is out of range.
absl::Status CheckPackedContents(const TensorStore& store, const std::string& name,
                                 const quant::PackedMatrix& matrix);

// Bytes of tiles, strip order, outliers and their starts.
int64_t PackedBytes(const quant::PackedMatrix& matrix);

absl::StatusOr<Int8Matrix> FindInt8(const TensorStore& store, const std::string& name, int32_t rows,
                                    int32_t cols);
absl::Status CheckInt8Contents(const TensorStore& store, const std::string& name,
                               const Int8Matrix& matrix);

}  // namespace fewbit
