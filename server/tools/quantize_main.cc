// fewbit-quantize: a Hugging Face checkpoint in, one with 2/4/16-bit weights out.
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/quantize/html_page.h"
#include "runtime/quantize/html_report.h"
#include "runtime/tune/two_stages.h"
#include "runtime/weights/file.h"
#include "server/build_info.h"
#include "server/tools/tool.h"
#include "server/tools/tune_run.h"

ABSL_FLAG(std::string, model, "", "directory of the checkpoint to quantize (bf16, f16 or f32)");
ABSL_FLAG(std::string, out, "",
          "directory to write; must not exist or be empty. An interrupted run leaves OUT.partial, "
          "and the same command goes on there");
ABSL_FLAG(bool, restart, false, "discard what an interrupted run left in OUT.partial");
ABSL_FLAG(std::string, calibration, "", "text file that shows the quantizer typical input");
ABSL_FLAG(std::string, calibration_ids, "",
          "instead of a text: int32 .npy file of token ids, for checkpoints without tokenizer");
ABSL_FLAG(std::string, method, fewbit::QuantizeOptions().method,
          "default, searched or published; runtime/quantize/README.md tells them apart");
ABSL_FLAG(
    double, bits, fewbit::QuantizeOptions().bits,
    "average bits per weight of the linear layers, at most, counted from bytes; method default "
    "shares them out among the matrices. The least is about 2.28 + 32 * outliers, the most 4.31");
ABSL_FLAG(double, share4, fewbit::QuantizeOptions().share4,
          "for the other methods: share of the 16-channel strips of each matrix that get 4 bits");
ABSL_FLAG(double, outliers, fewbit::QuantizeOptions().outliers,
          "share of the weights of each matrix that may stay at 16 bits");
ABSL_FLAG(int, embedding_bits, fewbit::QuantizeOptions().embedding_bits,
          "bits of embedding and output head, 8 or 16");
ABSL_FLAG(int, threads, fewbit::QuantizeOptions().threads, "0: one per processor");
ABSL_FLAG(int, calibration_windows, fewbit::QuantizeOptions().calibration_windows,
          "windows of text to calibrate on, at most");
ABSL_FLAG(int, probe_windows, fewbit::QuantizeOptions().probe_windows,
          "windows of these on which the worth of each matrix is measured, at most");
ABSL_FLAG(int, held_out_windows, fewbit::QuantizeOptions().held_out_windows,
          "windows of the rest of the text on which perplexity, the divergence from the original "
          "and the canary are measured, at most");
ABSL_FLAG(int, context, fewbit::QuantizeOptions().context, "tokens per window");
ABSL_FLAG(std::string, report, "",
          "write what came of it here as a page: .html, bits, errors, strips, outliers, quality");
ABSL_FLAG(bool, tune, false,
          "then move scales and norms towards the original, as fewbit-tune does; OUT.quantized "
          "keeps what it was before");
ABSL_FLAG(uint64_t, seed, fewbit::QuantizeOptions().seed, "which windows of the text are taken");

namespace fewbit {
namespace {

constexpr char kName[] = "fewbit-quantize";

// In the order of --help.
std::vector<const char*> Flags() {
  std::vector<const char*> flags = {"model",          "out",
                                    "calibration",    "calibration_ids",
                                    "method",         "bits",
                                    "share4",         "outliers",
                                    "embedding_bits", "calibration_windows",
                                    "probe_windows",  "held_out_windows",
                                    "context",        "seed",
                                    "report",         "threads",
                                    "restart",        "tune"};
  for (const char* flag : TuneFlags()) flags.push_back(flag);
  return flags;
}

QuantizeOptions OptionsFromFlags() {
  QuantizeOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model);
  options.out_dir = absl::GetFlag(FLAGS_out);
  options.method = absl::GetFlag(FLAGS_method);
  options.bits = absl::GetFlag(FLAGS_bits);
  options.probe_windows = absl::GetFlag(FLAGS_probe_windows);
  options.held_out_windows = absl::GetFlag(FLAGS_held_out_windows);
  options.share4 = absl::GetFlag(FLAGS_share4);
  options.outliers = absl::GetFlag(FLAGS_outliers);
  options.embedding_bits = absl::GetFlag(FLAGS_embedding_bits);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.calibration_windows = absl::GetFlag(FLAGS_calibration_windows);
  options.context = absl::GetFlag(FLAGS_context);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.restart = absl::GetFlag(FLAGS_restart);
  options.program = absl::StrCat(ThisBuild().version, " ", ThisBuild().commit);
  return options;
}

absl::Status WriteReport(const QuantizeOptions& options, const QuantizeReport& report,
                         const std::string& path) {
  const absl::StatusOr<html::Page> page = ReportPage(options, report, CommandLine(kName, Flags()));
  return page.ok() ? WriteFileDurably(path, html::Render(*page)) : page.status();
}

absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options,
                                        std::span<const TokenId> calibration,
                                        const StopSignal& stop) {
  ProgressLine line;
  bool told = false;
  const auto show = [&](const QuantizeProgress& progress) {
    if (progress.resumed_layers > 0 && !told) {
      std::fprintf(stderr, "resuming after layer %d of %d\n", progress.resumed_layers,
                   progress.num_layers);
      told = true;
    }
    line.Show(progress.done, progress.total,
              absl::StrCat("layer ", progress.layer + 1, " of ", progress.num_layers, ", ",
                           progress.activity));
  };
  absl::StatusOr<QuantizeReport> report =
      QuantizeCheckpoint(options, calibration, show, stop.flag());
  line.End();
  if (report.ok()) {
    std::printf("%s\nwritten to %s\n", FormatReport(options, *report).c_str(),
                options.out_dir.c_str());
  }
  return report;
}

// --tune: both stages, or what an interrupted run has left of them.
absl::Status QuantizeAndTune(QuantizeOptions options, tune::TuneOptions tuning,
                             std::span<const TokenId> calibration, const StopSignal& stop) {
  tuning.model_dir = options.model_dir;
  tuning.out_dir = options.out_dir;
  tuning.quantized_dir = options.out_dir = tune::QuantizedStage(tuning.out_dir);
  tuning.seed = options.seed;
  tuning.threads = options.threads;
  tuning.restart = options.restart;
  tuning.program = options.program;
  if (absl::Status status = tuning.Validate(); !status.ok()) return status;
  const absl::StatusOr<bool> quantized = tune::BeginTwoStages(options, tuning.out_dir, calibration);
  if (!quantized.ok()) return quantized.status();
  if (*quantized) {
    std::fprintf(stderr, "%s is quantized already\n", options.out_dir.c_str());
  } else if (const auto report = Quantize(options, calibration, stop); !report.ok()) {
    return report.status();
  }
  absl::Status status = TuneAndTell(tuning, calibration, stop, absl::GetFlag(FLAGS_report),
                                    CommandLine(kName, Flags()));
  return status.ok() ? tune::EndTwoStages(tuning.out_dir) : status;
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary =
           "fewbit-quantize: quantizes the linear layers of a checkpoint to 2 and 4 bits.\n\n"
           "  fewbit-quantize --model=DIR --out=DIR --calibration=FILE [--report=FILE.html]\n"
           "  fewbit-quantize --model=DIR --out=DIR --calibration=FILE --tune [--device=auto]\n\n"
           "Interrupted, it leaves OUT.partial; the same command goes on there and gives the same "
           "bytes.\n",
       .flags = Flags()});
  if (!status.ok()) return status;
  const QuantizeOptions options = OptionsFromFlags();
  const std::string report_path = absl::GetFlag(FLAGS_report);
  status = options.Validate();
  if (status.ok()) status = CheckReportPath(report_path);
  if (!status.ok()) return status;
  const StopSignal stop;
  const absl::StatusOr<std::vector<TokenId>> calibration = ReadCalibration(
      absl::GetFlag(FLAGS_calibration), absl::GetFlag(FLAGS_calibration_ids), options.model_dir);
  if (!calibration.ok()) return calibration.status();
  if (absl::GetFlag(FLAGS_tune))
    return QuantizeAndTune(options, TuneOptionsFromFlags(), *calibration, stop);
  const absl::StatusOr<QuantizeReport> report = Quantize(options, *calibration, stop);
  if (!report.ok()) return report.status();
  if (report_path.empty()) return absl::OkStatus();
  status = WriteReport(options, *report, report_path);
  if (status.ok()) std::printf("report in %s\n", report_path.c_str());
  return status;
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const absl::Status status = fewbit::Run(argc, argv);
  return status.ok() ? 0 : fewbit::FailTool(fewbit::kName, status);
}
