// The closing table of a tuning run.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/tune/tune_checkpoint.h"

namespace fewbit::tune {

std::string FormatReport(const TuneOptions& options, const TuneReport& report) {
  std::string text = absl::StrFormat(
      "%d steps of %d windows of %d tokens on %s, %d windows at once, %.2f GB there\n\n"
      "   step   training KL   held-out KL   same top token\n",
      report.steps, options.batch, options.context, report.device, report.windows_at_once,
      static_cast<double>(report.peak_bytes) / 1e9);
  for (const TunePoint& point : report.curve) {
    const std::string training =
        std::isnan(point.training_kl) ? "" : absl::StrFormat("%.5f", point.training_kl);
    absl::StrAppendFormat(&text, "  %5d   %11s   %11.5f        %6.2f %%%s\n", point.step, training,
                          point.held_out.kl, 100.0 * point.held_out.same_top,
                          point.step == report.best_step ? "  <- written" : "");
  }
  absl::StrAppend(&text, "\n  tuned");
  for (int k = 0; k < kNumTunedKinds; ++k) {
    absl::StrAppend(&text, k == 0 ? ": " : ", ", report.numbers[k], " ",
                    TunedKindName(static_cast<TunedKind>(k)));
  }
  absl::StrAppendFormat(&text,
                        "\n  held-out KL %.5f -> %.5f nats per token, same top token %.2f %% -> "
                        "%.2f %%\n  linear layers %.3f bits per weight\n",
                        report.before.kl, report.after.kl, 100.0 * report.before.same_top,
                        100.0 * report.after.same_top, report.average_bits);
  return text;
}

}  // namespace fewbit::tune
