// Quantizes the linear layers of a checkpoint in floating point, in ways that fewbit has no format
// for, and scores what comes out: the rows of the ablation (quality, README.md) that exist only to
// be measured. One line of JSON on stdout; bits are reckoned, not counted in a file.
//   quality_simulate --model=DIR --calibration=FILE --text=FILE --scheme=NAME
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/eval/evaluate.h"
#include "runtime/models/model.h"
#include "runtime/quantize/bit_plan.h"
#include "runtime/quantize/calibration.h"
#include "server/tools/tool.h"
#include "tests/bench/simulated_matrix.h"

ABSL_FLAG(std::string, model, "", "directory of the checkpoint to quantize");
ABSL_FLAG(std::string, reference, "", "directory to compare with; default: --model");
ABSL_FLAG(std::string, calibration, "", "text file that shows typical input");
ABSL_FLAG(std::vector<std::string>, text, {}, "text files to score, separated by commas");
ABSL_FLAG(std::string, scheme, "", "how; see kSchemes");
ABSL_FLAG(double, outliers, 0.0, "share of the weights that stay at 16 bits");
ABSL_FLAG(double, share4, 0.25, "of the strips, for schemes with two widths");
ABSL_FLAG(double, bits, 0.0,
          "for schemes with two widths, instead of --share4: shares are what fewbit-quantize gives "
          "the matrices for so many bits; 0: --share4");
ABSL_FLAG(double, correction, 0.0,
          "of earlier errors to make up for; above 0, inputs come through the matrices quantized "
          "before, not only the layers");
ABSL_FLAG(int, calibration_windows, 64, "as fewbit-quantize");
ABSL_FLAG(int, probe_windows, 4, "as fewbit-quantize, for --bits");
ABSL_FLAG(int, context, 512, "tokens per window");
ABSL_FLAG(int, max_windows, 96, "windows of each text to score; 0: all");
ABSL_FLAG(int, kl_windows, 24, "of the first text, to compare with the reference; 0: none");
ABSL_FLAG(int, threads, 0, "0: one per processor");

namespace fewbit {
namespace {

constexpr char kName[] = "quality_simulate";

constexpr Scheme kSchemes[] = {
    {.name = "published", .zero = Zero::kMinMax},
    {.name = "published-rows", .zero = Zero::kMinMax, .along_rows = true},
    {.name = "published-everywhere", .zero = Zero::kMinMax, .outliers_everywhere = true},
    {.name = "searched"},
    {.name = "searched-rows", .along_rows = true},
    {.name = "searched-zeros", .zero = Zero::kSearched},
    {.name = "natural", .order = Order::kNatural},
    {.name = "sensitive-first", .order = Order::kSensitiveFirst},
    {.name = "wide-last", .order = Order::kWideLast},
    {.name = "wide-last-rows", .order = Order::kWideLast, .along_rows = true},
    {.name = "wide-last-zeros", .zero = Zero::kSearched, .order = Order::kWideLast},
    {.name = "wide-last-everywhere", .order = Order::kWideLast, .outliers_everywhere = true},
    {.name = "2-bit-32", .two_widths = false, .group = 32, .order = Order::kWideLast},
    {.name = "2-bit-64", .two_widths = false, .group = 64, .order = Order::kWideLast},
    {.name = "3-bit-16", .levels = 8, .two_widths = false, .order = Order::kWideLast},
    {.name = "3-bit-64", .levels = 8, .two_widths = false, .group = 64, .order = Order::kWideLast},
    {.name = "7-levels-16", .levels = 7, .two_widths = false, .order = Order::kWideLast},
    {.name = "7-levels-64",
     .levels = 7,
     .two_widths = false,
     .group = 64,
     .order = Order::kWideLast},
};

// All matrices of a checkpoint. With error feedback, later layers see the earlier ones quantized.
struct Simulated {
  std::vector<std::vector<float>> matrices;  // [layer * kNumLinearRoles + role]
  double bits = 0.0;                         // average
};

// Thread rule: one thread.
class Simulator {
 public:
  Simulator(const Model& model, const Scheme& scheme, TeamProducts* products,
            const std::atomic<bool>* stop)
      : model_(model), scheme_(scheme), products_(products), stop_(stop) {}

  absl::StatusOr<Simulated> Run(const std::string& directory, const std::vector<TokenId>& text);

 private:
  bool feedback() const { return scheme_.order != Order::kNearest; }
  bool by_matrix() const { return feedback() && correction_ > 0.0f; }
  absl::Status Plan(const std::string& directory, const CalibrationWindows& windows);
  absl::Status DoLayer(int layer, Calibration* calibration);

  const Model& model_;
  const Scheme& scheme_;
  TeamProducts* const products_;
  const std::atomic<bool>* const stop_;
  const float correction_ = static_cast<float>(absl::GetFlag(FLAGS_correction));
  std::vector<double> shares_;  // of 4-bit strips, by matrix
  Simulated result_;
};

absl::Status Simulator::Plan(const std::string& directory, const CalibrationWindows& windows) {
  const double bits = absl::GetFlag(FLAGS_bits);
  shares_.assign(model_.layers.size() * kNumLinearRoles, absl::GetFlag(FLAGS_share4));
  if (bits == 0.0 || !scheme_.two_widths) return absl::OkStatus();
  auto reader = CheckpointReader::Open(directory);
  if (!reader.ok()) return reader.status();
  const MatrixSettings settings{.method = FindQuantizeMethod("shared"),
                                .outliers = absl::GetFlag(FLAGS_outliers)};
  absl::StatusOr<BitPlan> plan = PlanBits(
      reader->get(), windows, settings,
      {.bits = bits,
       .probe_windows = absl::GetFlag(FLAGS_probe_windows),
       .scratch_directory = std::filesystem::temp_directory_path()},
      products_, cpu::BestIsa(), [](int, const char*) { return absl::OkStatus(); }, stop_);
  if (!plan.ok()) return plan.status();
  shares_ = std::move(plan->shares);
  return absl::OkStatus();
}

absl::Status Simulator::DoLayer(int layer, Calibration* calibration) {
  using Then = Calibration::Then;
  const LayerWeights& weights = model_.layers[layer];
  if (!by_matrix()) {
    absl::Status status =
        calibration->Observe(weights, feedback(), feedback() ? Then::kStay : Then::kAdvance, stop_);
    if (!status.ok()) return status;
  }
  LayerWeights altered = weights;
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const auto role = static_cast<LinearRole>(r);
    if (by_matrix() && Calibration::IsFirstWithItsInput(role)) {
      absl::Status status = calibration->ObserveInput(role, weights, altered, nullptr, stop_);
      if (!status.ok()) return status;
    }
    const int rows = MatrixRows(weights.linears[r]), cols = MatrixCols(weights.linears[r]);
    std::vector<float> dense(static_cast<size_t>(rows) * cols);
    for (int i = 0; i < rows; ++i) {
      cpu::DequantizeRow(weights.linears[r], i, dense.data() + static_cast<size_t>(i) * cols);
    }
    absl::StatusOr<SimulatedMatrix> matrix =
        SimulateMatrix(scheme_, dense, rows, cols, calibration->hessian(role),
                       {.share4 = shares_[layer * kNumLinearRoles + r],
                        .outliers = absl::GetFlag(FLAGS_outliers),
                        .correction = correction_},
                       products_);
    if (!matrix.ok()) return matrix.status();
    result_.bits += matrix->bits;
    result_.matrices.push_back(std::move(matrix->values));
    altered.linears[r] = DenseMatrix{
        .data = result_.matrices.back().data(), .dtype = DType::kF32, .rows = rows, .cols = cols};
  }
  return feedback() ? calibration->Advance(altered, stop_) : absl::OkStatus();
}

absl::StatusOr<Simulated> Simulator::Run(const std::string& directory,
                                         const std::vector<TokenId>& text) {
  absl::StatusOr<CalibrationWindows> windows =
      CutWindows(text, model_.spec.bos, absl::GetFlag(FLAGS_context),
                 absl::GetFlag(FLAGS_calibration_windows), 0, model_.spec.vocab_size);
  if (!windows.ok()) return windows.status();
  if (absl::Status status = Plan(directory, *windows); !status.ok()) return status;
  Calibration calibration(model_.spec, model_.embedding, *std::move(windows), products_,
                          cpu::BestIsa(), by_matrix());
  for (size_t layer = 0; layer < model_.layers.size(); ++layer) {
    absl::Status status = DoLayer(static_cast<int>(layer), &calibration);
    if (!status.ok()) return status;
  }
  double weights = 0.0;
  for (const std::vector<float>& matrix : result_.matrices) {
    weights += static_cast<double>(matrix.size());
  }
  result_.bits /= weights;
  return std::move(result_);
}

// One object per text of --text.
absl::StatusOr<nlohmann::json> Score(const Model& altered, const Model& reference,
                                     const std::string& tokenizer, ThreadTeam* team,
                                     const std::atomic<bool>* stop) {
  nlohmann::json scores = nlohmann::json::array();
  for (const std::string& path : absl::GetFlag(FLAGS_text)) {
    absl::StatusOr<std::vector<TokenId>> ids =
        TokenizeFile(path, tokenizer, altered.spec.vocab_size);
    if (!ids.ok()) return ids.status();
    TextOptions options{.context = absl::GetFlag(FLAGS_context),
                        .max_windows = absl::GetFlag(FLAGS_max_windows)};
    const absl::StatusOr<TextScore> score =
        ScoreText(altered, nullptr, *ids, options, team, {}, stop);
    if (!score.ok()) return score.status();
    scores.push_back({{"text", path}, {"perplexity", score->perplexity}});
    options.max_windows = absl::GetFlag(FLAGS_kl_windows);
    if (scores.size() > 1 || options.max_windows == 0) continue;
    const absl::StatusOr<TextScore> near =
        ScoreText(altered, &reference, *ids, options, team, {}, stop);
    if (!near.ok()) return near.status();
    scores[0]["kl_divergence"] = near->kl_divergence;
    scores[0]["top1_agreement"] = near->top1_agreement;
  }
  return scores;
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary = "quality_simulate: a quantization that fewbit has no format for, scored.\n",
       .flags = {"model", "reference", "calibration", "text", "scheme", "outliers", "share4",
                 "bits", "correction", "calibration_windows", "probe_windows", "context",
                 "max_windows", "kl_windows", "threads"}});
  if (!status.ok()) return status;
  const std::string name = absl::GetFlag(FLAGS_scheme);
  const auto scheme = std::find_if(std::begin(kSchemes), std::end(kSchemes),
                                   [&](const Scheme& s) { return name == s.name; });
  if (scheme == std::end(kSchemes)) {
    std::string names;
    for (const Scheme& s : kSchemes) absl::StrAppend(&names, " ", s.name);
    return absl::InvalidArgumentError(absl::StrCat("scheme is \"", name, "\", known are:", names));
  }
  const std::string dir = absl::GetFlag(FLAGS_model);
  absl::StatusOr<std::unique_ptr<Model>> model = LoadModel(dir);
  if (!model.ok()) return model.status();
  const std::string reference_dir = absl::GetFlag(FLAGS_reference);
  absl::StatusOr<std::unique_ptr<Model>> reference =
      LoadModel(reference_dir.empty() ? dir : reference_dir);
  if (!reference.ok()) return reference.status();
  const StopSignal stop;
  ThreadTeam team(absl::GetFlag(FLAGS_threads));
  TeamProducts products(&team);
  const int vocab = (*model)->spec.vocab_size;
  absl::StatusOr<std::vector<TokenId>> text =
      TokenizeFile(absl::GetFlag(FLAGS_calibration), dir, vocab);
  if (!text.ok()) return text.status();
  const absl::StatusOr<Simulated> simulated =
      Simulator(**model, *scheme, &products, stop.flag()).Run(dir, *text);
  if (!simulated.ok()) return simulated.status();
  const double cpu_seconds = static_cast<double>(std::clock()) / CLOCKS_PER_SEC;  // of all threads
  Model altered = **model;
  for (size_t m = 0; m < simulated->matrices.size(); ++m) {
    Matrix& matrix = altered.layers[m / kNumLinearRoles].linears[m % kNumLinearRoles];
    matrix = DenseMatrix{.data = simulated->matrices[m].data(),
                         .dtype = DType::kF32,
                         .rows = MatrixRows(matrix),
                         .cols = MatrixCols(matrix)};
  }
  absl::StatusOr<nlohmann::json> scores = Score(altered, **reference, dir, &team, stop.flag());
  if (!scores.ok()) return scores.status();
  const nlohmann::json out = {{"average_bits", simulated->bits},
                              {"cpu_seconds", cpu_seconds},
                              {"scores", *std::move(scores)}};
  std::printf("%s\n", out.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const absl::Status status = fewbit::Run(argc, argv);
  return status.ok() ? 0 : fewbit::FailTool(fewbit::kName, status);
}
