// The closing table of a quantization run.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/quantize/checkpoint_quantizer.h"

namespace fewbit {
namespace {

double Ratio(double a, double b) { return b > 0.0 ? a / b : 0.0; }

std::string Row(const char* name, const MatrixQuality& q) {
  return absl::StrFormat(
      "  %-10s %12d   %6.2f %%    %7.3f %%   %12.4f   %9.4f\n", name, q.weights,
      100.0 * Ratio(static_cast<double>(q.weights4), static_cast<double>(q.weights)),
      100.0 * Ratio(static_cast<double>(q.outliers), static_cast<double>(q.weights)),
      std::sqrt(Ratio(q.weighted_error, q.weighted_norm)), std::sqrt(Ratio(q.error, q.norm)));
}

}  // namespace

std::string FormatReport(const QuantizeOptions& options, const QuantizeReport& report) {
  std::string text = absl::StrFormat(
      "method %s, calibrated on %d windows of %d tokens\n\n"
      "  matrix          weights      4-bit     outliers   error (|H| w.)   error (w.)\n",
      options.method, report.windows, options.context);
  for (int r = 0; r < kNumLinearRoles; ++r) {
    absl::StrAppend(&text, Row(LinearRoleName(static_cast<LinearRole>(r)), report.roles[r]));
  }
  absl::StrAppend(&text, Row("all", report.all), "\n");
  absl::StrAppendFormat(&text, "  linear layers       %6.3f bits per weight (%.2f MB)\n",
                        report.average_bits, static_cast<double>(report.bytes.linear_bytes) / 1e6);
  if (FindQuantizeMethod(options.method)->shared_bits && report.average_bits > options.bits) {
    absl::StrAppendFormat(
        &text, "    more than the %g asked for: the least for these shapes and outliers\n",
        options.bits);
  }
  absl::StrAppendFormat(&text, "  embedding and head  %6.3f bits per weight (%.2f MB)\n",
                        report.embedding_bits,
                        static_cast<double>(report.bytes.embedding_bytes) / 1e6);
  const TextScore& score = report.held_out;
  absl::StrAppendFormat(&text,
                        "\n  %s (%d windows, %d tokens)\n"
                        "  perplexity          %8.4f, original %.4f, ratio %.4f\n"
                        "  KL divergence       %8.5f nats per token; same top token in %.2f %%\n\n",
                        report.held_out_is_seen ? "calibration text, as no other is left"
                                                : "text that calibration did not see",
                        score.windows, score.tokens, score.perplexity, score.reference_perplexity,
                        score.perplexity / score.reference_perplexity, score.kl_divergence,
                        100.0 * score.top1_agreement);
  absl::StrAppend(
      &text,
      "  errors are relative norms: sqrt(sum H e^2 / sum H w^2) with the calibration's Hessian\n"
      "  diagonal H, and sqrt(sum e^2 / sum w^2); bits are counted from the bytes in the files\n");
  return text;
}

}  // namespace fewbit
