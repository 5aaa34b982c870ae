// fewbit-quantize: a Hugging Face checkpoint in, one with 2/4/16-bit weights out.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/weights/checkpoint.h"
#include "server/build_info.h"
#include "server/tools/tool.h"

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
ABSL_FLAG(double, bits, fewbit::QuantizeOptions().bits,
          "average bits per weight of the linear layers, counted from bytes; method default shares "
          "them out among the matrices");
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
ABSL_FLAG(uint64_t, seed, fewbit::QuantizeOptions().seed, "which windows of the text are taken");

namespace fewbit {
namespace {

constexpr char kName[] = "fewbit-quantize";

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

absl::StatusOr<std::vector<TokenId>> CalibrationIds(const std::string& model_dir) {
  const std::string text = absl::GetFlag(FLAGS_calibration);
  const std::string ids = absl::GetFlag(FLAGS_calibration_ids);
  if (text.empty() == ids.empty()) {
    return absl::InvalidArgumentError("give either --calibration or --calibration_ids");
  }
  if (!ids.empty()) return ReadIds(ids);
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader = CheckpointReader::Open(model_dir);
  if (!reader.ok()) return reader.status();
  return TokenizeFile(text, model_dir, (*reader)->spec().vocab_size);
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary =
           "fewbit-quantize: quantizes the linear layers of a checkpoint to 2 and 4 bits.\n\n"
           "  fewbit-quantize --model=DIR --out=DIR --calibration=FILE [--method=default]\n\n"
           "Interrupted, it leaves OUT.partial; the same command goes on there and gives the same "
           "bytes.\n",
       .flags = {"model", "out", "calibration", "calibration_ids", "method", "bits", "share4",
                 "outliers", "embedding_bits", "calibration_windows", "probe_windows",
                 "held_out_windows", "context", "seed", "threads", "restart"}});
  if (!status.ok()) return status;
  const QuantizeOptions options = OptionsFromFlags();
  status = options.Validate();
  if (!status.ok()) return status;
  const StopSignal stop;
  absl::StatusOr<std::vector<TokenId>> calibration = CalibrationIds(options.model_dir);
  if (!calibration.ok()) return calibration.status();
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
      QuantizeCheckpoint(options, *calibration, show, stop.flag());
  line.End();
  if (!report.ok()) return report.status();
  std::printf("%s\nwritten to %s\n", FormatReport(options, *report).c_str(),
              options.out_dir.c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const absl::Status status = fewbit::Run(argc, argv);
  return status.ok() ? 0 : fewbit::FailTool(fewbit::kName, status);
}
