#include "runtime/weights/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/weights/text.h"

namespace fewbit {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// O_NONBLOCK: opening a named pipe must not hang before we can refuse it.
int OpenForReading(const std::string& path) {
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

absl::StatusOr<size_t> RegularFileSize(int fd, const std::string& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(StrCat(path, ": not a regular file"));
  }
  return static_cast<size_t>(info.st_size);
}

absl::Status WriteNewFile(const std::string& path,
                          std::span<const std::span<const uint8_t>> parts) {
  const FileDescriptor fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (fd.get() < 0) return ErrnoStatus(errno, "create", path);
  for (std::span<const uint8_t> part : parts) {
    while (!part.empty()) {
      const ssize_t written = ::write(fd.get(), part.data(), part.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return ErrnoStatus(errno, "write", path);
      part = part.subspan(static_cast<size_t>(written));
    }
  }
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, "sync", path);
  return absl::OkStatus();
}

}  // namespace

absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path) {
  const std::string message = StrCat(path, ": cannot ", action, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case EEXIST:
    case ENOTEMPTY:
      return absl::AlreadyExistsError(message);
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnknownError(message);
  }
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes) {
  const FileDescriptor fd(OpenForReading(path));
  if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
  const absl::StatusOr<size_t> size = RegularFileSize(fd.get(), path);
  if (!size.ok()) return size.status();
  if (*size > max_bytes) {
    return absl::InvalidArgumentError(
        StrCat(path, ": ", *size, " bytes, the limit is ", max_bytes));
  }
  std::string text(*size, '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read", path);
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  text.resize(filled);
  return text;
}

absl::Status WriteFileDurably(const std::string& path,
                              std::span<const std::span<const uint8_t>> parts) {
  const std::string partial = path + ".tmp";
  absl::Status status = WriteNewFile(partial, parts);
  if (status.ok() && ::rename(partial.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus(errno, "rename to its final name", partial);
  }
  if (!status.ok()) ::unlink(partial.c_str());
  return status;
}

absl::Status WriteFileDurably(const std::string& path, std::string_view text) {
  const std::span<const uint8_t> part(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  return WriteFileDurably(path, std::span(&part, 1));
}

uint64_t Fnv1a(std::span<const uint8_t> bytes) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3u;
  return hash;
}

absl::Status SyncDirectory(const std::string& path) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, "sync", path);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  const FileDescriptor fd(OpenForReading(path));
  if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
  const absl::StatusOr<size_t> size = RegularFileSize(fd.get(), path);
  if (!size.ok()) return size.status();
  void* data = nullptr;
  if (*size > 0) {
    data = ::mmap(nullptr, *size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) return ErrnoStatus(errno, "map", path);
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(static_cast<uint8_t*>(data), *size, /*from_file=*/true));
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Copy(std::string_view path,
                                                                   std::span<const uint8_t> bytes) {
  void* data = nullptr;
  if (!bytes.empty()) {
    data =
        ::mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return ErrnoStatus(errno, "allocate memory for", path);
    std::memcpy(data, bytes.data(), bytes.size());
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(static_cast<uint8_t*>(data), bytes.size(), /*from_file=*/false));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void MappedFile::Release(std::span<const uint8_t> part) const {
  // Only pages of a file come back; dropping anonymous ones would lose the copy.
  if (!from_file_ || part.empty()) return;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = static_cast<size_t>(part.data() - data_) / page * page;
  const size_t end = static_cast<size_t>(part.data() - data_) + part.size();
  ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace fewbit
