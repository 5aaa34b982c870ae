#include "runtime/tune/tuning_record.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/file.h"

namespace fewbit::tune {
namespace {

using nlohmann::json;

constexpr char kPrefix[] = "tuning-";
constexpr char kSuffix[] = ".state";

std::string StepPrefix(int step) { return absl::StrCat(kPrefix, step, "-"); }

std::string PathOf(const std::string& directory, int step, int layer) {
  return absl::StrCat(directory, "/", StepPrefix(step), layer, kSuffix);
}

std::span<const uint8_t> BytesOf(std::span<const float> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

// JSON has no NaN.
json NumberOrNull(double value) { return std::isnan(value) ? json() : json(value); }

bool ParsePoint(const json& value, TunePoint* point) {
  if (!value.is_array() || value.size() != 4 || !value[0].is_number_integer() ||
      !(value[1].is_number() || value[1].is_null()) || !value[2].is_number() ||
      !value[3].is_number()) {
    return false;
  }
  point->step = value[0].get<int>();
  point->training_kl =
      value[1].is_null() ? std::numeric_limits<double>::quiet_NaN() : value[1].get<double>();
  point->held_out = {.kl = value[2].get<double>(), .same_top = value[3].get<double>()};
  return true;
}

bool ParseCurve(const json& value, std::vector<TunePoint>* curve) {
  if (!value.is_array() || value.empty()) return false;
  for (const json& entry : value) {
    if (!ParsePoint(entry, &curve->emplace_back())) return false;
  }
  return true;
}

bool ParseChecksums(const json& value, std::vector<uint64_t>* checksums) {
  if (!value.is_array()) return false;
  for (const json& entry : value) {
    if (!entry.is_number_unsigned()) return false;
    checksums->push_back(entry.get<uint64_t>());
  }
  return true;
}

bool ParseStep(const json& value, int* step) {
  if (!value.is_number_unsigned()) return false;
  *step = value.get<int>();
  return *step >= 0;
}

}  // namespace

json ToJson(const TuningRecord& record) {
  json curve = json::array();
  for (const TunePoint& point : record.curve) {
    curve.push_back(
        {point.step, NumberOrNull(point.training_kl), point.held_out.kl, point.held_out.same_top});
  }
  return {{"fingerprint", FingerprintToJson(record.fingerprint)},
          {"step", static_cast<unsigned>(record.step)},
          {"best_step", static_cast<unsigned>(record.best_step)},
          {"curve", std::move(curve)},
          {"loss_sum", record.loss_sum},
          {"checksums", record.checksums}};
}

absl::StatusOr<TuningRecord> ParseTuningRecord(const json& value) {
  TuningRecord record;
  const auto entry = [&](const char* name) { return value.value(name, json()); };
  const char* bad = nullptr;
  if (!ParseFingerprint(entry("fingerprint"), &record.fingerprint)) bad = "fingerprint";
  if (!ParseStep(entry("step"), &record.step)) bad = "step";
  if (!ParseStep(entry("best_step"), &record.best_step)) bad = "best_step";
  if (!ParseCurve(entry("curve"), &record.curve)) bad = "curve";
  if (!ParseChecksums(entry("checksums"), &record.checksums)) bad = "checksums";
  const json loss_sum = entry("loss_sum");
  if (loss_sum.is_number()) {
    record.loss_sum = loss_sum.get<double>();
  } else {
    bad = "loss_sum";
  }
  if (bad != nullptr) return absl::DataLossError(absl::StrCat(bad, ": missing or damaged"));
  return record;
}

absl::StatusOr<uint64_t> WriteLayerState(const std::string& directory, int step, int layer,
                                         const LayerState& state, std::span<const float> best) {
  const std::string path = PathOf(directory, step, layer);
  const std::span<const uint8_t> parts[] = {BytesOf(state.values), BytesOf(state.first_moments),
                                            BytesOf(state.second_moments), BytesOf(best)};
  absl::Status status = WriteFileDurably(path, parts);
  if (!status.ok()) return status;
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  return Fnv1a((*file)->bytes());
}

absl::StatusOr<LayerState> ReadLayerState(const std::string& directory, int step, int layer,
                                          uint64_t checksum, int64_t values,
                                          std::vector<float>* best) {
  const std::string path = PathOf(directory, step, layer);
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return absl::DataLossError(file.status().message());
  const std::span<const uint8_t> bytes = (*file)->bytes();
  LayerState state;
  std::vector<float>* const arrays[] = {&state.values, &state.first_moments, &state.second_moments,
                                        best};
  const size_t part = static_cast<size_t>(values) * sizeof(float);
  if (bytes.size() != std::size(arrays) * part || Fnv1a(bytes) != checksum) {
    return absl::DataLossError(absl::StrCat(path, ": not what the run wrote"));
  }
  for (size_t i = 0; i < std::size(arrays); ++i) {
    arrays[i]->resize(static_cast<size_t>(values));
    std::memcpy(arrays[i]->data(), bytes.data() + i * part, part);
  }
  return state;
}

absl::Status RemoveLayerStates(const std::string& directory, int step) {
  std::error_code error;
  std::vector<std::filesystem::path> old;
  std::filesystem::directory_iterator it(directory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!absl::StartsWith(name, kPrefix) || !absl::EndsWith(name, kSuffix)) continue;
    if (!absl::StartsWith(name, StepPrefix(step))) old.push_back(it->path());
  }
  for (const std::filesystem::path& path : old) {
    if (!error) std::filesystem::remove(path, error);
  }
  return error ? ErrnoStatus(error.value(), "clean up", directory) : absl::OkStatus();
}

}  // namespace fewbit::tune
