#include "runtime/tune/html_report.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/quantize/html_report.h"
#include "runtime/quantize/weight_map.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit::tune {
namespace {

std::string Nats(double kl) { return absl::StrFormat("%.5f", kl); }
std::string Percent(double share) { return absl::StrFormat("%.2f %%", 100.0 * share); }

html::Table BeforeAndAfter(const TuneReport& report) {
  return {.columns = {{"held-out windows"}, {"before", true}, {"after", true}},
          .rows = {{"KL divergence from the original, nats per token", Nats(report.before.kl),
                    Nats(report.after.kl)},
                   {"same most likely token", Percent(report.before.same_top),
                    Percent(report.after.same_top)}}};
}

html::Chart LossCurve(const TuneReport& report) {
  html::Series training{.name = "training, mean since the point before", .points = {}};
  html::Series held_out{.name = "held out", .points = {}};
  for (const TunePoint& point : report.curve) {
    const auto step = static_cast<double>(point.step);
    if (!std::isnan(point.training_kl)) training.points.emplace_back(step, point.training_kl);
    held_out.points.emplace_back(step, point.held_out.kl);
  }
  return {.title = "KL divergence from the original",
          .x_label = "step",
          .y_label = "nats per token",
          .series = {std::move(training), std::move(held_out)}};
}

html::Table WhatWasTuned(const TuneReport& report) {
  html::Table table{.columns = {{"tuned"}, {"numbers", true}}, .rows = {}};
  for (int k = 0; k < kNumTunedKinds; ++k) {
    table.rows.push_back(
        {TunedKindName(static_cast<TunedKind>(k)), absl::StrCat(report.numbers[k])});
  }
  return table;
}

html::Section TuningSection(const TuneOptions& options, const TuneReport& report) {
  const std::string text = absl::StrFormat(
      "%d steps of %d windows of %d tokens (%d tokens in all, repetitions counted). Codes stay; "
      "scales, outlier values and norms moved against the gradient of the divergence from the "
      "original. The state of step %d was the best on %d windows that were never trained on, and "
      "is what was written.",
      report.steps, options.batch, options.context, report.tokens, report.best_step,
      options.held_out);
  return {
      .title = "Tuning",
      .items = {html::Text{text}, BeforeAndAfter(report), LossCurve(report), WhatWasTuned(report)}};
}

}  // namespace

absl::StatusOr<html::Page> ReportPage(const TuneOptions& options, const TuneReport& report,
                                      const std::string& command) {
  const absl::StatusOr<std::unique_ptr<CheckpointReader>> reader =
      CheckpointReader::Open(options.out_dir);
  if (!reader.ok()) return reader.status();
  const absl::StatusOr<std::vector<WeightMap>> maps = ReadWeightMaps(**reader);
  if (!maps.ok()) return maps.status();
  html::Page page;
  page.title = options.out_dir;
  page.subtitle =
      absl::StrCat("tuned from ", options.quantized_dir, " towards ", options.model_dir);
  page.figures = {
      {"held-out KL", Nats(report.after.kl), absl::StrCat("was ", Nats(report.before.kl))},
      {"same top token", Percent(report.after.same_top),
       absl::StrCat("was ", Percent(report.before.same_top))},
      {"bits per weight", absl::StrFormat("%.3f", report.average_bits),
       "linear layers, from bytes"}};
  page.sections.push_back(TuningSection(options, report));
  for (html::Section& section : WeightSections(*maps)) page.sections.push_back(std::move(section));
  page.sections.push_back({.title = "Made by", .items = {html::Code{command}}});
  page.footer = options.program;
  return page;
}

}  // namespace fewbit::tune
