#include "runtime/weights/tensor_values.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/quant_pack.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

int64_t NumElements(const Tensor& tensor) {
  return static_cast<int64_t>(tensor.data.size()) / TensorTypeBytes(tensor.type);
}

}  // namespace

Tensor SliceRows(const Tensor& tensor, int64_t begin, int64_t count) {
  FEWBIT_CHECK(!tensor.shape.empty() && begin >= 0 && count > 0 &&
               begin + count <= tensor.shape[0]);
  const size_t row_bytes = tensor.data.size() / static_cast<size_t>(tensor.shape[0]);
  Tensor slice = tensor;
  slice.shape[0] = count;
  slice.data = tensor.data.subspan(static_cast<size_t>(begin) * row_bytes,
                                   static_cast<size_t>(count) * row_bytes);
  return slice;
}

void ToFloats(const Tensor& tensor, float* out) {
  const int64_t count = NumElements(tensor);
  if (tensor.type == TensorType::kF32) {
    std::memcpy(out, tensor.data.data(), tensor.data.size());
    return;
  }
  FEWBIT_CHECK(tensor.type == TensorType::kBF16 || tensor.type == TensorType::kF16);
  const auto* words = reinterpret_cast<const uint16_t*>(tensor.data.data());
  for (int64_t i = 0; i < count; ++i) {
    out[i] = tensor.type == TensorType::kBF16
                 ? std::bit_cast<float>(static_cast<uint32_t>(words[i]) << 16)
                 : quant::HalfToFloat(words[i]);
  }
}

std::vector<float> ToFloats(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(NumElements(tensor)));
  ToFloats(tensor, values.data());
  return values;
}

int64_t FindNonFinite(const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace fewbit
