#include "runtime/weights/canary.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/config_fields.h"
#include "runtime/weights/file.h"
#include "runtime/weights/json.h"

namespace fewbit {
namespace {

using nlohmann::json;

constexpr int kVersion = 2;
constexpr size_t kMaxPrompts = 64;
constexpr size_t kMaxTokens = 1024;
constexpr size_t kMaxFileBytes = 1 << 20;

std::string PathIn(const std::string& model_dir) {
  return (std::filesystem::path(model_dir) / "canary.json").string();
}

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::StatusOr<std::vector<TokenId>> ReadIds(const json& list, size_t max, int32_t vocab_size) {
  if (!list.is_array() || list.empty() || list.size() > max) {
    return Bad("must be a list of 1 to ", max, " token ids");
  }
  std::vector<TokenId> ids;
  for (const json& item : list) {
    if (!item.is_number_integer() || item < 0 || item >= vocab_size) {
      return Bad(JsonText(item), " is no id of the vocabulary of ", vocab_size, " tokens");
    }
    ids.push_back(TokenId{item.get<int32_t>()});
  }
  return ids;
}

absl::StatusOr<TopTokens> ReadTop(const json& object, int32_t vocab_size) {
  if (!object.is_object()) return Bad("must be an object with ids and logprobs");
  absl::StatusOr<std::vector<TokenId>> ids =
      ReadIds(object.value("ids", json()), Canary::kTop, vocab_size);
  if (!ids.ok()) return Bad("ids: ", ids.status().message());
  const json logprobs = object.value("logprobs", json());
  if (!logprobs.is_array() || logprobs.size() != ids->size()) {
    return Bad("logprobs: must be a list of ", ids->size(), " numbers, one for each id");
  }
  TopTokens top{.ids = *std::move(ids), .logprobs = {}};
  for (const json& item : logprobs) {
    const double value = item.is_number() ? item.get<double>() : 1.0;
    if (!(value <= 0.0) || !std::isfinite(value)) {
      return Bad("logprobs: ", JsonText(item), " is not the logarithm of a probability");
    }
    top.logprobs.push_back(static_cast<float>(value));
  }
  if (!std::is_sorted(top.logprobs.rbegin(), top.logprobs.rend())) {
    return Bad("logprobs: must begin with the largest");
  }
  return top;
}

absl::StatusOr<CanaryPrompt> ReadPrompt(const json& object, int32_t vocab_size) {
  if (!object.is_object()) return Bad("must be an object");
  CanaryPrompt prompt;
  absl::StatusOr<std::vector<TokenId>> ids =
      ReadIds(object.value("token_ids", json()), kMaxTokens, vocab_size);
  if (!ids.ok()) return Bad("token_ids: ", ids.status().message());
  prompt.token_ids = *std::move(ids);
  if (object.contains("original")) {
    absl::StatusOr<TopTokens> top = ReadTop(object["original"], vocab_size);
    if (!top.ok()) return Bad("original: ", top.status().message());
    prompt.original = *std::move(top);
  }
  absl::StatusOr<TopTokens> top = ReadTop(object.value("expected", json()), vocab_size);
  if (!top.ok()) return Bad("expected: ", top.status().message());
  prompt.expected = *std::move(top);
  return prompt;
}

json ToJson(const TopTokens& top) {
  // Five digits: less than any device agrees with another on.
  constexpr double kUnit = 1e5;
  json ids = json::array(), logprobs = json::array();
  for (const TokenId id : top.ids) ids.push_back(ToInt(id));
  for (const float logprob : top.logprobs) {
    logprobs.push_back(std::round(std::min(logprob, 0.0f) * kUnit) / kUnit);
  }
  return {{"ids", std::move(ids)}, {"logprobs", std::move(logprobs)}};
}

}  // namespace

TopTokens TopOf(std::span<const float> logits, int count) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t kept = std::min(logits.size(), static_cast<size_t>(count));
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
      [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  double sum = 0.0;
  const double largest = logits[order[0]];
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  TopTokens top;
  for (size_t i = 0; i < kept; ++i) {
    top.ids.push_back(TokenId{order[i]});
    top.logprobs.push_back(static_cast<float>(logits[order[i]] - largest - std::log(sum)));
  }
  return top;
}

// Coarser events never have a larger divergence. Those here: each token in both lists; what only p
// lists (`missing`, under q no likelier than q's last token each, nor than what q's list leaves);
// everything else. The probability of `missing` under q is taken where the sum is least.
double TopDivergence(const TopTokens& p, const TopTokens& q) {
  // Of what a list leaves out: not less than rounding of the others leaves.
  constexpr double kLeast = 1e-6;
  double divergence = 0.0, p_rest = 1.0, q_left = 1.0, q_unmatched = 1.0, p_missing = 0.0;
  int missing = 0;
  for (const float log_q : q.logprobs) q_left -= std::exp(static_cast<double>(log_q));
  for (size_t i = 0; i < p.ids.size(); ++i) {
    const double log_p = p.logprobs[i];
    p_rest -= std::exp(log_p);
    const auto at = std::find(q.ids.begin(), q.ids.end(), p.ids[i]);
    if (at == q.ids.end()) {
      ++missing;
      p_missing += std::exp(log_p);
      continue;
    }
    const double log_q = q.logprobs[at - q.ids.begin()];
    q_unmatched -= std::exp(log_q);
    divergence += std::exp(log_p) * (log_p - log_q);
  }
  p_rest = std::max(p_rest, kLeast);
  q_left = std::max(q_left, kLeast);
  q_unmatched = std::max(q_unmatched, kLeast);
  double q_rest = q_unmatched;
  if (missing > 0) {
    const double most =
        std::min(missing * std::exp(static_cast<double>(q.logprobs.back())), q_left);
    const double q_missing = std::min(most, q_unmatched * p_missing / (p_missing + p_rest));
    divergence += p_missing * std::log(p_missing / q_missing);
    q_rest = std::max(q_unmatched - q_missing, kLeast);
  }
  return std::max(0.0, divergence + p_rest * std::log(p_rest / q_rest));
}

CanaryDistances MeasureCanary(const Canary& canary, std::span<const TopTokens> served) {
  const double share = 1.0 / static_cast<double>(canary.prompts.size());
  CanaryDistances distances;
  for (size_t i = 0; i < canary.prompts.size(); ++i) {
    const CanaryPrompt& prompt = canary.prompts[i];
    distances.expected_served += share * TopDivergence(prompt.expected, served[i]);
    if (!prompt.original) continue;
    const auto add = [&](const TopTokens& q, std::optional<double>* mean) {
      *mean = mean->value_or(0.0) + share * TopDivergence(*prompt.original, q);
    };
    add(prompt.expected, &distances.original_expected);
    add(served[i], &distances.original_served);
  }
  return distances;
}

absl::StatusOr<std::optional<Canary>> LoadCanary(const std::string& model_dir, int32_t vocab_size) {
  const std::string path = PathIn(model_dir);
  std::optional<Canary> canary;
  if (!std::filesystem::exists(path)) return canary;
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<json> object = ParseJsonObject(*text, path);
  if (!object.ok()) return object.status();
  ConfigFields fields(*object, path);
  fields.RequiredInt("version", kVersion, kVersion);
  const json* prompts = fields.Find("prompts");
  if (prompts == nullptr || !prompts->is_array() || prompts->empty() ||
      prompts->size() > kMaxPrompts) {
    fields.Refuse("prompts", StrCat("must be a list of 1 to ", kMaxPrompts, " prompts"));
  }
  if (!fields.ok()) return fields.status();
  canary.emplace();
  for (size_t i = 0; i < prompts->size(); ++i) {
    absl::StatusOr<CanaryPrompt> prompt = ReadPrompt((*prompts)[i], vocab_size);
    if (!prompt.ok()) return Bad(path, ": prompts[", i, "].", prompt.status().message());
    canary->prompts.push_back(*std::move(prompt));
    if (canary->prompts.back().original.has_value() != canary->prompts[0].original.has_value()) {
      return Bad(path, ": prompts[", i, "]: some prompts have an original, others not");
    }
  }
  return canary;
}

absl::Status WriteCanary(const std::string& model_dir, const Canary& canary) {
  json prompts = json::array();
  for (const CanaryPrompt& prompt : canary.prompts) {
    json ids = json::array();
    for (const TokenId id : prompt.token_ids) ids.push_back(ToInt(id));
    json object = {{"token_ids", std::move(ids)}, {"expected", ToJson(prompt.expected)}};
    if (prompt.original) object["original"] = ToJson(*prompt.original);
    prompts.push_back(std::move(object));
  }
  const json object = {{"version", kVersion}, {"prompts", std::move(prompts)}};
  return WriteFileDurably(PathIn(model_dir), object.dump() + "\n");
}

}  // namespace fewbit
