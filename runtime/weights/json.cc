#include "runtime/weights/json.h"

#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "runtime/weights/text.h"

namespace fewbit {

namespace {

constexpr size_t kMaxShown = 200;  // bytes

std::string Shortened(std::string_view text) {
  return StrCat(text.substr(0, kMaxShown), text.size() > kMaxShown ? "..." : "");
}

}  // namespace

std::string Printable(std::string_view text) {
  const std::string_view shown = text.substr(0, kMaxShown);
  return StrCat(absl::CHexEscape(absl::string_view(shown.data(), shown.size())),
                text.size() > kMaxShown ? "..." : "");
}

std::string JsonText(const nlohmann::json& value) {
  // Printable already: with ensure_ascii JSON escapes all that is not printable ASCII by itself.
  return Shortened(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view file) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string, std::less<>>> keys;
  std::string problem;
  const auto watch = [&](int depth, Event event, nlohmann::json& parsed) {
    if (!problem.empty()) return false;  // the rest is parsed, but not kept
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get_ref<std::string&>()).second) {
      problem = StrCat("the key '", Printable(parsed.get_ref<std::string&>()), "' occurs twice");
    }
    if (depth > kMaxJsonDepth) problem = StrCat("nested deeper than ", kMaxJsonDepth);
    return problem.empty();
  };
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(text.begin(), text.end(), watch);
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        StrCat(file, ": bad JSON: ", Printable(std::string_view(error.what()))));
  }
  if (!problem.empty()) {
    return absl::InvalidArgumentError(StrCat(file, ": bad JSON: ", problem));
  }
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError(StrCat(file, ": bad JSON: not an object"));
  }
  return parsed;
}

}  // namespace fewbit
