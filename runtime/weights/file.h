// Files as the checkpoint readers need them: small texts read whole, large ones mapped read-only.
// Every error names the file: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (not a regular file,
// too large) or UNKNOWN with the system's own words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fewbit {

// The status for errno value `error` after doing `action` ("open", "write") to `path`.
absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path);

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// Writes `parts` one after the other to a file that appears under `path` only when it is complete
// and on the disk (a neighbour with the suffix .tmp, fsync, rename). An existing file is replaced;
// on an error nothing new is left. RESOURCE_EXHAUSTED when the disk is full.
absl::Status WriteFileDurably(const std::string& path,
                              std::span<const std::span<const uint8_t>> parts);
absl::Status WriteFileDurably(const std::string& path, std::string_view text);

// 64-bit FNV-1a: against damage, not against malice.
uint64_t Fnv1a(std::span<const uint8_t> bytes);

// Makes creations and renames in a directory survive a crash.
absl::Status SyncDirectory(const std::string& path);

// Bytes of a file that stay valid as long as this object. A file that somebody shortens while it is
// mapped ends the process with SIGBUS, as every reader of mapped files. Thread rule: immutable;
// Release only gives memory back, contents never change.
class MappedFile {
 public:
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  // A private, page-aligned copy of `bytes`, for files whose contents are not aligned for their
  // element type.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Copy(std::string_view path,
                                                                std::span<const uint8_t> bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }

  // Lets the system drop the pages that hold `part` of bytes(); they are read from the file again
  // when touched.
  void Release(std::span<const uint8_t> part) const;

 private:
  MappedFile(uint8_t* data, size_t size, bool from_file)
      : data_(data), size_(size), from_file_(from_file) {}

  uint8_t* data_;
  size_t size_;
  bool from_file_;
};

}  // namespace fewbit
