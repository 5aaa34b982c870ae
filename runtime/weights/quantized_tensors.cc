#include "runtime/weights/quantized_tensors.h"

#include <array>
#include <cmath>
#include <cstring>

#include "kernels/quant_pack.h"
#include "runtime/weights/quantized_format.h"
#include "runtime/weights/text.h"

namespace fewbit {
namespace {

namespace format = quantized_format;

template <typename T>
const T* DataAs(const StoredTensor& stored) {
  return reinterpret_cast<const T*>(stored.tensor->data.data());
}

absl::StatusOr<quant::PackedShape> ReadPackedShape(const TensorStore& store,
                                                   const std::string& name, int32_t rows,
                                                   int32_t cols, bool zero_points) {
  const std::string shape_name = StrCat(name, format::kPackedShape);
  const int64_t four[] = {4};
  const auto stored = store.Find(shape_name, {TensorType::kI32}, four);
  if (!stored.ok()) return stored.status();
  std::array<int32_t, 4> numbers;
  std::memcpy(numbers.data(), stored->tensor->data.data(), sizeof(numbers));
  quant::PackedShape shape{.rows = numbers[0],
                           .cols = numbers[1],
                           .chunks2 = numbers[2],
                           .chunks4 = numbers[3],
                           .zero_points = zero_points};
  if (shape.rows != rows || shape.cols != cols) {
    return stored->Bad(shape_name, StrCat("is a matrix of [", shape.rows, ", ", shape.cols,
                                          "], config.json asks for [", rows, ", ", cols, "]"));
  }
  const int32_t strips = cols / quant::kStripChannels;
  // Every chunk holds at least one strip, which also bounds every size computed from the shape.
  if (cols % quant::kStripChannels != 0 || shape.chunks2 < 0 || shape.chunks4 < 0 ||
      shape.chunks2 > strips || shape.chunks4 > strips || shape.num_positions() < strips) {
    return stored->Bad(shape_name, StrCat(shape.chunks2, " 2-bit and ", shape.chunks4,
                                          " 4-bit chunks cannot hold ", cols, " input channels"));
  }
  return shape;
}

}  // namespace

absl::StatusOr<quant::PackedMatrix> FindPacked(const TensorStore& store, const std::string& name,
                                               int32_t rows, int32_t cols, bool zero_points) {
  const auto shape = ReadPackedShape(store, name, rows, cols, zero_points);
  if (!shape.ok()) return shape.status();
  quant::PackedMatrix matrix;
  matrix.shape = *shape;

  const std::string packed_name = StrCat(name, format::kPacked);
  const int64_t packed_shape[] = {shape->row_blocks(),
                                  static_cast<int64_t>(shape->row_block_bytes())};
  const auto packed = store.Find(packed_name, {TensorType::kU8}, packed_shape);
  if (!packed.ok()) return packed.status();
  matrix.tiles = packed->tensor->data.data();
  if (reinterpret_cast<uintptr_t>(matrix.tiles) % format::kPackedAlignment != 0) {
    return packed->Bad(packed_name, StrCat("not aligned to ", format::kPackedAlignment, " bytes"));
  }

  const int64_t positions[] = {shape->num_positions()};
  const auto order = store.Find(StrCat(name, format::kStripOrder), {TensorType::kU16}, positions);
  if (!order.ok()) return order.status();
  matrix.strip_order = DataAs<uint16_t>(*order);

  const std::string start_name = StrCat(name, format::kOutlierStart);
  const std::string outliers_name = StrCat(name, format::kOutliers);
  if (!store.Has(start_name) && !store.Has(outliers_name)) return matrix;
  const int64_t starts[] = {static_cast<int64_t>(shape->num_outlier_lists()) + 1};
  const auto start = store.Find(start_name, {TensorType::kU32}, starts);
  if (!start.ok()) return start.status();
  matrix.outlier_start = DataAs<uint32_t>(*start);
  const int64_t counts[] = {matrix.outlier_start[starts[0] - 1]};
  const auto outliers = store.Find(outliers_name, {TensorType::kU32}, counts);
  if (!outliers.ok()) return outliers.status();
  matrix.outliers = DataAs<uint32_t>(*outliers);
  return matrix;
}

absl::Status CheckPackedContents(const TensorStore& store, const std::string& name,
                                 const quant::PackedMatrix& matrix) {
  const quant::PackedShape& shape = matrix.shape;
  const std::string packed_name = StrCat(name, format::kPacked);
  const auto packed = store.Find(packed_name, {TensorType::kU8});
  if (!packed.ok()) return packed.status();
  const size_t lists = shape.num_outlier_lists();
  const bool sparse = matrix.outlier_start != nullptr;
  const char* problem = quant::ValidatePacked(
      matrix, packed->tensor->data.size(), static_cast<size_t>(shape.num_positions()),
      sparse ? lists + 1 : 0, sparse ? matrix.outlier_start[lists] : 0);
  if (problem != nullptr && *problem != '\0') return packed->Bad(name, problem);

  constexpr uint16_t kHalfExponent = 0x7C00;  // all set: infinity or NaN
  for (int block = 0; block < shape.row_blocks(); ++block) {
    const uint8_t* row_block = matrix.tiles + static_cast<size_t>(block) * shape.row_block_bytes();
    for (const int bits : {2, 4}) {
      for (int tile = 0; tile < shape.tiles(bits); ++tile) {
        const size_t tile_bytes =
            quant::TileBytes(bits, shape.tile_chunks(bits, tile), shape.zero_points);
        std::array<uint16_t, quant::kBlockRows> scales;
        std::memcpy(
            scales.data(),
            row_block + shape.tile_offset(bits, tile) + tile_bytes - quant::kSecondOrderBytes,
            sizeof(scales));
        for (const uint16_t scale : scales) {
          if ((scale & kHalfExponent) != kHalfExponent) continue;
          return packed->Bad(packed_name, StrCat("row block ", block, ", ", bits, "-bit tile ",
                                                 tile, ": a scale is NaN or infinite"));
        }
      }
    }
  }
  return absl::OkStatus();
}

int64_t PackedBytes(const quant::PackedMatrix& matrix) {
  const quant::PackedShape& shape = matrix.shape;
  size_t bytes =
      shape.total_bytes() + sizeof(uint16_t) * static_cast<size_t>(shape.num_positions());
  if (matrix.outlier_start != nullptr) {
    const size_t lists = shape.num_outlier_lists();
    bytes += sizeof(uint32_t) * (lists + 1 + matrix.outlier_start[lists]);
  }
  return static_cast<int64_t>(bytes);
}

absl::StatusOr<Int8Matrix> FindInt8(const TensorStore& store, const std::string& name, int32_t rows,
                                    int32_t cols) {
  const int64_t matrix_shape[] = {rows, cols};
  const auto codes = store.Find(StrCat(name, format::kCodes), {TensorType::kU8}, matrix_shape);
  if (!codes.ok()) return codes.status();
  const int64_t row_shape[] = {rows};
  const auto scales = store.Find(StrCat(name, format::kScales), {TensorType::kF32}, row_shape);
  if (!scales.ok()) return scales.status();
  return Int8Matrix{.codes = codes->tensor->data.data(),
                    .scales = DataAs<float>(*scales),
                    .rows = rows,
                    .cols = cols};
}

absl::Status CheckInt8Contents(const TensorStore& store, const std::string& name,
                               const Int8Matrix& matrix) {
  const std::string scales_name = StrCat(name, format::kScales);
  const auto scales = store.Find(scales_name, {TensorType::kF32});
  if (!scales.ok()) return scales.status();
  for (int32_t row = 0; row < matrix.rows; ++row) {
    if (!std::isfinite(matrix.scales[row])) {
      return scales->Bad(scales_name, StrCat("row ", row, " is NaN or infinite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace fewbit
