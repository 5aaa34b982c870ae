#include "runtime/eval/npy.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6;
constexpr size_t kPreambleBytes = kMagicBytes + 2 + 2;  // version, header length

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

absl::Status FileError(const std::string& path, const char* what) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", what));
}

absl::Status Malformed(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// The text between `key`': and what ends it in the header's dictionary.
absl::StatusOr<std::string> Field(const std::string& path, const std::string& header,
                                  const char* key, const char* terminators) {
  const std::string quoted = absl::StrCat("'", key, "':");
  const size_t at = header.find(quoted);
  if (at == std::string::npos) return Malformed(path, absl::StrCat("no ", quoted, " in header"));
  const size_t begin = at + quoted.size();
  const size_t end = header.find_first_of(terminators, begin);
  if (end == std::string::npos) return Malformed(path, absl::StrCat("bad ", quoted, " in header"));
  return std::string(absl::StripAsciiWhitespace(header.substr(begin, end - begin)));
}

absl::StatusOr<std::vector<int64_t>> ParseShape(const std::string& path, const std::string& field) {
  std::vector<int64_t> shape;
  for (absl::string_view part : absl::StrSplit(field, ',', absl::SkipWhitespace())) {
    part = absl::StripAsciiWhitespace(part);
    absl::ConsumePrefix(&part, "(");
    int64_t size = 0;
    if (part.empty()) continue;
    if (!absl::SimpleAtoi(part, &size) || size < 0) return Malformed(path, "bad shape in header");
    shape.push_back(size);
  }
  return shape;
}

template <typename T>
absl::Status ReadValues(const std::string& path, std::FILE* file, const std::vector<int64_t>& shape,
                        std::vector<T>* values) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size != 0 && count > std::numeric_limits<int32_t>::max() / size) {
      return Malformed(path, "array too large");
    }
    count *= size;
  }
  // Read in pieces: a lying header must not allocate what the file does not have.
  constexpr int64_t kPiece = 1 << 20;
  while (static_cast<int64_t>(values->size()) < count) {
    const size_t have = values->size();
    const size_t want = std::min<int64_t>(kPiece, count - static_cast<int64_t>(have));
    values->resize(have + want);
    if (std::fread(values->data() + have, sizeof(T), want, file) != want) {
      return Malformed(path, absl::StrCat("truncated: ", count, " values expected"));
    }
  }
  if (std::fgetc(file) != EOF) return Malformed(path, "bytes after the last value");
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteNpy(const std::string& path, std::span<const float> values, int64_t rows,
                      int64_t cols) {
  FEWBIT_CHECK(static_cast<int64_t>(values.size()) == rows * cols) << rows << " x " << cols;
  std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", cols, "), }");
  // The header ends with a newline at a multiple of 64 bytes.
  const size_t total = (kPreambleBytes + header.size() + 1 + 63) / 64 * 64;
  header.append(total - kPreambleBytes - header.size() - 1, ' ');
  header.push_back('\n');
  std::string preamble(kMagic, kMagicBytes);
  preamble.push_back('\x01');
  preamble.push_back('\0');
  preamble.push_back(static_cast<char>(header.size() & 0xFF));
  preamble.push_back(static_cast<char>(header.size() >> 8));

  const std::string temporary = path + ".partial";
  File file(std::fopen(temporary.c_str(), "wb"));
  if (file == nullptr) return FileError(temporary, "cannot create");
  const std::string start = preamble + header;
  const bool written =
      std::fwrite(start.data(), 1, start.size(), file.get()) == start.size() &&
      std::fwrite(values.data(), sizeof(float), values.size(), file.get()) == values.size() &&
      std::fflush(file.get()) == 0;
  absl::Status status = written ? absl::OkStatus() : FileError(temporary, "cannot write");
  file.reset();
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = FileError(path, "cannot rename to this name");
  }
  if (!status.ok()) std::remove(temporary.c_str());
  return status;
}

absl::StatusOr<NpyArray> ReadNpy(const std::string& path) {
  File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return FileError(path, "cannot open");
  unsigned char preamble[kPreambleBytes];
  if (std::fread(preamble, 1, kPreambleBytes, file.get()) != kPreambleBytes ||
      std::memcmp(preamble, kMagic, kMagicBytes) != 0) {
    return Malformed(path, "not an .npy file");
  }
  if (preamble[6] != 1) {
    return Malformed(path, absl::StrCat(".npy format version ", preamble[6], ", known is 1"));
  }
  std::string header(preamble[8] + 256u * preamble[9], '\0');
  if (std::fread(header.data(), 1, header.size(), file.get()) != header.size()) {
    return Malformed(path, "truncated header");
  }
  absl::StatusOr<std::string> descr = Field(path, header, "descr", ",}");
  if (!descr.ok()) return descr.status();
  absl::StatusOr<std::string> order = Field(path, header, "fortran_order", ",}");
  if (!order.ok()) return order.status();
  if (*order != "False") return Malformed(path, "Fortran order is not read");
  absl::StatusOr<std::string> field = Field(path, header, "shape", ")");
  if (!field.ok()) return field.status();
  absl::StatusOr<std::vector<int64_t>> shape = ParseShape(path, *field);
  if (!shape.ok()) return shape.status();

  NpyArray array;
  array.shape = *std::move(shape);
  absl::Status status;
  if (*descr == "'<f4'") {
    status = ReadValues(path, file.get(), array.shape, &array.floats);
  } else if (*descr == "'<i4'") {
    status = ReadValues(path, file.get(), array.shape, &array.ints);
  } else {
    status = Malformed(path, absl::StrCat("type ", *descr, ", known are '<f4' and '<i4'"));
  }
  if (!status.ok()) return status;
  return array;
}

}  // namespace fewbit
