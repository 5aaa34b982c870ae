#include "server/utf8.h"

#include <cstdint>

namespace fewbit {
namespace {

constexpr bool Between(uint8_t byte, uint8_t low, uint8_t high) {
  return byte >= low && byte <= high;
}

// Bytes that a character beginning with `lead` has; 0: none begins so.
constexpr size_t LengthOf(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (Between(lead, 0xC2, 0xDF)) return 2;
  if (Between(lead, 0xE0, 0xEF)) return 3;
  if (Between(lead, 0xF0, 0xF4)) return 4;
  return 0;
}

// The second byte's range is narrower after four leads: overlong forms, surrogates, beyond
// U+10FFFF.
constexpr bool MayFollow(uint8_t lead, uint8_t second) {
  switch (lead) {
    case 0xE0:
      return Between(second, 0xA0, 0xBF);
    case 0xED:
      return Between(second, 0x80, 0x9F);
    case 0xF0:
      return Between(second, 0x90, 0xBF);
    case 0xF4:
      return Between(second, 0x80, 0x8F);
    default:
      return Between(second, 0x80, 0xBF);
  }
}

}  // namespace

Utf8Char FirstUtf8Char(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  const size_t length = LengthOf(lead);
  if (length == 0) return {Utf8Kind::kInvalid, 1};
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Kind::kIncomplete, i};
    const auto byte = static_cast<uint8_t>(text[i]);
    if (i == 1 ? !MayFollow(lead, byte) : !Between(byte, 0x80, 0xBF)) {
      return {Utf8Kind::kInvalid, 1};
    }
  }
  return {Utf8Kind::kValid, length};
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char first = FirstUtf8Char(text);
    if (first.kind != Utf8Kind::kValid) return false;
    text.remove_prefix(first.length);
  }
  return true;
}

}  // namespace fewbit
