// The requests that Abort can name: from Submit to the final event. Thread-safe: mu_.
#pragma once

#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "scheduler/ids.h"
#include "scheduler/mutex.h"

namespace fewbit {

class LiveRequests {
 public:
  // ALREADY_EXISTS: a running request has this name.
  absl::Status Add(const std::string& name, RequestId id);

  // Marks the request so that its end reads as an abort. False: none of this name.
  bool Abort(const std::string& name, RequestId* id);

  // Returns whether it was aborted.
  bool Remove(const std::string& name);

 private:
  struct Entry {
    RequestId id{};
    bool aborted = false;
  };
  Mutex mu_;
  absl::flat_hash_map<std::string, Entry> by_name_ FEWBIT_GUARDED_BY(mu_);
};

}  // namespace fewbit
