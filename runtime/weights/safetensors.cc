#include "runtime/weights/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_join.h"
#include "runtime/weights/json.h"
#include "runtime/weights/text.h"

namespace fewbit {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors are used as they lie in the file");

// Element types of 8 bytes are the largest: data that begins at a multiple of this is aligned for
// all.
constexpr size_t kMaxElementBytes = 8;

struct TypeRow {
  TensorType type;
  const char* name;
  int bytes;
};

constexpr TypeRow kTypes[] = {
    {TensorType::kBool, "BOOL", 1},      {TensorType::kU8, "U8", 1},
    {TensorType::kI8, "I8", 1},          {TensorType::kF8E4M3, "F8_E4M3", 1},
    {TensorType::kF8E5M2, "F8_E5M2", 1}, {TensorType::kI16, "I16", 2},
    {TensorType::kU16, "U16", 2},        {TensorType::kF16, "F16", 2},
    {TensorType::kBF16, "BF16", 2},      {TensorType::kI32, "I32", 4},
    {TensorType::kU32, "U32", 4},        {TensorType::kF32, "F32", 4},
    {TensorType::kI64, "I64", 8},        {TensorType::kU64, "U64", 8},
    {TensorType::kF64, "F64", 8},
};

const TypeRow& RowOf(TensorType type) { return kTypes[static_cast<size_t>(type)]; }

std::optional<TensorType> TypeFromName(std::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (name == row.name) return row.type;
  }
  return std::nullopt;
}

struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
  std::string_view name;
};

// One header and the messages about it.
class HeaderParser {
 public:
  HeaderParser(std::span<const uint8_t> data, std::string_view file) : data_(data), file_(file) {}

  absl::Status Parse(const nlohmann::json& header) {
    for (const auto& [name, entry] : header.items()) {
      const absl::Status status =
          name == "__metadata__" ? CheckMetadata(entry) : ParseTensor(name, entry);
      if (!status.ok()) return status;
    }
    return CheckCoverage();
  }

  TensorTable TakeTensors() { return std::move(tensors_); }

 private:
  template <typename... Parts>
  absl::Status Bad(std::string_view name, const Parts&... parts) const {
    return absl::InvalidArgumentError(
        StrCat(file_, ": tensor '", Printable(name), "': ", parts...));
  }

  absl::Status CheckMetadata(const nlohmann::json& entry) const {
    if (!entry.is_object()) {
      return absl::InvalidArgumentError(StrCat(file_, ": __metadata__ is not an object"));
    }
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) {
        return absl::InvalidArgumentError(
            StrCat(file_, ": __metadata__: '", Printable(key), "' is not a string"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ParseTensor(const std::string& name, const nlohmann::json& entry) {
    if (!entry.is_object()) return Bad(name, "its header entry is not an object");
    for (const auto& [key, value] : entry.items()) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        return Bad(name, "unknown header key '", Printable(key), "'");
      }
    }
    const auto dtype = entry.find("dtype");
    if (dtype == entry.end() || !dtype->is_string()) return Bad(name, "dtype missing or no string");
    const auto type = TypeFromName(dtype->get_ref<const std::string&>());
    if (!type) return Bad(name, "unknown dtype ", JsonText(*dtype));

    Tensor tensor;
    tensor.type = *type;
    uint64_t bytes = static_cast<uint64_t>(RowOf(*type).bytes);
    absl::Status status = ParseShape(name, entry, &tensor, &bytes);
    if (!status.ok()) return status;
    Extent extent;
    status = ParseOffsets(name, entry, &extent);
    if (!status.ok()) return status;
    if (extent.end - extent.begin != bytes) {
      return Bad(name, "shape ", ShapeText(tensor.shape), " of ", RowOf(*type).name, " needs ",
                 bytes, " bytes, data_offsets span ", extent.end - extent.begin);
    }
    tensor.data = data_.subspan(extent.begin, bytes);
    const auto inserted = tensors_.emplace(name, std::move(tensor)).first;
    extent.name = inserted->first;
    extents_.push_back(extent);
    return absl::OkStatus();
  }

  // Multiplies `bytes` by every dimension.
  absl::Status ParseShape(const std::string& name, const nlohmann::json& entry, Tensor* tensor,
                          uint64_t* bytes) const {
    const auto shape = entry.find("shape");
    if (shape == entry.end() || !shape->is_array()) return Bad(name, "shape missing or no array");
    for (const nlohmann::json& dimension : *shape) {
      if (!dimension.is_number_unsigned()) {
        return Bad(name, "shape ", JsonText(*shape),
                   " has a dimension that is not a natural number");
      }
      const auto value = dimension.get<uint64_t>();
      // The product stays below 2^63 so that every later sum of sizes and offsets does, too.
      if (value > INT64_MAX || __builtin_mul_overflow(*bytes, value, bytes) || *bytes > INT64_MAX) {
        return Bad(name, "shape ", JsonText(*shape), " overflows");
      }
      tensor->shape.push_back(static_cast<int64_t>(value));
    }
    return absl::OkStatus();
  }

  absl::Status ParseOffsets(const std::string& name, const nlohmann::json& entry,
                            Extent* extent) const {
    const auto offsets = entry.find("data_offsets");
    if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
        !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
      return Bad(name, "data_offsets missing or not two natural numbers");
    }
    extent->begin = (*offsets)[0].get<uint64_t>();
    extent->end = (*offsets)[1].get<uint64_t>();
    if (extent->begin > extent->end) {
      return Bad(name, "data_offsets ", JsonText(*offsets), " end before they begin");
    }
    if (extent->end > data_.size()) {
      return absl::DataLossError(
          StrCat(file_, ": tensor '", Printable(name), "': its data ends at byte ", extent->end,
                 " but the file has only ", data_.size(), " bytes of data: truncated or corrupt"));
    }
    return absl::OkStatus();
  }

  // Sorted by offset, tensors must cover the data exactly.
  absl::Status CheckCoverage() {
    std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    uint64_t covered = 0;
    for (const Extent& extent : extents_) {
      if (extent.begin < covered) return Bad(extent.name, "overlaps the tensor before it");
      if (extent.begin > covered) {
        return Bad(extent.name, extent.begin - covered, " bytes before it belong to no tensor");
      }
      covered = extent.end;
    }
    if (covered != data_.size()) {
      return absl::InvalidArgumentError(
          StrCat(file_, ": ", data_.size() - covered, " bytes at the end belong to no tensor"));
    }
    return absl::OkStatus();
  }

  std::span<const uint8_t> data_;
  std::string_view file_;
  TensorTable tensors_;
  std::vector<Extent> extents_;
};

}  // namespace

int TensorTypeBytes(TensorType type) { return RowOf(type).bytes; }
const char* TensorTypeName(TensorType type) { return RowOf(type).name; }

std::string ShapeText(std::span<const int64_t> shape) {
  return StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<ParsedSafetensors> ParseSafetensors(std::span<const uint8_t> bytes,
                                                   std::string_view file) {
  constexpr std::string_view kLfsPointer = "version https://git-lfs";
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with(kLfsPointer)) {
    return absl::InvalidArgumentError(
        StrCat(file, ": a Git LFS pointer, not the weights: fetch the file itself"));
  }
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return absl::DataLossError(
        StrCat(file, ": ", bytes.size(), " bytes are too short for a safetensors file: truncated"));
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(StrCat(file, ": bad header: a length of ", header_bytes,
                                             " bytes, the limit is ", kMaxSafetensorsHeaderBytes,
                                             ": not a safetensors file or corrupt"));
  }
  if (header_bytes > bytes.size() - sizeof(header_bytes)) {
    return absl::DataLossError(StrCat(file, ": the header of ", header_bytes,
                                      " bytes goes beyond the end of the file: truncated"));
  }
  const std::string_view header_text = text.substr(sizeof(header_bytes), header_bytes);
  absl::StatusOr<nlohmann::json> header =
      ParseJsonObject(header_text, StrCat(file, ": bad header"));
  if (!header.ok()) return header.status();

  ParsedSafetensors parsed;
  parsed.data_offset = sizeof(header_bytes) + header_bytes;
  HeaderParser parser(bytes.subspan(parsed.data_offset), file);
  const absl::Status status = parser.Parse(*header);
  if (!status.ok()) return status;
  parsed.tensors = parser.TakeTensors();
  return parsed;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  auto mapping = MappedFile::Open(path);
  if (!mapping.ok()) return mapping.status();
  const std::span<const uint8_t> bytes = (*mapping)->bytes();
  auto parsed = ParseSafetensors(bytes, path);
  if (!parsed.ok()) return parsed.status();

  SafetensorsFile file;
  file.path_ = path;
  file.tensors_ = std::move(parsed->tensors);
  file.mapping_ = *std::move(mapping);
  if (parsed->data_offset % kMaxElementBytes != 0) {
    // Early writers did not pad the header, so that no tensor is aligned: the one case in which
    // weights are copied.
    const std::span<const uint8_t> data = bytes.subspan(parsed->data_offset);
    auto copy = MappedFile::Copy(path, data);
    if (!copy.ok()) return copy.status();
    for (auto& [name, tensor] : file.tensors_) {
      const auto offset = static_cast<size_t>(tensor.data.data() - data.data());
      tensor.data = (*copy)->bytes().subspan(offset, tensor.data.size());
    }
    file.mapping_ = *std::move(copy);
  }
  return file;
}

}  // namespace fewbit
