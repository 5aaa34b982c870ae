// JSON texts of a checkpoint, parsed without letting the library's exceptions out. Refuses what
// JSON leaves open and a reader would silently misread: a key that occurs twice in one object, and
// nesting deeper than any real file has.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace fewbit {

inline constexpr int kMaxJsonDepth = 32;

// The object that `text` holds. INVALID_ARGUMENT names `file` and, for a syntax error, line and
// column.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view file);

// Text of unknown origin made safe for a message: control characters escaped, long text cut.
std::string Printable(std::string_view text);

// A value as it would stand in the file, for messages.
std::string JsonText(const nlohmann::json& value);

}  // namespace fewbit
