#include "runtime/quantize/html_report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/quantized_format.h"

namespace fewbit {
namespace {

double Ratio(double a, double b) { return b > 0.0 ? a / b : 0.0; }
double Relative(double error, double norm) { return std::sqrt(Ratio(error, norm)); }

std::string Size(int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b >= 1e9) return absl::StrFormat("%.2f GB", b / 1e9);
  if (b >= 1e6) return absl::StrFormat("%.2f MB", b / 1e6);
  return absl::StrFormat("%.1f kB", b / 1e3);
}

std::string Percent(double part, double whole, int digits = 2) {
  return absl::StrFormat("%.*f %%", digits, 100.0 * Ratio(part, whole));
}

// "q_proj" -> "q"
std::string ShortName(int role) {
  return std::string(absl::StripSuffix(LinearRoleName(static_cast<LinearRole>(role)), "_proj"));
}

std::vector<std::string> RoleNames() {
  std::vector<std::string> names;
  for (int r = 0; r < kNumLinearRoles; ++r) names.push_back(ShortName(r));
  return names;
}

std::vector<std::string> LayerNames(size_t matrices) {
  std::vector<std::string> names;
  for (size_t l = 0; l < matrices / kNumLinearRoles; ++l) names.push_back(absl::StrCat(l));
  return names;
}

// A cell per layer and role; value(matrix) is {what colours it, what it says}.
template <typename T, typename Fn>
html::HeatMap MapOfMatrices(std::string title, std::string legend, const std::vector<T>& matrices,
                            const Fn& value) {
  html::HeatMap map{.title = std::move(title),
                    .corner = "layer",
                    .rows = LayerNames(matrices.size()),
                    .columns = RoleNames(),
                    .legend = std::move(legend)};
  for (const T& matrix : matrices) {
    auto [number, label] = value(matrix);
    map.values.push_back(number);
    map.labels.push_back(std::move(label));
  }
  return map;
}

// One map per role, with cells(matrix) of each layer.
template <typename Fn>
void AddCellMaps(const std::vector<WeightMap>& maps, const std::string& low,
                 const std::string& high, const Fn& cells, html::Section* section) {
  for (int role = 0; role < kNumLinearRoles; ++role) {
    html::CellMap map{.title = LinearRoleName(static_cast<LinearRole>(role)),
                      .rows = LayerNames(maps.size()),
                      .low = low,
                      .high = high};
    size_t strips = 0;
    for (size_t m = static_cast<size_t>(role); m < maps.size(); m += kNumLinearRoles) {
      map.values.push_back(cells(maps[m]));
      strips = maps[m].four_bits.size();
    }
    map.axis =
        absl::StrFormat("input channels 0 to %d, 16 per cell", strips * quant::kStripChannels - 1);
    section->items.push_back(std::move(map));
  }
}

html::Section StripSection(const std::vector<WeightMap>& maps) {
  html::Section section{.title = "Channels with 4 bits", .items = {}};
  section.items.push_back(html::Text{
      "Bits are chosen for strips of 16 input channels over all rows of a matrix. A line is a "
      "layer; coloured strips have 4 bits, the others 2. q, k and v see the same channels, and so "
      "do gate and up."});
  AddCellMaps(
      maps, "2 bits", "4 bits",
      [](const WeightMap& map) {
        return std::vector<float>(map.four_bits.begin(), map.four_bits.end());
      },
      &section);
  return section;
}

html::Section OutlierSection(const std::vector<WeightMap>& maps) {
  std::vector<double> shares;
  const auto share = [](const WeightMap& map, size_t strip) {
    return static_cast<double>(map.outliers[strip]) / (double{quant::kStripChannels} * map.rows);
  };
  for (const WeightMap& map : maps) {
    for (size_t s = 0; s < map.outliers.size(); ++s) {
      if (map.outliers[s] > 0) shares.push_back(share(map, s));
    }
  }
  html::Section section{.title = "Where the outliers are", .items = {}};
  if (shares.empty()) {
    section.items.push_back(html::Text{"No weight stays at 16 bits."});
    return section;
  }
  // One crowded strip does not make all others pale.
  constexpr double kFull = 0.99;
  std::sort(shares.begin(), shares.end());
  const double full = shares[static_cast<size_t>(kFull * static_cast<double>(shares.size() - 1))];
  section.items.push_back(html::Text{
      "Single weights that stay at 16 bits, as a share of the weights of their strip. Only 2-bit "
      "strips have them. A line is a layer."});
  AddCellMaps(
      maps, "none", absl::StrFormat("%.2g %% and more", 100.0 * full),
      [&](const WeightMap& map) {
        std::vector<float> cells;
        for (size_t s = 0; s < map.outliers.size(); ++s) {
          cells.push_back(static_cast<float>(std::min(1.0, share(map, s) / full)));
        }
        return cells;
      },
      &section);
  return section;
}

html::Item BitsMap(const std::vector<WeightMap>& maps) {
  return MapOfMatrices("Bits per weight", "from the bytes in the files, all overhead counted", maps,
                       [](const WeightMap& map) {
                         return std::pair(map.bits(), absl::StrFormat("%.2f", map.bits()));
                       });
}

html::Section MatrixSection(const QuantizeReport& report, const std::vector<WeightMap>& maps) {
  html::Section section{.title = "Layer by layer", .items = {BitsMap(maps)}};
  section.items.push_back(MapOfMatrices(
      "Error of the layer's output",
      "relative norm, weighted with the inputs: the root of sum H e\u00b2 / sum H w\u00b2",
      report.matrices, [](const MatrixQuality& q) {
        const double error = Relative(q.weighted_error, q.weighted_norm);
        return std::pair(error, absl::StrFormat("%.3f", error));
      }));
  if (report.divergences.empty()) return section;
  section.items.push_back(
      MapOfMatrices("What each matrix is worth",
                    "KL divergence of the model's answers, in thousandths of a nat, when this "
                    "matrix alone has 2 bits throughout; colours by its logarithm",
                    report.divergences, [](double divergence) {
                      constexpr double kLeast = 1e-6;
                      return std::pair(std::log(std::max(divergence, kLeast)),
                                       absl::StrFormat("%.1f", 1000.0 * divergence));
                    }));
  section.items.push_back(MapOfMatrices(
      "4-bit strips", "percent of the weights", report.matrices, [](const MatrixQuality& q) {
        const double share = Ratio(static_cast<double>(q.weights4), static_cast<double>(q.weights));
        return std::pair(share, absl::StrFormat("%.0f", 100.0 * share));
      }));
  return section;
}

html::Section QualitySection(const QuantizeReport& report) {
  const TextScore& score = report.held_out;
  html::Section section{.title = "Quality", .items = {}};
  section.items.push_back(html::Table{
      .columns = {{"", false}, {"original", true}, {"quantized", true}, {"ratio", true}},
      .rows = {
          {"perplexity", absl::StrFormat("%.4f", score.reference_perplexity),
           absl::StrFormat("%.4f", score.perplexity),
           absl::StrFormat("%.4f", Ratio(score.perplexity, score.reference_perplexity))},
          {"KL divergence, nats per token", "0", absl::StrFormat("%.4f", score.kl_divergence), ""},
          {"same most likely token", "100 %", Percent(score.top1_agreement, 1.0), ""}}});
  section.items.push_back(html::Text{absl::StrFormat(
      "Measured on %d windows (%d tokens predicted) of %s. For another text: fewbit-eval "
      "--model=OUT --reference=MODEL --text=FILE.",
      score.windows, score.tokens,
      report.held_out_is_seen
          ? "the calibration text itself, as it has no window left: the true loss is larger"
          : "the calibration text that calibration did not see")});
  return section;
}

html::Section SizeSection(const QuantizeReport& report) {
  const QuantizedBytes& bytes = report.bytes;
  const auto row = [](const char* name, int64_t before, int64_t after, std::string bits) {
    return std::vector<std::string>{name, Size(before), Size(after),
                                    absl::StrFormat("%.2f", Ratio(before, after)), std::move(bits)};
  };
  html::Table table{.columns = {{"", false},
                                {"before", true},
                                {"after", true},
                                {"smaller by", true},
                                {"bits per weight", true}},
                    .total = true};
  const int64_t rest = report.original_bytes - report.original_linear_bytes;
  table.rows.push_back(row("linear layers", report.original_linear_bytes, bytes.linear_bytes,
                           absl::StrFormat("%.3f", report.average_bits)));
  table.rows.push_back(row("embedding, head, norms", rest,
                           report.quantized_bytes - bytes.linear_bytes,
                           absl::StrFormat("%.3f", report.embedding_bits)));
  table.rows.push_back(row("together", report.original_bytes, report.quantized_bytes, ""));
  return {.title = "Size", .items = {std::move(table)}};
}

html::Section RoleSection(const QuantizeReport& report) {
  html::Table table{.columns = {{"matrices", false},
                                {"weights", true},
                                {"4-bit", true},
                                {"outliers", true},
                                {"error of the output", true},
                                {"error of the weights", true}},
                    .total = true};
  const auto add = [&](std::string name, const MatrixQuality& q) {
    const auto weights = static_cast<double>(q.weights);
    table.rows.push_back({std::move(name), absl::StrFormat("%.2f M", weights / 1e6),
                          Percent(static_cast<double>(q.weights4), weights),
                          Percent(static_cast<double>(q.outliers), weights, 3),
                          absl::StrFormat("%.4f", Relative(q.weighted_error, q.weighted_norm)),
                          absl::StrFormat("%.4f", Relative(q.error, q.norm))});
  };
  for (int r = 0; r < kNumLinearRoles; ++r) {
    add(LinearRoleName(static_cast<LinearRole>(r)), report.roles[r]);
  }
  add("all", report.all);
  return {.title = "By kind of matrix", .items = {std::move(table)}};
}

std::string ValueText(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

html::Section SettingsSection(const QuantizeOptions& options, const QuantizeReport& report,
                              const nlohmann::json& config, const std::string& command) {
  html::Table table{.columns = {{"setting", false}, {"value", false}}};
  table.rows.push_back({"model", options.model_dir});
  table.rows.push_back({"output", options.out_dir});
  table.rows.push_back(
      {"calibration", absl::StrFormat("%d windows of %d tokens", report.windows, options.context)});
  const auto settings = config.find(quantized_format::kConfigKey);
  if (settings != config.end() && settings->is_object()) {
    for (const auto& [name, value] : settings->items()) {
      table.rows.push_back({name, ValueText(value)});
    }
  }
  html::Section section{.title = "To make it again", .items = {}};
  section.items.push_back(html::Code{command});
  section.items.push_back(html::Text{
      "The same command gives the same bytes for any number of threads; a processor with other "
      "vector instructions may differ in last bits of the calibration."});
  section.items.push_back(std::move(table));
  return section;
}

std::vector<html::Figure> Figures(const QuantizeReport& report) {
  const TextScore& score = report.held_out;
  const double ratio = Ratio(score.perplexity, score.reference_perplexity);
  return {{.name = "Bits per weight",
           .value = absl::StrFormat("%.2f", report.average_bits),
           .note = "linear layers, from bytes"},
          {.name = "Perplexity",
           .value = absl::StrFormat("\u00d7 %.3f", ratio),
           .note = absl::StrFormat("%.2f, original %.2f", score.perplexity,
                                   score.reference_perplexity)},
          {.name = "KL divergence",
           .value = absl::StrFormat("%.3f", score.kl_divergence),
           .note = "nats per token"},
          {.name = "Same top token",
           .value = Percent(score.top1_agreement, 1.0, 1),
           .note = "of all positions"},
          {.name = "Size",
           .value = Size(report.quantized_bytes),
           .note = absl::StrCat("before ", Size(report.original_bytes))}};
}

}  // namespace

std::vector<html::Section> WeightSections(const std::vector<WeightMap>& maps) {
  return {html::Section{.title = "Bits", .items = {BitsMap(maps)}}, StripSection(maps),
          OutlierSection(maps)};
}

absl::StatusOr<html::Page> ReportPage(const QuantizeOptions& options, const QuantizeReport& report,
                                      const std::string& command) {
  const auto reader = CheckpointReader::Open(options.out_dir);
  if (!reader.ok()) return reader.status();
  const auto maps = ReadWeightMaps(**reader);
  if (!maps.ok()) return maps.status();
  std::string model = std::filesystem::path(options.model_dir).lexically_normal().string();
  while (model.size() > 1 && model.back() == '/') model.pop_back();
  const ModelSpec& spec = (*reader)->spec();
  html::Page page;
  page.title = absl::StrCat(std::filesystem::path(model).filename().string(), ", quantized");
  page.subtitle = absl::StrFormat("%s: %d layers, hidden %d, ffn %d, vocabulary %d; method %s",
                                  spec.family, spec.num_layers, spec.hidden_size, spec.ffn_size,
                                  spec.vocab_size, options.method);
  page.figures = Figures(report);
  page.sections = {QualitySection(report),
                   SizeSection(report),
                   MatrixSection(report, *maps),
                   StripSection(*maps),
                   OutlierSection(*maps),
                   RoleSection(report),
                   SettingsSection(options, report, (*reader)->config(), command)};
  page.footer = absl::StrCat("fewbit-quantize ", options.program);
  return page;
}

}  // namespace fewbit
