#include "runtime/tune/two_stages.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/quantize/run_record.h"
#include "runtime/weights/file.h"
#include "runtime/weights/fingerprint.h"
#include "runtime/weights/json.h"

namespace fewbit::tune {
namespace {

constexpr size_t kMaxRecordBytes = 16 << 20;
constexpr char kFingerprint[] = "fingerprint";

std::string RecordPath(const std::string& out_dir) { return absl::StrCat(out_dir, ".run.json"); }

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

absl::Status Remove(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  return error ? ErrnoStatus(error.value(), "remove", path) : absl::OkStatus();
}

absl::StatusOr<Fingerprint> ReadRecord(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxRecordBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(*text, path);
  Fingerprint fingerprint;
  if (!json.ok() || !ParseFingerprint(json->value(kFingerprint, nlohmann::json()), &fingerprint)) {
    return absl::DataLossError(
        absl::StrCat(path, ": damaged; add --restart to discard the interrupted run"));
  }
  return fingerprint;
}

}  // namespace

std::string QuantizedStage(const std::string& out_dir) {
  return absl::StrCat(out_dir, ".quantized");
}

absl::StatusOr<bool> BeginTwoStages(const QuantizeOptions& quantize, const std::string& out_dir,
                                    std::span<const TokenId> calibration) {
  const std::string record = RecordPath(out_dir);
  std::error_code error;
  if (Exists(out_dir) && !std::filesystem::is_empty(out_dir, error)) {
    return absl::AlreadyExistsError(
        absl::StrCat(out_dir, ": exists and is not an empty directory"));
  }
  absl::StatusOr<Fingerprint> now = FingerprintOf(quantize, calibration, cpu::BestIsa());
  if (!now.ok()) return now.status();
  const bool interrupted = Exists(record);
  if (interrupted && quantize.restart) {
    if (absl::Status status = Remove(quantize.out_dir); !status.ok()) return status;
  } else if (interrupted) {
    const absl::StatusOr<Fingerprint> then = ReadRecord(record);
    if (!then.ok()) return then.status();
    if (absl::Status status = CheckSameRun(*then, *now, out_dir); !status.ok()) return status;
    return Exists(quantize.out_dir);
  } else if (Exists(quantize.out_dir)) {
    return absl::AlreadyExistsError(
        absl::StrCat(quantize.out_dir, ": exists, but no interrupted run left it; move it away"));
  }
  const nlohmann::json json = {{kFingerprint, FingerprintToJson(*now)}};
  if (absl::Status status = WriteFileDurably(record, json.dump(1) + "\n"); !status.ok()) {
    return status;
  }
  return false;
}

absl::Status EndTwoStages(const std::string& out_dir) { return Remove(RecordPath(out_dir)); }

}  // namespace fewbit::tune
