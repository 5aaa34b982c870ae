// StrCat for messages. Debian's Abseil is built as C++14, so that its string_view is a type of its
// own and absl::StrCat does not take the standard one; this does.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace fewbit {
namespace text_internal {

template <typename T>
const T& ForAbsl(const T& value) {
  return value;
}
inline absl::string_view ForAbsl(std::string_view value) { return {value.data(), value.size()}; }

}  // namespace text_internal

template <typename... Parts>
std::string StrCat(const Parts&... parts) {
  return absl::StrCat(text_internal::ForAbsl(parts)...);
}

}  // namespace fewbit
