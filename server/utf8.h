// The one definition of valid UTF-8 for everything that enters or leaves as text: no overlong
// forms, no surrogates, nothing above U+10FFFF (The Unicode Standard, table 3-7).
#pragma once

#include <cstddef>
#include <string_view>

namespace fewbit {

enum class Utf8Kind {
  kValid,       // a whole character; length is 1 to 4
  kInvalid,     // the first byte can begin no character here; length is 1
  kIncomplete,  // the text ends inside a character that is well formed so far; length is the rest
                // of the text
};

struct Utf8Char {
  Utf8Kind kind;
  size_t length;  // bytes
};

// Looks at the first character of `text`, which is not empty.
Utf8Char FirstUtf8Char(std::string_view text);

bool IsValidUtf8(std::string_view text);

// What stands for a byte that belongs to no character: U+FFFD.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace fewbit
