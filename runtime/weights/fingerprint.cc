#include "runtime/weights/fingerprint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/file.h"

namespace fewbit {
namespace {

constexpr const char* kModelFileEndings[] = {".safetensors", ".json", ".model", ".jinja", ".txt"};

std::string ValueOf(const Fingerprint& fingerprint, const std::string& name) {
  for (const auto& [other, value] : fingerprint) {
    if (other == name) return value;
  }
  return "absent";
}

}  // namespace

std::string DescribeIds(std::span<const TokenId> ids) {
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(ids.data()),
                                       ids.size_bytes());
  return absl::StrCat(ids.size(), " tokens, hash ", absl::Hex(Fnv1a(bytes), absl::kZeroPad16));
}

absl::Status AddModelFiles(const std::string& directory, std::string_view what,
                           Fingerprint* fingerprint) {
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
    fingerprint->emplace_back(std::string(what) + " " + name,
                              absl::StrCat(info.st_size, " bytes of ", info.st_mtim.tv_sec, ".",
                                           absl::Dec(info.st_mtim.tv_nsec, absl::kZeroPad9), " s"));
  }
  return absl::OkStatus();
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

nlohmann::json FingerprintToJson(const Fingerprint& fingerprint) {
  nlohmann::json entries = nlohmann::json::array();
  for (const auto& [name, value] : fingerprint) entries.push_back({name, value});
  return entries;
}

bool ParseFingerprint(const nlohmann::json& value, Fingerprint* fingerprint) {
  if (!value.is_array()) return false;
  for (const nlohmann::json& entry : value) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_string()) {
      return false;
    }
    fingerprint->emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
  }
  return true;
}

}  // namespace fewbit
