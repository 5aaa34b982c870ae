#include "server/utf8.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace fewbit {
namespace {

std::string EncodeUtf8(uint32_t code) {
  const auto byte = [](uint32_t value) { return static_cast<char>(value); };
  const auto trail = [&byte](uint32_t value) { return byte(0x80 | (value & 0x3F)); };
  if (code < 0x80) return {byte(code)};
  if (code < 0x800) return {byte(0xC0 | (code >> 6)), trail(code)};
  if (code < 0x10000) return {byte(0xE0 | (code >> 12)), trail(code >> 6), trail(code)};
  return {byte(0xF0 | (code >> 18)), trail(code >> 12), trail(code >> 6), trail(code)};
}

TEST(Utf8Test, EveryCodePointIsOneCharacterAndEveryPrefixOfItIsIncomplete) {
  for (uint32_t code = 0; code < 0x10FFFF + 1; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    const std::string text = EncodeUtf8(code);
    const Utf8Char whole = FirstUtf8Char(text + "x");
    ASSERT_EQ(whole.kind, Utf8Kind::kValid) << code;
    ASSERT_EQ(whole.length, text.size()) << code;
    for (size_t length = 1; length < text.size(); ++length) {
      const Utf8Char part = FirstUtf8Char(std::string_view(text).substr(0, length));
      ASSERT_EQ(part.kind, Utf8Kind::kIncomplete) << code;
      ASSERT_EQ(part.length, length) << code;
      ASSERT_EQ(FirstUtf8Char(text.substr(0, length) + "x").kind, Utf8Kind::kInvalid) << code;
    }
  }
}

TEST(Utf8Test, SurrogatesOverlongFormsAndLargeCodesAreInvalidFromTheSecondByteOn) {
  for (uint32_t code = 0xD800; code <= 0xDFFF; ++code) {
    const std::string text = EncodeUtf8(code);
    ASSERT_EQ(FirstUtf8Char(text).kind, Utf8Kind::kInvalid) << code;
    ASSERT_EQ(FirstUtf8Char(text.substr(0, 2)).kind, Utf8Kind::kInvalid) << code;
  }
  for (const std::string_view text :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xF0\x80\x80\x80",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\x80", "\xBF"}) {
    EXPECT_EQ(FirstUtf8Char(text).kind, Utf8Kind::kInvalid);
    EXPECT_EQ(FirstUtf8Char(text).length, 1u);
  }
}

TEST(Utf8Test, WholeTexts) {
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_TRUE(IsValidUtf8(std::string_view("\0a", 2)));
  EXPECT_TRUE(IsValidUtf8("\u00e9\u4e16\U0001F600 end"));
  EXPECT_TRUE(IsValidUtf8(kReplacementCharacter));
  EXPECT_FALSE(IsValidUtf8("abc\xE4\xB8"));
  EXPECT_FALSE(IsValidUtf8("\x80 abc"));
}

}  // namespace
}  // namespace fewbit
