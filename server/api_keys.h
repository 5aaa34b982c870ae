// Who holds which API key: the file of --api_keys_file. It holds hashes, so whoever reads it cannot
// use what is in it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fewbit {

// Immutable after Load, so thread-safe.
class ApiKeys {
 public:
  static constexpr size_t kMaxKeys = 1024;

  // One key per line, "TENANT:SHA256", the key's SHA-256 in 64 hexadecimal digits; a tenant may
  // have several. Empty lines and those that begin with # do not count. INVALID_ARGUMENT names the
  // flag, file, line and reason; it never repeats a line, which may hold a key by mistake.
  static absl::StatusOr<ApiKeys> Load(const std::string& path);

  // The tenant of the key in the value of the metadata "authorization", "Bearer KEY".
  // UNAUTHENTICATED: it has another form, or nobody has this key. Takes as long for every key.
  absl::StatusOr<std::string> Tenant(absl::string_view authorization) const;

  size_t size() const { return entries_.size(); }

 private:
  using Hash = std::array<unsigned char, 32>;
  struct Entry {
    std::string tenant;
    Hash hash;
  };

  ApiKeys() = default;
  absl::Status AddLine(absl::string_view line);

  std::vector<Entry> entries_;
};

}  // namespace fewbit
