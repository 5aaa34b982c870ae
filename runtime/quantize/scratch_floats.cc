#include "runtime/quantize/scratch_floats.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "runtime/weights/file.h"
#include "scheduler/check.h"

namespace fewbit {

absl::StatusOr<ScratchFloats> ScratchFloats::InDirectory(const std::string& directory,
                                                         size_t count) {
  FEWBIT_CHECK(count > 0);
  std::string path = absl::StrCat(directory, "/scratch_XXXXXX");
  const int fd = ::mkstemp(path.data());
  if (fd < 0) return ErrnoStatus(errno, "create a file in", directory);
  ::unlink(path.c_str());
  const size_t bytes = count * sizeof(float);
  // All of it now: a page that finds no room later would end the process.
  const int error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  void* data =
      error == 0 ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int reason = error != 0 ? error : errno;
  ::close(fd);
  if (data == MAP_FAILED) {
    return ErrnoStatus(reason, absl::StrCat("make room for ", bytes, " bytes in").c_str(),
                       directory);
  }
  ScratchFloats result;
  result.data_ = static_cast<float*>(data);
  result.size_ = count;
  result.directory_ = directory;
  return result;
}

ScratchFloats ScratchFloats::InMemory(size_t count) {
  FEWBIT_CHECK(count > 0);
  void* data = ::mmap(nullptr, count * sizeof(float), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  FEWBIT_CHECK(data != MAP_FAILED) << "no memory for " << count << " numbers";
  ScratchFloats result;
  result.data_ = static_cast<float*>(data);
  result.size_ = count;
  return result;
}

absl::StatusOr<ScratchFloats> ScratchFloats::Like(const ScratchFloats& other) {
  if (other.directory_.empty()) return InMemory(other.size_);
  return InDirectory(other.directory_, other.size_);
}

ScratchFloats::~ScratchFloats() {
  if (data_ != nullptr) ::munmap(data_, size_ * sizeof(float));
}

ScratchFloats& ScratchFloats::operator=(ScratchFloats&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(directory_, other.directory_);
  return *this;
}

void ScratchFloats::Release(size_t begin, size_t count) {
  // Pages of a shared mapping stay in the file when they leave the process.
  if (!directory_.empty()) Advise(begin, count, MADV_DONTNEED);
}

void ScratchFloats::Drop(size_t begin, size_t count) {
  FEWBIT_CHECK(directory_.empty());
  Advise(begin, count, MADV_DONTNEED);
}

// Of the whole pages among [begin, begin + count).
void ScratchFloats::Advise(size_t begin, size_t count, int advice) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<uintptr_t>(data_ + begin) + page - 1) / page * page;
  const auto last = reinterpret_cast<uintptr_t>(data_ + begin + count) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace fewbit
