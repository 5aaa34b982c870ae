#include "runtime/quantize/run_record.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/quant_layout.h"
#include "nlohmann/json.hpp"
#include "runtime/products/tile_product.h"

namespace fewbit {
namespace {

using nlohmann::json;

json QualityToJson(const MatrixQuality& q) {
  return {q.weighted_error, q.weighted_norm, q.error, q.norm, q.weights, q.weights4, q.outliers};
}

bool ParseQuality(const json& value, MatrixQuality* q) {
  constexpr size_t kSums = 4;
  constexpr size_t kCounts = 3;
  if (!value.is_array() || value.size() != kSums + kCounts) return false;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!(i < kSums ? value[i].is_number() : value[i].is_number_unsigned())) return false;
  }
  *q = {.weighted_error = value[0].get<double>(),
        .weighted_norm = value[1].get<double>(),
        .error = value[2].get<double>(),
        .norm = value[3].get<double>(),
        .weights = value[4].get<int64_t>(),
        .weights4 = value[5].get<int64_t>(),
        .outliers = value[6].get<int64_t>()};
  return true;
}

bool ParseNumbers(const json& value, std::vector<double>* numbers) {
  if (!value.is_array()) return false;
  for (const json& number : value) {
    if (!number.is_number()) return false;
    numbers->push_back(number.get<double>());
  }
  return true;
}

bool ParseLayers(const json& value, std::vector<std::optional<LayerRecord>>* layers) {
  if (!value.is_array()) return false;
  for (const json& entry : value) {
    std::optional<LayerRecord>& layer = layers->emplace_back();
    if (entry.is_null()) continue;
    if (!entry.is_object() || !entry.contains("checksum") || !entry.contains("qualities")) {
      return false;
    }
    const json& qualities = entry["qualities"];
    if (!entry["checksum"].is_number_unsigned() || !qualities.is_array() ||
        qualities.size() != kNumLinearRoles) {
      return false;
    }
    layer.emplace();
    layer->checksum = entry["checksum"].get<uint64_t>();
    for (int r = 0; r < kNumLinearRoles; ++r) {
      if (!ParseQuality(qualities[r], &layer->qualities[r])) return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<Fingerprint> FingerprintOf(const QuantizeOptions& options,
                                          std::span<const TokenId> calibration, cpu::Isa isa) {
  const auto number = [](auto value) { return json(value).dump(); };  // every digit of a double
  Fingerprint fingerprint = {{"method", options.method},
                             {"bits", number(options.bits)},
                             {"share4", number(options.share4)},
                             {"outliers", number(options.outliers)},
                             {"embedding_bits", number(options.embedding_bits)},
                             {"calibration_windows", number(options.calibration_windows)},
                             {"probe_windows", number(options.probe_windows)},
                             {"held_out_windows", number(options.held_out_windows)},
                             {"context", number(options.context)},
                             {"seed", number(options.seed)},
                             {"calibration", DescribeIds(calibration)},
                             {"program", options.program},
                             {"layout version", number(quant::kLayoutVersion)},
                             {"instruction set", cpu::IsaName(isa)},
                             {"products", ProductsName()}};
  if (absl::Status status = AddModelFiles(options.model_dir, "model file", &fingerprint);
      !status.ok()) {
    return status;
  }
  return fingerprint;
}

int RunRecord::finished() const {
  return static_cast<int>(std::count_if(layers.begin(), layers.end(),
                                        [](const auto& layer) { return layer.has_value(); }));
}

json ToJson(const RunRecord& record) {
  json layers = json::array();
  for (const std::optional<LayerRecord>& layer : record.layers) {
    if (!layer) {
      layers.push_back(nullptr);
      continue;
    }
    json qualities = json::array();
    for (const MatrixQuality& quality : layer->qualities) {
      qualities.push_back(QualityToJson(quality));
    }
    layers.push_back({{"checksum", layer->checksum}, {"qualities", std::move(qualities)}});
  }
  return {{"fingerprint", FingerprintToJson(record.fingerprint)},
          {"shares", record.plan.shares},
          {"divergences", record.plan.divergences},
          {"layers", std::move(layers)}};
}

absl::StatusOr<RunRecord> ParseRunRecord(const json& value) {
  RunRecord record;
  const auto entry = [&](const char* name) { return value.value(name, json()); };
  const char* bad = nullptr;
  if (!ParseLayers(entry("layers"), &record.layers)) bad = "layers";
  if (!ParseNumbers(entry("divergences"), &record.plan.divergences)) bad = "divergences";
  if (!ParseNumbers(entry("shares"), &record.plan.shares)) bad = "shares";
  if (!ParseFingerprint(entry("fingerprint"), &record.fingerprint)) bad = "fingerprint";
  if (bad != nullptr) return absl::DataLossError(absl::StrCat(bad, ": missing or damaged"));
  return record;
}

absl::Status CheckSizes(const RunRecord& record, int num_layers, bool planned) {
  const auto layers = static_cast<size_t>(num_layers);
  const size_t matrices = planned ? layers * kNumLinearRoles : 0;
  const char* bad = nullptr;
  if (record.layers.size() != layers) bad = "layers";
  if (record.plan.divergences.size() != matrices) bad = "divergences";
  if (record.plan.shares.size() != matrices) bad = "shares";
  for (const double share : record.plan.shares) {
    if (!(share >= 0.0 && share <= 1.0)) bad = "shares";
  }
  if (bad != nullptr) return absl::DataLossError(absl::StrCat(bad, ": not of this model"));
  return absl::OkStatus();
}

}  // namespace fewbit
