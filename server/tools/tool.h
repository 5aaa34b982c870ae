// What fewbit-quantize, fewbit-tune and fewbit-eval share: flags, texts as token ids, Ctrl-C, a
// progress line. Text ends here: below are token ids.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/ids.h"

namespace fewbit {

struct ToolUsage {
  const char* name;  // of the program
  const char*
      summary;  // what it does and how it is called, several lines, the last with its newline
  std::vector<const char*> flags;  // in the order of --help
};

// Prints --help or --version and exits 0; lets Abseil parse the rest, which exits 1 at an unknown
// flag or a malformed value. INVALID_ARGUMENT: an argument that is no flag.
absl::Status ParseToolFlags(int argc, char** argv, const ToolUsage& usage);

// The whole file. NOT_FOUND, PERMISSION_DENIED and the like name the path.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

// The file's text as token ids without BOS, by the tokenizer.model of `model_dir`.
absl::StatusOr<std::vector<TokenId>> TokenizeFile(const std::string& path,
                                                  const std::string& model_dir, int32_t vocab_size);

// Token ids from a one-dimensional int32 .npy file: for checkpoints without tokenizer.model.
absl::StatusOr<std::vector<TokenId>> ReadIds(const std::string& path);

// What --calibration and --calibration_ids name, of which one must be empty: a text, tokenized as
// `model_dir` says, or token ids. INVALID_ARGUMENT: both or neither; codes of the two above.
absl::StatusOr<std::vector<TokenId>> ReadCalibration(const std::string& text,
                                                     const std::string& ids,
                                                     const std::string& model_dir);

// The command that makes the same bytes: every flag of `flags` that is not as by default, but for
// --threads and --restart; a line each, quoted as a shell takes it.
std::string CommandLine(const char* name, std::span<const char* const> flags);

// Before hours of work: NOT_FOUND when no file can be at `path` (of --report; empty: none is
// wanted).
absl::Status CheckReportPath(const std::string& path);

// Turns SIGINT and SIGTERM into a flag that the work looks at. Create it before any other thread,
// so that all inherit the blocked signals.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  const std::atomic<bool>* flag() const { return &stop_; }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// One line on stderr that is redrawn on a terminal; elsewhere a plain line for every tenth of the
// work. Thread rule: one thread.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();  // ends the line
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(int done, int total, const std::string& label);
  void End();

 private:
  const bool terminal_;
  bool drawn_ = false;
  int last_tenth_ = -1;
};

// Prints "name: message" to stderr and returns the exit code: 130 for CANCELLED, else 1.
int FailTool(const char* name, const absl::Status& status);

}  // namespace fewbit
