#include "runtime/weights/config_fields.h"

#include <cmath>
#include <utility>

namespace fewbit {

const nlohmann::json* ConfigFields::Find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void ConfigFields::Refuse(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void ConfigFields::Refuse(std::string_view key, std::string_view reason) {
  if (!status_.ok()) return;
  const auto found = object_.find(key);
  const std::string value = found == object_.end() ? "missing" : JsonText(*found);
  status_ = absl::InvalidArgumentError(StrCat(file_, ": ", key, ": ", value, ": ", reason));
}

void ConfigFields::RefuseMissing(std::string_view key) {
  Refuse(absl::InvalidArgumentError(StrCat(file_, ": ", key, ": missing")));
}

std::optional<int64_t> ConfigFields::Int(std::string_view key, int64_t min, int64_t max) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const bool huge =
      value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (!value->is_number_integer() || huge || value->get<int64_t>() < min ||
      value->get<int64_t>() > max) {
    Refuse(key, StrCat("must be an integer in [", min, ", ", max, "]"));
    return std::nullopt;
  }
  return value->get<int64_t>();
}

int64_t ConfigFields::RequiredInt(std::string_view key, int64_t min, int64_t max) {
  if (!Has(key)) RefuseMissing(key);
  return Int(key, min, max).value_or(min);
}

std::optional<double> ConfigFields::Number(std::string_view key, double min, double max) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= min && number <= max)) {
    Refuse(key, StrCat("must be a number in [", min, ", ", max, "]"));
    return std::nullopt;
  }
  return number;
}

double ConfigFields::RequiredNumber(std::string_view key, double min, double max) {
  if (!Has(key)) RefuseMissing(key);
  return Number(key, min, max).value_or(min);
}

std::optional<bool> ConfigFields::Bool(std::string_view key) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Refuse(key, "must be true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::string> ConfigFields::Text(std::string_view key) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Refuse(key, "must be a string");
    return std::nullopt;
  }
  return value->get<std::string>();
}

const nlohmann::json* ConfigFields::Object(std::string_view key) {
  const nlohmann::json* value = Find(key);
  if (value != nullptr && !value->is_object()) {
    Refuse(key, "must be an object");
    return nullptr;
  }
  return value;
}

}  // namespace fewbit
