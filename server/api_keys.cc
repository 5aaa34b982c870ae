#include "server/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/tenants.h"

namespace fewbit {

absl::Status ApiKeys::AddLine(absl::string_view line) {
  const size_t colon = line.find(':');
  if (colon == absl::string_view::npos || colon == 0) {
    return absl::InvalidArgumentError("is not TENANT:SHA256");
  }
  absl::Status status = Tenants::ValidateName(line.substr(0, colon));
  if (!status.ok()) return absl::InvalidArgumentError("the tenant's name is not a valid one");
  const absl::string_view digits = line.substr(colon + 1);
  Entry entry;
  if (digits.size() != 2 * entry.hash.size() ||
      !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
    return absl::InvalidArgumentError("behind the colon are not 64 hexadecimal digits");
  }
  entry.tenant = std::string(line.substr(0, colon));
  const std::string bytes = absl::HexStringToBytes(digits);
  std::copy(bytes.begin(), bytes.end(), entry.hash.begin());
  for (const Entry& other : entries_) {
    if (other.hash == entry.hash) return absl::InvalidArgumentError("an earlier line has this key");
  }
  if (entries_.size() == kMaxKeys) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxKeys, " keys"));
  }
  entries_.push_back(std::move(entry));
  return absl::OkStatus();
}

absl::StatusOr<ApiKeys> ApiKeys::Load(const std::string& path) {
  const std::string place = absl::StrCat("--api_keys_file=", path);
  errno = 0;
  std::ifstream file(path);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": ", std::strerror(errno)));
  }
  ApiKeys keys;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty() || text.front() == '#') continue;
    const absl::Status status = keys.AddLine(text);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ", line ", number, ": ", status.message()));
    }
  }
  if (file.bad() || keys.entries_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": holds no key"));
  }
  return keys;
}

absl::StatusOr<std::string> ApiKeys::Tenant(absl::string_view authorization) const {
  constexpr absl::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
    return absl::UnauthenticatedError(
        "this server wants an API key: metadata \"authorization: Bearer KEY\"");
  }
  authorization.remove_prefix(kScheme.size());
  Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(authorization.data()), authorization.size(),
         hash.data());
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {  // all of them: the time says nothing about which
    if (CRYPTO_memcmp(entry.hash.data(), hash.data(), hash.size()) == 0) found = &entry;
  }
  if (found == nullptr) {
    return absl::UnauthenticatedError("the API key in metadata \"authorization\" is nobody's here");
  }
  return found->tenant;
}

}  // namespace fewbit
