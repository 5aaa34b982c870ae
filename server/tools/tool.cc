#include "server/tools/tool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string_view>

#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "runtime/eval/npy.h"
#include "runtime/weights/checkpoint.h"
#include "scheduler/check.h"
#include "server/build_info.h"
#include "server/flag_help.h"
#include "server/tokenizer.h"

namespace fewbit {
namespace {

std::string HelpText(const ToolUsage& usage) {
  const std::vector<std::string> flags(usage.flags.begin(), usage.flags.end());
  return usage.summary + FlagHelp({{"Flags", flags}}) + "\nDefaults are in parentheses.\n";
}

// `text` as a shell takes it.
std::string Quoted(const std::string& text) {
  constexpr char kPlain[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-=./,:+@%";
  if (text.find_first_not_of(kPlain) == std::string::npos) return text;
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

sigset_t StopSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

absl::Status ParseToolFlags(int argc, char** argv, const ToolUsage& usage) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--") break;
    if (argument == "--help" || argument == "-help" || argument == "-h") {
      std::fputs(HelpText(usage).c_str(), stdout);
      std::exit(0);
    }
    if (argument == "--version") {
      std::fputs(VersionText(usage.name).c_str(), stdout);
      std::exit(0);
    }
  }
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument '", rest[1], "'; see --help"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  std::unique_ptr<std::FILE, FileCloser> file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  std::string text;
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), file.get())) > 0) {
    text.append(buffer, count);
  }
  if (std::ferror(file.get()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  }
  return text;
}

absl::StatusOr<std::vector<TokenId>> TokenizeFile(const std::string& path,
                                                  const std::string& model_dir,
                                                  int32_t vocab_size) {
  absl::StatusOr<std::string> text = ReadTextFile(path);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(model_dir, vocab_size);
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<std::vector<TokenId>> ids = (*tokenizer)->Encode(*text, /*add_bos=*/false);
  if (!ids.ok()) {
    return absl::Status(ids.status().code(), absl::StrCat(path, ": ", ids.status().message()));
  }
  return ids;
}

absl::StatusOr<std::vector<TokenId>> ReadIds(const std::string& path) {
  absl::StatusOr<NpyArray> array = ReadNpy(path);
  if (!array.ok()) return array.status();
  if (array->shape.size() != 1 || array->ints.size() != static_cast<size_t>(array->shape[0])) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected token ids as a one-dimensional int32 array"));
  }
  std::vector<TokenId> ids;
  ids.reserve(array->ints.size());
  for (const int32_t id : array->ints) ids.push_back(TokenId{id});
  return ids;
}

absl::StatusOr<std::vector<TokenId>> ReadCalibration(const std::string& text,
                                                     const std::string& ids,
                                                     const std::string& model_dir) {
  if (text.empty() == ids.empty()) {
    return absl::InvalidArgumentError("give either --calibration or --calibration_ids");
  }
  if (!ids.empty()) return ReadIds(ids);
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader = CheckpointReader::Open(model_dir);
  if (!reader.ok()) return reader.status();
  return TokenizeFile(text, model_dir, (*reader)->spec().vocab_size);
}

std::string CommandLine(const char* name, std::span<const char* const> flags) {
  std::string command = name;
  for (const std::string_view flag_name : flags) {
    if (flag_name == "restart" || flag_name == "threads") continue;
    const absl::CommandLineFlag* flag =
        absl::FindCommandLineFlag(absl::string_view(flag_name.data(), flag_name.size()));
    FEWBIT_CHECK(flag != nullptr) << flag_name;
    if (flag->CurrentValue() == flag->DefaultValue()) continue;
    absl::StrAppend(&command, " \\\n  ",
                    Quoted(absl::StrCat("--", flag->Name(), "=", flag->CurrentValue())));
  }
  return command;
}

absl::Status CheckReportPath(const std::string& path) {
  std::error_code error;
  const std::filesystem::path parent = std::filesystem::absolute(path, error).parent_path();
  if (path.empty() || (!error && std::filesystem::is_directory(parent, error))) {
    return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat("report: ", path, ": there is no directory ", parent.string()));
}

StopSignal::StopSignal() {
  const sigset_t set = StopSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] {
    const sigset_t wanted = StopSet();
    int number = 0;
    sigwait(&wanted, &number);
    stop_.store(true, std::memory_order_relaxed);
  });
}

StopSignal::~StopSignal() {
  // Ends the wait if no signal came; a thread that is through already cannot be harmed by it.
  if (!stop_.load(std::memory_order_relaxed)) pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressLine::~ProgressLine() { End(); }

void ProgressLine::Show(int done, int total, const std::string& label) {
  if (total <= 0) return;
  if (terminal_) {
    constexpr int kWidth = 32;
    const int filled = static_cast<int>(static_cast<int64_t>(done) * kWidth / total);
    const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
    std::fprintf(stderr, "\r\x1b[K[%s] %3d %%  %s", bar.c_str(),
                 static_cast<int>(static_cast<int64_t>(done) * 100 / total), label.c_str());
    std::fflush(stderr);
    drawn_ = true;
    return;
  }
  const int tenth = static_cast<int>(static_cast<int64_t>(done) * 10 / total);
  if (tenth == last_tenth_) return;
  last_tenth_ = tenth;
  std::fprintf(stderr, "%3d %%  %s\n", static_cast<int>(static_cast<int64_t>(done) * 100 / total),
               label.c_str());
}

void ProgressLine::End() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
}

int FailTool(const char* name, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", name, std::string(status.message()).c_str());
  return absl::IsCancelled(status) ? 130 : 1;
}

}  // namespace fewbit
