// The safetensors reader: what it accepts, and for every way a file can be malformed the code and
// the words.
#include "runtime/weights/safetensors.h"

#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/safetensors_writer.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

absl::StatusOr<ParsedSafetensors> Parse(const std::string& file) {
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(file.data()), file.size()},
                          "w.safetensors");
}

struct Malformed {
  const char* name;
  std::string file;
  absl::StatusCode code;
  const char* text;
};

class MalformedTest : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedTest, IsRefusedWithFileAndReason) {
  const auto parsed = Parse(GetParam().file);
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), GetParam().code) << parsed.status();
  EXPECT_THAT(std::string(parsed.status().message()),
              AllOf(HasSubstr("w.safetensors"), HasSubstr(GetParam().text)));
}

std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets, size_t data_bytes) {
  return FrameSafetensors(
      "{\"x\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}",
      std::string(data_bytes, 'd'));
}

std::string TwoTensors(const std::string& first, const std::string& second, size_t data_bytes) {
  return FrameSafetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
                              R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
                          std::string(data_bytes, 'd'));
}

std::string LengthOnly(uint64_t length, size_t rest) {
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) +
         std::string(rest, ' ');
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kLost = absl::StatusCode::kDataLoss;

INSTANTIATE_TEST_SUITE_P(
    Files, MalformedTest,
    testing::Values(
        Malformed{"empty", "", kLost, "too short"},
        Malformed{"short", "1234567", kLost, "too short"},
        Malformed{"header_beyond_file", LengthOnly(100, 99), kLost, "beyond the end"},
        Malformed{"huge_header", LengthOnly(100'000'001, 8), kInvalid, "limit is 100000000"},
        Malformed{"wrapping_header", LengthOnly(UINT64_MAX, 8), kInvalid, "limit is 100000000"},
        Malformed{"lfs_pointer", "version https://git-lfs.github.com/spec/v1\n", kInvalid,
                  "Git LFS pointer"},
        Malformed{"empty_header", FrameSafetensors("", ""), kInvalid, "bad JSON"},
        Malformed{"bad_json", FrameSafetensors("{\"x\":", ""), kInvalid, "bad header: bad JSON"},
        Malformed{"not_utf8", FrameSafetensors("{\"\xff\":1}", ""), kInvalid, "bad JSON"},
        Malformed{"not_an_object", FrameSafetensors("[]", ""), kInvalid, "not an object"},
        Malformed{"too_deep", FrameSafetensors(std::string(4000, '[') + std::string(4000, ']'), ""),
                  kInvalid, "nested deeper"},
        Malformed{"duplicate",
                  FrameSafetensors(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                   R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                   "d"),
                  kInvalid, "'a' occurs twice"},
        Malformed{"metadata_no_object", FrameSafetensors(R"({"__metadata__":[]})", ""), kInvalid,
                  "__metadata__"},
        Malformed{"metadata_no_string", FrameSafetensors(R"({"__metadata__":{"k":1}})", ""),
                  kInvalid, "'k' is not a string"},
        Malformed{"entry_no_object", FrameSafetensors(R"({"x":7})", ""), kInvalid,
                  "tensor 'x': its header entry"},
        Malformed{
            "foreign_key",
            FrameSafetensors(R"({"x":{"dtype":"U8","shape":[],"data_offsets":[0,1],"stride":[1]}})",
                             "d"),
            kInvalid, "unknown header key 'stride'"},
        Malformed{"unknown_dtype", OneTensor("\"Q4\"", "[1]", "[0,1]", 1), kInvalid,
                  "tensor 'x': unknown dtype"},
        Malformed{"dtype_no_string", OneTensor("8", "[1]", "[0,1]", 1), kInvalid, "dtype missing"},
        Malformed{"negative_dimension", OneTensor("\"U8\"", "[-1]", "[0,1]", 1), kInvalid,
                  "not a natural number"},
        Malformed{"fractional_dimension", OneTensor("\"U8\"", "[1.0]", "[0,1]", 1), kInvalid,
                  "not a natural number"},
        Malformed{"shape_no_array", OneTensor("\"U8\"", "1", "[0,1]", 1), kInvalid,
                  "shape missing"},
        Malformed{"overflow", OneTensor("\"F32\"", "[4294967296,4294967296]", "[0,0]", 0), kInvalid,
                  "overflows"},
        Malformed{"overflow_to_zero", OneTensor("\"U16\"", "[9223372036854775808]", "[0,0]", 0),
                  kInvalid, "overflows"},
        Malformed{"size_mismatch", OneTensor("\"F32\"", "[2]", "[0,4]", 4), kInvalid,
                  "needs 8 bytes, data_offsets span 4"},
        Malformed{"offsets_not_two", OneTensor("\"U8\"", "[1]", "[0]", 1), kInvalid,
                  "data_offsets missing"},
        Malformed{"offsets_negative", OneTensor("\"U8\"", "[1]", "[-1,0]", 1), kInvalid,
                  "data_offsets missing"},
        Malformed{"offsets_reversed", OneTensor("\"U8\"", "[1]", "[1,0]", 1), kInvalid,
                  "end before they begin"},
        Malformed{"truncated_data", OneTensor("\"U8\"", "[100]", "[0,100]", 99), kLost,
                  "truncated or corrupt"},
        Malformed{"overlap", TwoTensors("[0,4]", "[3,7]", 7), kInvalid, "'b': overlaps"},
        Malformed{"hole", TwoTensors("[0,4]", "[5,9]", 9), kInvalid,
                  "'b': 1 bytes before it belong to no tensor"},
        Malformed{"trailing_bytes", TwoTensors("[0,4]", "[4,8]", 9), kInvalid,
                  "1 bytes at the end"},
        Malformed{"hostile_name", FrameSafetensors("{\"a\\u001b[2J\":1}", ""), kInvalid,
                  "a\\x1b[2J"}),
    [](const testing::TestParamInfo<Malformed>& info) { return info.param.name; });

TEST(SafetensorsTest, ReadsTypesShapesAndEmptyTensors) {
  const std::string file = FrameSafetensors(
      R"({"__metadata__":{"format":"pt"},"e":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},)"
      R"("s":{"dtype":"BF16","shape":[],"data_offsets":[4,6]},)"
      R"("m":{"dtype":"U16","shape":[2,1],"data_offsets":[0,4]}}   )",
      "abcdef");
  const auto parsed = Parse(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tensors.size(), 3u);
  const Tensor& matrix = parsed->tensors.at("m");
  EXPECT_EQ(matrix.type, TensorType::kU16);
  EXPECT_THAT(matrix.shape, testing::ElementsAre(2, 1));
  EXPECT_EQ(std::memcmp(matrix.data.data(), "abcd", 4), 0);
  EXPECT_EQ(parsed->tensors.at("e").data.size(), 0u);
  EXPECT_EQ(parsed->tensors.at("s").data.size(), 2u);
}

TEST(SafetensorsTest, UnpaddedHeaderStillGivesAlignedTensors) {
  const TempDirectory directory;
  const float values[] = {1.5f, -2.0f};
  for (int padding = 0; padding < 8; ++padding) {
    const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})" +
                               std::string(static_cast<size_t>(padding), ' ');
    WriteText(directory / "x.safetensors",
              FrameSafetensors(header, {reinterpret_cast<const char*>(values), sizeof(values)}));
    const auto file = SafetensorsFile::Open(directory / "x.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    const Tensor& tensor = file->tensors().at("x");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data.data()) % alignof(float), 0u);
    file->mapping()->Release(tensor.data);  // must not lose a copy
    EXPECT_EQ(std::memcmp(tensor.data.data(), values, sizeof(values)), 0);
  }
}

TEST(SafetensorsTest, WriterAlignsDataAndPackedTensors) {
  const TempDirectory directory;
  const std::vector<uint8_t> odd(3, 1);
  const std::vector<uint8_t> packed(32, 2);
  const std::vector<uint8_t> words(8, 3);
  ASSERT_TRUE(
      WriteSafetensors(directory / "x.safetensors",
                       {{.name = "odd", .shape = {3}, .data = odd},
                        {.name = "words", .type = TensorType::kU32, .shape = {2}, .data = words},
                        {.name = "packed", .shape = {2, 16}, .data = packed, .alignment = 16}})
          .ok());
  const std::string text = ReadText(directory / "x.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, text.data(), sizeof(header_bytes));
  EXPECT_EQ((header_bytes + 8) % 64, 0u);
  const auto file = SafetensorsFile::Open(directory / "x.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->tensors().at("packed").data.data()) % 16, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->tensors().at("words").data.data()) % 4, 0u);
  EXPECT_THAT(file->tensors().at("odd").data, testing::ElementsAre(1, 1, 1));
}

TEST(SafetensorsTest, MissingFileAndDirectoryInItsPlace) {
  const TempDirectory directory;
  const auto missing = SafetensorsFile::Open(directory / "none.safetensors");
  EXPECT_TRUE(absl::IsNotFound(missing.status())) << missing.status();
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("none.safetensors"));
  const auto not_a_file = SafetensorsFile::Open(directory.path());
  EXPECT_TRUE(absl::IsInvalidArgument(not_a_file.status())) << not_a_file.status();
  EXPECT_THAT(std::string(not_a_file.status().message()), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace fewbit
