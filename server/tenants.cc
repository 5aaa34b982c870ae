#include "server/tenants.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/status_codec.h"

namespace fewbit {

Tenants::Tenants(int32_t max_tenants) : capacity_(static_cast<size_t>(max_tenants)) {
  usage_.resize(2);
  usage_[static_cast<size_t>(kNone)].name = "none";
  usage_[static_cast<size_t>(kOther)].name = "other";
  ids_["none"] = kNone;
  ids_["other"] = kOther;
}

absl::Status Tenants::ValidateName(absl::string_view name) {
  if (name.size() > kMaxNameLength) {
    return InvalidField("x-tenant-id",
                        absl::StrCat("has ", name.size(), " bytes; the limit is ", kMaxNameLength));
  }
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') {
      return InvalidField("x-tenant-id",
                          "may have letters, digits, '.', '_' and '-' and nothing else");
    }
  }
  return absl::OkStatus();
}

TenantId Tenants::Find(absl::string_view name) {
  if (name.empty()) return kNone;
  MutexLock lock(&mu_);
  const auto found = ids_.find(name);
  if (found != ids_.end()) return found->second;
  if (usage_.size() - 2 >= capacity_) return kOther;
  const TenantId id{static_cast<int32_t>(usage_.size())};
  usage_.emplace_back().name = std::string(name);
  ids_.emplace(std::string(name), id);
  return id;
}

void Tenants::Add(TenantId tenant, const TenantUsage& usage) {
  MutexLock lock(&mu_);
  TenantUsage& sum = usage_[static_cast<size_t>(tenant)];
  sum.prompt_delivered += usage.prompt_delivered;
  sum.prompt_aborted += usage.prompt_aborted;
  sum.generated_delivered += usage.generated_delivered;
  sum.generated_aborted += usage.generated_aborted;
  sum.device_seconds += usage.device_seconds;
}

std::vector<TenantUsage> Tenants::Read() const {
  MutexLock lock(&mu_);
  return usage_;
}

}  // namespace fewbit
