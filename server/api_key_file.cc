#include "server/api_key_file.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <utility>

namespace fewbit {

ApiKeyFile::Version ApiKeyFile::Version::Of(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) return Version();
  Version version;
  version.inode = info.st_ino;
  version.size = info.st_size;
  version.changed_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  return version;
}

absl::StatusOr<std::unique_ptr<ApiKeyFile>> ApiKeyFile::Open(const std::string& path) {
  // Before the content: a change in between is seen with the first call.
  const Version version = Version::Of(path);
  absl::StatusOr<ApiKeys> keys = ApiKeys::Load(path);
  if (!keys.ok()) return keys.status();
  return std::unique_ptr<ApiKeyFile>(new ApiKeyFile(path, version, *std::move(keys)));
}

ApiKeyFile::ApiKeyFile(std::string path, Version version, ApiKeys keys) : path_(std::move(path)) {
  MutexLock lock(&mu_);
  version_ = version;
  keys_ = std::make_shared<const ApiKeys>(std::move(keys));
}

absl::StatusOr<std::string> ApiKeyFile::Tenant(absl::string_view authorization) {
  return Current()->Tenant(authorization);
}

std::shared_ptr<const ApiKeys> ApiKeyFile::Current() {
  MutexLock lock(&mu_);
  const Version version = Version::Of(path_);
  if (version == version_) return keys_;
  version_ = version;
  absl::StatusOr<ApiKeys> keys = ApiKeys::Load(path_);
  if (keys.ok()) {
    keys_ = std::make_shared<const ApiKeys>(*std::move(keys));
    spdlog::info("API keys: the file has changed, {} keys now", keys_->size());
  } else {
    spdlog::warn("API keys: the last {} stay, for the file has become wrong: {}", keys_->size(),
                 std::string(keys.status().message()));
  }
  return keys_;
}

}  // namespace fewbit
