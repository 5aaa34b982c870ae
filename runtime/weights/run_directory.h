// Where a long run that writes a directory works until it is complete: TARGET.partial beside the
// target. It belongs to one process at a time (flock on the file `lock` in it) and outlives an
// interruption once the run has recorded in `progress.json` how far it is. What the target will
// hold lies in `files`, which is renamed to the target: nothing of ours ever shows there.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace fewbit {

// Thread rule: one thread.
class RunDirectory {
 public:
  // Makes TARGET.partial, or takes over one that an interrupted run left. With `restart` what that
  // run wrote is deleted; without, only what it had not completed (*.tmp). Errors, all naming the
  // path: ALREADY_EXISTS when the target is there and not an empty directory; FAILED_PRECONDITION
  // when another process works in TARGET.partial, or when it holds files without a progress.json,
  // so that it is none of ours; the codes of mkdir and open; of progress.json, unless `restart`,
  // DATA_LOSS when it cannot be understood.
  static absl::StatusOr<std::unique_ptr<RunDirectory>> Open(const std::string& target,
                                                            bool restart);
  // Leaves the directory for the next run if there is a progress.json and the target was not
  // published, else removes it.
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }    // TARGET.partial
  const std::string& files() const { return files_; }  // where the target's files are written

  // What the interrupted run recorded last; empty for a new one.
  const std::optional<nlohmann::json>& progress() const { return progress_; }

  // Replaces progress.json, on the disk when this returns; so are files completed before.
  absl::Status Record(const nlohmann::json& progress);

  // Renames the files to the target. REQUIRES: not published yet. ALREADY_EXISTS when the target
  // has filled up since Open. A process killed right behind it leaves TARGET.partial without files;
  // the target is complete.
  absl::Status Publish();

 private:
  RunDirectory() = default;
  absl::Status Lock();
  absl::Status TakeOver(bool restart);
  absl::Status MakeFiles();
  absl::Status Discard();

  std::string target_;
  std::string path_;
  std::string files_;
  int lock_ = -1;     // descriptor of the locked file
  bool kept_ = true;  // there is something that the destructor must not remove
  bool published_ = false;
  std::optional<nlohmann::json> progress_;
};

}  // namespace fewbit
