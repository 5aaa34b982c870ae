// Typed access to one JSON object of a config file. The first thing that is wrong is remembered and
// everything after it answers with a harmless value, so that a reader asks for its fields one after
// the other and looks at status() before it computes with them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/json.h"
#include "runtime/weights/text.h"

namespace fewbit {

// A key that is missing and one that is null are the same. Thread rule: one owner.
class ConfigFields {
 public:
  // `object` must outlive this. `file` begins every message.
  ConfigFields(const nlohmann::json& object, std::string file)
      : object_(object), file_(std::move(file)) {}

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }
  const std::string& file() const { return file_; }

  const nlohmann::json* Find(std::string_view key) const;
  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  // The key is there, be it null.
  bool Mentions(std::string_view key) const { return object_.contains(key); }

  std::optional<int64_t> Int(std::string_view key, int64_t min, int64_t max);
  int64_t RequiredInt(std::string_view key, int64_t min, int64_t max);
  // Finite and within [min, max].
  std::optional<double> Number(std::string_view key, double min, double max);
  double RequiredNumber(std::string_view key, double min, double max);
  std::optional<bool> Bool(std::string_view key);
  std::optional<std::string> Text(std::string_view key);
  const nlohmann::json* Object(std::string_view key);

  // Records "file: key: value: reason" unless something is already wrong.
  void Refuse(std::string_view key, std::string_view reason);
  void Refuse(absl::Status status);

 private:
  void RefuseMissing(std::string_view key);

  const nlohmann::json& object_;
  std::string file_;
  absl::Status status_;
};

}  // namespace fewbit
