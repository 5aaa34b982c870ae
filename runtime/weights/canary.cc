#include "runtime/weights/canary.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/config_fields.h"
#include "runtime/weights/file.h"
#include "runtime/weights/json.h"

namespace fewbit {
namespace {

constexpr size_t kMinTokens = 2;
constexpr size_t kMaxTokens = 1024;
constexpr size_t kMaxFileBytes = 1 << 20;

std::string PathIn(const std::string& model_dir) {
  return (std::filesystem::path(model_dir) / "canary.json").string();
}

// The ids, or what is wrong with them.
absl::StatusOr<std::vector<TokenId>> ReadIds(const nlohmann::json* list, int32_t vocab_size) {
  if (list == nullptr || !list->is_array() || list->size() < kMinTokens ||
      list->size() > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("must be a list of ", kMinTokens, " to ", kMaxTokens, " token ids"));
  }
  std::vector<TokenId> ids;
  for (const nlohmann::json& item : *list) {
    if (!item.is_number_integer() || item < 0 || item >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(JsonText(item), " is no id of the vocabulary of ", vocab_size, " tokens"));
    }
    ids.push_back(TokenId{item.get<int32_t>()});
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::optional<Canary>> LoadCanary(const std::string& model_dir, int32_t vocab_size) {
  const std::string path = PathIn(model_dir);
  std::optional<Canary> canary;
  if (!std::filesystem::exists(path)) return canary;
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<nlohmann::json> object = ParseJsonObject(*text, path);
  if (!object.ok()) return object.status();
  ConfigFields fields(*object, path);
  canary.emplace();
  absl::StatusOr<std::vector<TokenId>> ids = ReadIds(fields.Find("token_ids"), vocab_size);
  if (ids.ok()) {
    canary->token_ids = *std::move(ids);
  } else {
    fields.Refuse("token_ids", std::string(ids.status().message()));
  }
  canary->mean_logprob = fields.RequiredNumber("mean_logprob", -100.0, 0.0);
  canary->tolerance = fields.Number("tolerance", 1e-6, 100.0).value_or(Canary::kTolerance);
  if (!fields.ok()) return fields.status();
  return canary;
}

absl::Status WriteCanary(const std::string& model_dir, const Canary& canary) {
  nlohmann::json ids = nlohmann::json::array();
  for (const TokenId id : canary.token_ids) ids.push_back(ToInt(id));
  const nlohmann::json object = {{"token_ids", std::move(ids)},
                                 {"mean_logprob", canary.mean_logprob},
                                 {"tolerance", canary.tolerance}};
  return WriteFileDurably(PathIn(model_dir), object.dump() + "\n");
}

}  // namespace fewbit
