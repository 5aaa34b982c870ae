// The file of --api_keys_file while the server runs: looked at with every call, read again when it
// has changed, so that a key that is added or taken away counts from the next call on.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/mutex.h"
#include "server/api_keys.h"

namespace fewbit {

// Thread-safe: mu_, held for a stat and, after a change, for reading the file.
class ApiKeyFile {
 public:
  // Fails as ApiKeys::Load.
  static absl::StatusOr<std::unique_ptr<ApiKeyFile>> Open(const std::string& path);

  // As ApiKeys::Tenant, by the file as it is now. A changed file that is not there or wrong leaves
  // the last keys in place, with a warning in the log, until it changes again.
  absl::StatusOr<std::string> Tenant(absl::string_view authorization);

 private:
  // By what a change is noticed: a file that is replaced has another inode, one that is rewritten
  // another time or size.
  struct Version {
    uint64_t inode = 0;
    int64_t size = -1;  // -1: there is no file
    int64_t changed_ns = 0;

    static Version Of(const std::string& path);
    bool operator==(const Version&) const = default;
  };

  ApiKeyFile(std::string path, Version version, ApiKeys keys);
  std::shared_ptr<const ApiKeys> Current();

  const std::string path_;
  Mutex mu_;
  Version version_ FEWBIT_GUARDED_BY(mu_);  // taken up or found wrong
  std::shared_ptr<const ApiKeys> keys_ FEWBIT_GUARDED_BY(mu_);
};

}  // namespace fewbit
