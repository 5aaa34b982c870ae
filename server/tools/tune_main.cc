// fewbit-tune: a quantized checkpoint and its original in, the same with tuned scales out.
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "server/build_info.h"
#include "server/tools/tool.h"
#include "server/tools/tune_run.h"

ABSL_FLAG(std::string, model, "", "directory of the original checkpoint (bf16, f16 or f32)");
ABSL_FLAG(std::string, quantized, "", "directory that fewbit-quantize made from it");
ABSL_FLAG(std::string, out, "",
          "directory to write; must not exist or be empty. An interrupted run leaves OUT.partial, "
          "and the same command goes on there");
ABSL_FLAG(bool, restart, false, "discard what an interrupted run left in OUT.partial");
ABSL_FLAG(std::string, calibration, "", "text file to learn from");
ABSL_FLAG(std::string, calibration_ids, "",
          "instead of a text: int32 .npy file of token ids, for checkpoints without tokenizer");
ABSL_FLAG(int, threads, fewbit::tune::TuneOptions().threads, "of the CPU; 0: one per processor");
ABSL_FLAG(std::string, report, "",
          "write what came of it here as a page: .html, loss curve, before and after, bits");
ABSL_FLAG(uint64_t, seed, fewbit::tune::TuneOptions().seed, "which windows of the text are drawn");

namespace fewbit {
namespace {

constexpr char kName[] = "fewbit-tune";

std::vector<const char*> Flags() {
  std::vector<const char*> flags = {"model", "quantized", "out", "calibration", "calibration_ids"};
  for (const char* flag : TuneFlags()) flags.push_back(flag);
  for (const char* flag : {"seed", "report", "threads", "restart"}) flags.push_back(flag);
  return flags;
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary = "fewbit-tune: moves the scales and norms of a quantized checkpoint towards its "
                  "original.\n\n"
                  "  fewbit-tune --model=DIR --quantized=DIR --out=DIR --calibration=FILE "
                  "[--report=FILE.html]\n\n"
                  "Codes and size stay. Interrupted, it leaves OUT.partial; the same command goes "
                  "on there "
                  "and gives\nthe same bytes.\n",
       .flags = Flags()});
  if (!status.ok()) return status;
  tune::TuneOptions options = TuneOptionsFromFlags();
  options.model_dir = absl::GetFlag(FLAGS_model);
  options.quantized_dir = absl::GetFlag(FLAGS_quantized);
  options.out_dir = absl::GetFlag(FLAGS_out);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.restart = absl::GetFlag(FLAGS_restart);
  options.program = absl::StrCat(ThisBuild().version, " ", ThisBuild().commit);
  const std::string report_path = absl::GetFlag(FLAGS_report);
  status = options.Validate();
  if (status.ok()) status = CheckReportPath(report_path);
  if (!status.ok()) return status;
  const StopSignal stop;
  absl::StatusOr<std::vector<TokenId>> calibration = ReadCalibration(
      absl::GetFlag(FLAGS_calibration), absl::GetFlag(FLAGS_calibration_ids), options.model_dir);
  if (!calibration.ok()) return calibration.status();
  return TuneAndTell(options, *calibration, stop, report_path, CommandLine(kName, Flags()));
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const absl::Status status = fewbit::Run(argc, argv);
  return status.ok() ? 0 : fewbit::FailTool(fewbit::kName, status);
}
