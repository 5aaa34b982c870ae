#include "server/tools/tune_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/quantize/html_page.h"
#include "runtime/tune/create_ops.h"
#include "runtime/tune/html_report.h"
#include "runtime/tune/own_text.h"
#include "runtime/tune/tune_checkpoint.h"
#include "runtime/weights/file.h"

ABSL_FLAG(std::string, device, fewbit::tune::TuneOptions().device,
          "where to tune: cpu, cuda, cuda:N or auto");
ABSL_FLAG(bool, low_memory, fewbit::tune::TuneOptions().low_memory,
          "tune with one layer at a time on the device; the others stay in host memory");
ABSL_FLAG(int, tune_steps, fewbit::tune::TuneOptions().steps,
          "steps of tuning; it stops earlier when the held-out text gets no better");
ABSL_FLAG(int, tune_batch, fewbit::tune::TuneOptions().batch, "windows of text per step");
ABSL_FLAG(int, tune_context, fewbit::tune::TuneOptions().context,
          "tokens per window of tuning, BOS included");
ABSL_FLAG(int, tune_held_out, fewbit::tune::TuneOptions().held_out,
          "windows of the calibration text that tuning never learns from: they decide which state "
          "is kept");
ABSL_FLAG(int, tune_evaluate_every, fewbit::tune::TuneOptions().evaluate_every,
          "steps between measurements on the held-out windows");
ABSL_FLAG(int, tune_checkpoint_every, fewbit::tune::TuneOptions().checkpoint_every,
          "steps after which an interrupted run loses nothing");
ABSL_FLAG(double, tune_sub_scale_rate, fewbit::tune::TuneOptions().sub_scale_rate,
          "learning rate of 4-bit sub-scales, in steps of their grid");
ABSL_FLAG(double, tune_second_order_rate, fewbit::tune::TuneOptions().second_order_rate,
          "learning rate of second-order scales, relative to their size");
ABSL_FLAG(double, tune_outlier_rate, fewbit::tune::TuneOptions().outlier_rate,
          "learning rate of outlier values, relative to their size");
ABSL_FLAG(double, tune_norm_rate, fewbit::tune::TuneOptions().norm_rate,
          "learning rate of norm weights, relative to their size");
ABSL_FLAG(int, tune_own_windows, fewbit::tune::TuneOptions().own_windows,
          "windows of text that the original writes itself, to be learned from beside the "
          "calibration text");
ABSL_FLAG(double, tune_own_share, fewbit::tune::TuneOptions().own_share,
          "share of the windows of a step that come from the original's own text, if there is any");
ABSL_FLAG(double, tune_noise, fewbit::tune::TuneOptions().noise,
          "share of the tokens learned from that are replaced by others of the text");

namespace fewbit {
namespace {

// Learns from the first call when this process began, as an earlier one may have done the rest.
class StepClock {
 public:
  std::string Label(const tune::TuneProgress& progress, int64_t tokens_per_step) {
    const auto now = std::chrono::steady_clock::now();
    if (first_step_ < 0) {
      first_step_ = progress.step;
      begin_ = now;
    }
    std::string label =
        absl::StrFormat("step %d of %d, held-out KL %.4f (best %.4f)", progress.step,
                        progress.steps, progress.held_out_kl, progress.best_held_out);
    if (!std::isnan(progress.training_kl)) {
      absl::StrAppendFormat(&label, ", loss %.4f", progress.training_kl);
    }
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const int taken = progress.step - first_step_;
    if (taken > 0 && seconds > 0.0) {
      const double rate = taken / seconds;
      absl::StrAppendFormat(&label, ", %.0f tokens/s, %.0f s left",
                            rate * static_cast<double>(tokens_per_step),
                            (progress.steps - progress.step) / rate);
    }
    return label;
  }

 private:
  int first_step_ = -1;
  std::chrono::steady_clock::time_point begin_;
};

absl::StatusOr<std::vector<TokenId>> OwnText(const tune::TuneOptions& options,
                                             std::span<const TokenId> calibration,
                                             const StopSignal& stop) {
  if (options.own_windows == 0) return std::vector<TokenId>();
  ProgressLine line;
  return tune::WriteOwnText(
      options, calibration,
      [&](int done) {
        line.Show(
            done, options.own_windows,
            absl::StrFormat("the original writes: window %d of %d", done, options.own_windows));
      },
      stop.flag());
}

}  // namespace

std::vector<const char*> TuneFlags() {
  return {"device",
          "low_memory",
          "tune_steps",
          "tune_batch",
          "tune_context",
          "tune_held_out",
          "tune_evaluate_every",
          "tune_checkpoint_every",
          "tune_sub_scale_rate",
          "tune_second_order_rate",
          "tune_outlier_rate",
          "tune_norm_rate",
          "tune_own_windows",
          "tune_own_share",
          "tune_noise"};
}

tune::TuneOptions TuneOptionsFromFlags() {
  tune::TuneOptions options;
  options.device = absl::GetFlag(FLAGS_device);
  options.low_memory = absl::GetFlag(FLAGS_low_memory);
  options.steps = absl::GetFlag(FLAGS_tune_steps);
  options.batch = absl::GetFlag(FLAGS_tune_batch);
  options.context = absl::GetFlag(FLAGS_tune_context);
  options.held_out = absl::GetFlag(FLAGS_tune_held_out);
  options.evaluate_every = absl::GetFlag(FLAGS_tune_evaluate_every);
  options.checkpoint_every = absl::GetFlag(FLAGS_tune_checkpoint_every);
  options.sub_scale_rate = absl::GetFlag(FLAGS_tune_sub_scale_rate);
  options.second_order_rate = absl::GetFlag(FLAGS_tune_second_order_rate);
  options.outlier_rate = absl::GetFlag(FLAGS_tune_outlier_rate);
  options.norm_rate = absl::GetFlag(FLAGS_tune_norm_rate);
  options.own_windows = absl::GetFlag(FLAGS_tune_own_windows);
  options.own_share = absl::GetFlag(FLAGS_tune_own_share);
  options.noise = absl::GetFlag(FLAGS_tune_noise);
  return options;
}

absl::Status TuneAndTell(const tune::TuneOptions& options, std::span<const TokenId> calibration,
                         const StopSignal& stop, const std::string& report_path,
                         const std::string& command) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  absl::StatusOr<std::vector<TokenId>> own_text = OwnText(options, calibration, stop);
  if (!own_text.ok()) return own_text.status();
  absl::StatusOr<std::unique_ptr<tune::Ops>> ops = tune::CreateOps(options.device, options.threads);
  if (!ops.ok()) return ops.status();
  ProgressLine line;
  StepClock clock;
  bool told = false;
  const auto show = [&](const tune::TuneProgress& progress) {
    if (progress.resumed_step > 0 && !told) {
      std::fprintf(stderr, "resuming after step %d of %d\n", progress.resumed_step, progress.steps);
      told = true;
    }
    line.Show(progress.step, progress.steps, clock.Label(progress, options.tokens_per_step()));
  };
  absl::StatusOr<tune::TuneReport> report =
      tune::TuneCheckpoint(options, calibration, *own_text, ops->get(), show, stop.flag());
  line.End();
  if (!report.ok()) return report.status();
  std::printf("%s\nwritten to %s\n", tune::FormatReport(options, *report).c_str(),
              options.out_dir.c_str());
  if (report_path.empty()) return absl::OkStatus();
  const absl::StatusOr<html::Page> page = tune::ReportPage(options, *report, command);
  if (!page.ok()) return page.status();
  absl::Status status = WriteFileDurably(report_path, html::Render(*page));
  if (status.ok()) std::printf("report in %s\n", report_path.c_str());
  return status;
}

}  // namespace fewbit
