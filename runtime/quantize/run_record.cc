#include "runtime/quantize/run_record.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "kernels/quant_layout.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/file.h"

namespace fewbit {
namespace {

using nlohmann::json;

// Those that the reader looks at or the writer copies.
constexpr const char* kModelFileEndings[] = {".safetensors", ".json", ".model", ".jinja", ".txt"};

std::string HashOf(std::span<const TokenId> ids) {
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(ids.data()),
                                       ids.size_bytes());
  return absl::StrCat(absl::Hex(Fnv1a(bytes), absl::kZeroPad16));
}

absl::Status AddModelFiles(const std::string& directory, Fingerprint* fingerprint) {
  std::error_code error;
  std::vector<std::string> names;
  std::filesystem::directory_iterator it(directory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    for (const std::string ending : kModelFileEndings) {
      if (name.ends_with(ending)) names.push_back(name);
    }
  }
  if (error) return ErrnoStatus(error.value(), "list", directory);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(directory, "/", name);
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat", path);
    if (!S_ISREG(info.st_mode)) continue;
    fingerprint->emplace_back(absl::StrCat("model file ", name),
                              absl::StrCat(info.st_size, " bytes of ", info.st_mtim.tv_sec, ".",
                                           absl::Dec(info.st_mtim.tv_nsec, absl::kZeroPad9), " s"));
  }
  return absl::OkStatus();
}

std::string ValueOf(const Fingerprint& fingerprint, const std::string& name) {
  for (const auto& [other, value] : fingerprint) {
    if (other == name) return value;
  }
  return "absent";
}

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

bool ParseFingerprint(const json& value, Fingerprint* fingerprint) {
  if (!value.is_array()) return false;
  for (const json& entry : value) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_string()) {
      return false;
    }
    fingerprint->emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
  }
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
  Fingerprint fingerprint = {
      {"method", options.method},
      {"bits", number(options.bits)},
      {"share4", number(options.share4)},
      {"outliers", number(options.outliers)},
      {"embedding_bits", number(options.embedding_bits)},
      {"calibration_windows", number(options.calibration_windows)},
      {"probe_windows", number(options.probe_windows)},
      {"context", number(options.context)},
      {"seed", number(options.seed)},
      {"calibration", absl::StrCat(calibration.size(), " tokens, hash ", HashOf(calibration))},
      {"program", options.program},
      {"layout version", number(quant::kLayoutVersion)},
      {"instruction set", cpu::IsaName(isa)}};
  if (absl::Status status = AddModelFiles(options.model_dir, &fingerprint); !status.ok()) {
    return status;
  }
  return fingerprint;
}

absl::Status CheckSameRun(const Fingerprint& interrupted, const Fingerprint& now,
                          const std::string& directory) {
  const auto check = [&](const std::string& name) {
    const std::string then = ValueOf(interrupted, name);
    const std::string value = ValueOf(now, name);
    if (then == value) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        directory, ": the interrupted run there had another ", name, " (", then, ", not ", value,
        "); repeat its command to go on with it, or add --restart to discard it"));
  };
  for (const Fingerprint* side : {&now, &interrupted}) {
    for (const auto& [name, value] : *side) {
      if (absl::Status status = check(name); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

int RunRecord::finished() const {
  return static_cast<int>(std::count_if(layers.begin(), layers.end(),
                                        [](const auto& layer) { return layer.has_value(); }));
}

json ToJson(const RunRecord& record) {
  json fingerprint = json::array();
  for (const auto& [name, value] : record.fingerprint) fingerprint.push_back({name, value});
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
  return {{"fingerprint", std::move(fingerprint)},
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
