#include "server/live_requests.h"

#include "absl/strings/str_cat.h"
#include "scheduler/check.h"
#include "server/status_codec.h"

namespace fewbit {

absl::Status LiveRequests::Add(const std::string& name, RequestId id) {
  MutexLock lock(&mu_);
  if (by_name_.try_emplace(name, Entry{.id = id}).second) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("request_id ", Quote(name), " belongs to a running request"));
}

bool LiveRequests::Abort(const std::string& name, RequestId* id) {
  MutexLock lock(&mu_);
  const auto entry = by_name_.find(name);
  if (entry == by_name_.end()) return false;
  entry->second.aborted = true;
  *id = entry->second.id;
  return true;
}

bool LiveRequests::Remove(const std::string& name) {
  MutexLock lock(&mu_);
  const auto entry = by_name_.find(name);
  FEWBIT_CHECK(entry != by_name_.end()) << name;
  const bool aborted = entry->second.aborted;
  by_name_.erase(entry);
  return aborted;
}

}  // namespace fewbit
