#include "runtime/weights/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "runtime/weights/file.h"
#include "runtime/weights/json.h"
#include "runtime/weights/text.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr char kLock[] = "lock";
constexpr char kProgress[] = "progress.json";
constexpr char kFiles[] = "files";
constexpr char kUnfinished[] = ".tmp";  // the suffix of WriteFileDurably
constexpr size_t kMaxProgressBytes = 64 << 20;

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

absl::Status CheckTarget(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::exists(directory, error)) return absl::OkStatus();
  const bool empty = std::filesystem::is_directory(directory, error) &&
                     std::filesystem::is_empty(directory, error) && !error;
  if (empty) return absl::OkStatus();
  return absl::AlreadyExistsError(StrCat(directory, ": exists and is not an empty directory"));
}

absl::StatusOr<std::vector<std::string>> Names(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> names;
  std::filesystem::directory_iterator it(directory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return ErrnoStatus(error.value(), "list", directory);
  return names;
}

absl::Status Remove(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  return error ? ErrnoStatus(error.value(), "remove", path) : absl::OkStatus();
}

absl::Status RemoveUnfinished(const std::string& directory) {
  const auto names = Names(directory);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (!name.ends_with(kUnfinished)) continue;
    if (absl::Status status = Remove(StrCat(directory, "/", name)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Whether `path` still leads to the file that `fd` is.
bool SameFile(int fd, const std::string& path) {
  struct stat open_file;
  struct stat named;
  return ::fstat(fd, &open_file) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Open(const std::string& target,
                                                                 bool restart) {
  std::unique_ptr<RunDirectory> run(new RunDirectory());
  run->target_ = WithoutTrailingSlashes(target);
  run->path_ = run->target_ + ".partial";
  run->files_ = StrCat(run->path_, "/", kFiles);
  absl::Status status = CheckTarget(run->target_);
  if (status.ok()) status = run->Lock();
  if (status.ok()) status = run->TakeOver(restart);
  if (!status.ok()) return status;
  return run;
}

// Another process may complete or give up the directory between our steps: then its lock file is
// not the one under the name any more, and we begin again.
absl::Status RunDirectory::Lock() {
  constexpr int kTries = 100;
  const std::string lock_path = StrCat(path_, "/", kLock);
  for (int i = 0; i < kTries; ++i) {
    if (::mkdir(path_.c_str(), 0777) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, "create directory", path_);
    }
    lock_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock_ < 0 && errno == ENOENT) continue;
    if (lock_ < 0) return ErrnoStatus(errno, "create", lock_path);
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock", lock_path);
      return absl::FailedPreconditionError(
          StrCat(path_, ": another run is writing there (it holds the lock on ", lock_path, ")"));
    }
    if (SameFile(lock_, lock_path)) return absl::OkStatus();
    ::close(std::exchange(lock_, -1));
  }
  return absl::FailedPreconditionError(StrCat(path_, ": other runs keep removing it"));
}

absl::Status RunDirectory::TakeOver(bool restart) {
  const std::string progress_path = StrCat(path_, "/", kProgress);
  const auto names = Names(path_);
  if (!names.ok()) return names.status();
  std::string foreign;
  bool recorded = false;
  for (const std::string& name : *names) {
    recorded = recorded || name == kProgress;
    std::error_code error;
    const bool ours = name == kLock || name == StrCat(kProgress, kUnfinished) ||
                      (name == kFiles && std::filesystem::is_empty(files_, error));
    if (!ours) foreign = name;
  }
  if (!recorded && !foreign.empty()) {
    ::unlink(StrCat(path_, "/", kLock).c_str());
    return absl::FailedPreconditionError(
        StrCat(path_, ": holds ", Printable(foreign), " but no ", kProgress,
               ": not an interrupted run that could go on; move it away"));
  }
  // Another run may have completed it since Open looked.
  if (absl::Status status = CheckTarget(target_); !status.ok()) {
    kept_ = recorded;
    return status;
  }
  if (restart || !recorded) {
    kept_ = false;
    const absl::Status status = Discard();
    return status.ok() ? MakeFiles() : status;
  }
  absl::Status status = MakeFiles();
  for (const std::string& directory : {path_, files_}) {
    if (status.ok()) status = RemoveUnfinished(directory);
  }
  if (!status.ok()) return status;
  const auto text = ReadSmallFile(progress_path, kMaxProgressBytes);
  if (!text.ok()) return text.status();
  auto progress = ParseJsonObject(*text, progress_path);
  if (!progress.ok())
    return absl::DataLossError(StrCat(
        std::string_view(progress.status().message().data(), progress.status().message().size()),
        "; add --restart to discard the interrupted run"));
  progress_ = *std::move(progress);
  return absl::OkStatus();
}

absl::Status RunDirectory::MakeFiles() {
  if (::mkdir(files_.c_str(), 0777) == 0 || errno == EEXIST) return absl::OkStatus();
  return ErrnoStatus(errno, "create directory", files_);
}

// progress.json goes last: it says that the rest is ours to delete.
absl::Status RunDirectory::Discard() {
  const auto names = Names(path_);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (name == kLock || name == kProgress) continue;
    if (absl::Status status = Remove(StrCat(path_, "/", name)); !status.ok()) return status;
  }
  return Remove(StrCat(path_, "/", kProgress));
}

RunDirectory::~RunDirectory() {
  if (lock_ < 0) return;
  if ((!kept_ || published_) && Discard().ok()) {
    // The lock goes last: whoever makes a new one from now on keeps the directory.
    ::unlink(StrCat(path_, "/", kLock).c_str());
    ::rmdir(path_.c_str());
  }
  ::close(lock_);
}

absl::Status RunDirectory::Record(const nlohmann::json& progress) {
  FEWBIT_CHECK(!published_);
  absl::Status status = WriteFileDurably(StrCat(path_, "/", kProgress), progress.dump(1) + "\n");
  if (status.ok()) {
    kept_ = true;
    status = SyncDirectory(files_);
  }
  if (status.ok()) status = SyncDirectory(path_);
  return status;
}

absl::Status RunDirectory::Publish() {
  FEWBIT_CHECK(!published_);
  if (absl::Status status = SyncDirectory(files_); !status.ok()) return status;
  // An empty target is replaced; one that has filled up since Open is not.
  if (::rename(files_.c_str(), target_.c_str()) != 0) {
    return ErrnoStatus(errno, "be created from the finished directory", target_);
  }
  published_ = true;
  const std::string parent = std::filesystem::path(target_).parent_path().string();
  return SyncDirectory(parent.empty() ? "." : parent);
}

}  // namespace fewbit
