// Who a request is for, as far as the metrics care: a bounded set of names, whatever clients send,
// and what each of them used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "scheduler/mutex.h"

namespace fewbit {

// Index of a tenant in the table.
enum class TenantId : int32_t {};

struct TenantUsage {
  std::string name;
  uint64_t prompt_delivered = 0, prompt_aborted = 0;
  uint64_t generated_delivered = 0, generated_aborted = 0;
  double device_seconds = 0.0;
};

// Thread-safe: mu_.
class Tenants {
 public:
  static constexpr TenantId kNone{0};   // the request named nobody; label "none"
  static constexpr TenantId kOther{1};  // everybody behind the first `max_tenants`; label "other"
  static constexpr size_t kMaxNameLength = 64;

  explicit Tenants(int32_t max_tenants);

  // OK for letters, digits, '.', '_' and '-', at most kMaxNameLength; INVALID_ARGUMENT says what is
  // wrong.
  static absl::Status ValidateName(absl::string_view name);

  // The place of `name`, a valid one; empty: kNone. The first max_tenants names get one of their
  // own, for the life of the server.
  TenantId Find(absl::string_view name);

  // A request of `tenant` has ended.
  void Add(TenantId tenant, const TenantUsage& usage);

  std::vector<TenantUsage> Read() const;

 private:
  const size_t capacity_;
  mutable Mutex mu_;
  absl::flat_hash_map<std::string, TenantId> ids_ FEWBIT_GUARDED_BY(mu_);
  std::vector<TenantUsage> usage_ FEWBIT_GUARDED_BY(mu_);  // by TenantId
};

}  // namespace fewbit
