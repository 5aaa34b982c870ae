// Quantizes the linear layers of a checkpoint in floating point, in ways that fewbit has no format
// for, and scores what comes out: the rows of the ablation (quality, README.md) that exist only to
// be measured. One line of JSON on stdout; bits are reckoned, not counted in a file.
//   quality_simulate --model=DIR --calibration=FILE --text=FILE --scheme=NAME
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "runtime/eval/evaluate.h"
#include "runtime/models/model.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/error_feedback.h"
#include "server/tools/tool.h"

ABSL_FLAG(std::string, model, "", "directory of the checkpoint to quantize");
ABSL_FLAG(std::string, reference, "", "directory to compare with; default: --model");
ABSL_FLAG(std::string, calibration, "", "text file that shows typical input");
ABSL_FLAG(std::string, text, "", "text file to score");
ABSL_FLAG(std::string, scheme, "", "how; see kSchemes");
ABSL_FLAG(double, outliers, 0.0, "share of the weights that stay at 16 bits");
ABSL_FLAG(double, share4, 0.25, "of the strips, for schemes with two widths");
ABSL_FLAG(int, calibration_windows, 64, "as fewbit-quantize");
ABSL_FLAG(int, context, 512, "tokens per window");
ABSL_FLAG(int, max_windows, 96, "windows of a text to score; 0: all");
ABSL_FLAG(int, kl_windows, 24, "of these to compare with the reference; 0: none");
ABSL_FLAG(int, threads, 0, "0: one per processor");

namespace fewbit {
namespace {

constexpr char kName[] = "quality_simulate";

enum class Zero { kNone, kMinMax, kSearched };  // symmetric levels, or a stored zero
enum class Order { kNearest, kNatural, kSensitiveFirst, kWideLast };  // of error feedback

struct Scheme {
  const char* name = "";
  int levels = 4;          // of a code
  bool two_widths = true;  // --share4 of the groups have 16 levels
  int group = 16;          // channels that share a scale
  Zero zero = Zero::kNone;
  Order order = Order::kNearest;
  bool along_rows = false;           // second-order scale over 16 rows of a group, not along K
  bool outliers_everywhere = false;  // not only in groups with `levels` levels
};

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

// 31 bits hold 11 codes of 7 levels.
double CodeBits(int levels) { return levels == 7 ? 31.0 / 11.0 : std::log2(levels); }

constexpr int kMaxGroup = 128;
constexpr int kSubScales = 15;
constexpr int kTileChannels = 512;  // that share a second-order scale along K; half with 16 levels
constexpr int kOutlierRounds = 3;
constexpr float kHessianFloor = 0.01f;

// One group of one row. The value of code q is (q - zero) * step.
struct GroupFit {
  float step = 0.0f;
  float zero = 0.0f;
  float error = 0.0f;  // sum of h * (error)^2
};

float Nearest(float w, int levels, float step, float zero) {
  if (!(step > 0.0f)) return 0.0f;
  const float q = std::clamp(std::round(w / step + zero), 0.0f, static_cast<float>(levels - 1));
  return (q - zero) * step;
}

class GroupFitter {
 public:
  GroupFitter(Zero zero, int levels) : zero_(zero), levels_(levels) {}

  // The best fit with a step on the grid of `d`, or any step if d is 0. h = 0: does not count.
  GroupFit Fit(const float* w, const float* h, int n, float d) const {
    float low = 0.0f, high = 0.0f;
    for (int k = 0; k < n; ++k) {
      if (h[k] <= 0.0f) continue;
      low = std::min(low, w[k]);
      high = std::max(high, w[k]);
    }
    const float top = static_cast<float>(levels_ - 1);
    GroupFit best;
    if (zero_ == Zero::kMinMax) {
      best.step = (high - low) / top;
      if (best.step > 0.0f) best.zero = std::clamp(std::round(-low / best.step), 0.0f, top);
      if (d > 0.0f) best.step = std::clamp(std::round(best.step / d), 1.0f, float{kSubScales}) * d;
      best.error = Error(w, h, n, best.step, best.zero);
      return best;
    }
    const float full =
        zero_ == Zero::kNone ? 2.0f * std::max(high, -low) / top : (high - low) / top;
    best.error = std::numeric_limits<float>::infinity();
    for (int s = 1; s <= kSubScales; ++s) {
      const float step = d > 0.0f ? static_cast<float>(s) * d : full * (0.3f + 0.05f * s);
      for (float zero = FirstZero(); zero <= LastZero(); zero += 1.0f) {
        const float error = Error(w, h, n, step, zero);
        if (error < best.error) best = {.step = step, .zero = zero, .error = error};
      }
    }
    return best;
  }

 private:
  float FirstZero() const {
    if (zero_ == Zero::kNone) return 0.5f * static_cast<float>(levels_ - 1);
    return levels_ == 16 ? 4.0f : 0.0f;
  }
  float LastZero() const {
    return zero_ == Zero::kNone ? FirstZero() : static_cast<float>(levels_ - 1) - FirstZero();
  }
  float Error(const float* w, const float* h, int n, float step, float zero) const {
    float sum = 0.0f;
    for (int k = 0; k < n; ++k) {
      const float error = w[k] - Nearest(w[k], levels_, step, zero);
      sum += h[k] * error * error;
    }
    return sum;
  }

  const Zero zero_;
  const int levels_;
};

// One matrix.
class Simulation {
 public:
  Simulation(const Scheme& scheme, const float* weights, int rows, int cols, const Hessian& hessian,
             ThreadTeam* team)
      : scheme_(scheme),
        weights_(weights),
        rows_(rows),
        cols_(cols),
        hessian_(hessian),
        team_(team),
        kernels_(LaneKernelsFor(cpu::BestIsa())),
        narrow_(scheme.zero, scheme.levels),
        wide_fitter_(scheme.zero, 16),
        groups_(cols / scheme.group),
        h_(hessian.diagonal),
        wide_(groups_, false),
        outliers_(static_cast<size_t>(rows) * cols, false) {
    const float mean = std::accumulate(h_.begin(), h_.end(), 0.0f) / static_cast<float>(cols);
    for (float& h : h_) h += mean > 0.0f ? kHessianFloor * mean : 1.0f;
  }

  // [rows, cols] what the codes stand for.
  absl::StatusOr<std::vector<float>> Run(double share4, double outliers);
  double bits() const { return bits_; }  // of the whole matrix

 private:
  const GroupFitter& fitter(int group) const { return wide_[group] ? wide_fitter_ : narrow_; }
  int levels(int group) const { return wide_[group] ? 16 : scheme_.levels; }

  template <typename Fn>
  void ForRows(int step, const Fn& fn) const {
    team_->Run([&](int rank) {
      const Share share = ShareOf((rows_ + step - 1) / step, 1, rank, team_->size());
      for (int r = share.begin; r < share.end; ++r) fn(r * step);
    });
  }
  // The group's weights of the diagonal for one row; 0 for outliers.
  void Weights(int row, int group, const float* h, float* out) const {
    for (int k = 0; k < scheme_.group; ++k) {
      const size_t i = static_cast<size_t>(row) * cols_ + group * scheme_.group + k;
      out[k] = outliers_[i] ? 0.0f : h[group * scheme_.group + k];
    }
  }
  const float* Source(int row, int group) const {
    return weights_ + static_cast<size_t>(row) * cols_ + group * scheme_.group;
  }
  void Widen(double share4);
  void MarkOutliers(int64_t budget);
  float OutlierGain(int row, int group, int* channel) const;
  std::vector<int> Processing() const;
  void ScaleGrids();
  void EncodeBlock(int first_row, const std::vector<int>& order, const ErrorFeedback* feedback,
                   std::vector<float>* result) const;
  void ReckonBits(int64_t num_outliers);

  const Scheme& scheme_;
  const float* const weights_;
  const int rows_, cols_;
  const Hessian& hessian_;
  ThreadTeam* const team_;
  const LaneKernels& kernels_;
  const GroupFitter narrow_, wide_fitter_;
  const int groups_;
  std::vector<float> h_;
  std::vector<char> wide_;      // [groups]
  std::vector<double> gain_;    // [groups] what the strips were ranked by
  std::vector<char> outliers_;  // [rows, cols]
  std::vector<float> grid_;     // [rows, groups] second-order scale
  double bits_ = 0.0;
};

void Simulation::Widen(double share4) {
  std::vector<double> parts(static_cast<size_t>(rows_) * groups_);
  ForRows(1, [&](int row) {
    float h[kMaxGroup];
    for (int g = 0; g < groups_; ++g) {
      Weights(row, g, h_.data(), h);
      const float* w = Source(row, g);
      double& part = parts[static_cast<size_t>(row) * groups_ + g];
      if (scheme_.zero == Zero::kMinMax) {
        const auto [low, high] = std::minmax_element(w, w + scheme_.group);
        part = static_cast<double>(*high - *low) * (*high - *low) *
               std::accumulate(h, h + scheme_.group, 0.0);
      } else {
        part = narrow_.Fit(w, h, scheme_.group, 0.0f).error;
      }
    }
  });
  gain_.assign(groups_, 0.0);
  for (size_t i = 0; i < parts.size(); ++i) gain_[i % groups_] += parts[i];
  if (!scheme_.two_widths) return;
  std::vector<int> ranked(groups_);
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int a, int b) { return gain_[a] > gain_[b]; });
  const int count = static_cast<int>(std::lround(share4 * groups_));
  for (int i = 0; i < count; ++i) wide_[ranked[i]] = true;
}

// By how much the group's error falls if its best candidate (an extreme or the worst code) is kept
// apart.
float Simulation::OutlierGain(int row, int group, int* channel) const {
  float h[kMaxGroup];
  Weights(row, group, h_.data(), h);
  const float* w = Source(row, group);
  const int n = scheme_.group;
  const float d = grid_[static_cast<size_t>(row) * groups_ + group];
  const GroupFit now = fitter(group).Fit(w, h, n, d);
  int low = 0, high = 0, worst = 0;
  float largest = -1.0f;
  for (int k = 0; k < n; ++k) {
    if (h[k] <= 0.0f) continue;
    if (w[k] < w[low]) low = k;
    if (w[k] > w[high]) high = k;
    const float error = w[k] - Nearest(w[k], levels(group), now.step, now.zero);
    if (h[k] * error * error <= largest) continue;
    largest = h[k] * error * error;
    worst = k;
  }
  float best = 0.0f;
  for (const int k : {low, high, worst}) {
    const float kept = h[k];
    if (kept <= 0.0f) continue;
    h[k] = 0.0f;
    const float gain = now.error - fitter(group).Fit(w, h, n, d).error;
    h[k] = kept;
    if (gain <= best) continue;
    best = gain;
    *channel = k;
  }
  return best;
}

void Simulation::MarkOutliers(int64_t budget) {
  const size_t count = static_cast<size_t>(rows_) * groups_;
  std::vector<float> gains(count);
  std::vector<int> channels(count);
  ForRows(1, [&](int row) {
    for (int g = 0; g < groups_; ++g) {
      if (wide_[g] && !scheme_.outliers_everywhere) continue;
      const size_t i = static_cast<size_t>(row) * groups_ + g;
      gains[i] = OutlierGain(row, g, &channels[i]);
    }
  });
  std::vector<size_t> ranked(count);
  std::iota(ranked.begin(), ranked.end(), size_t{0});
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](size_t a, size_t b) { return gains[a] > gains[b]; });
  for (size_t i = 0; i < ranked.size() && static_cast<int64_t>(i) < budget; ++i) {
    if (gains[ranked[i]] <= 0.0f) break;
    outliers_[ranked[i] * scheme_.group + channels[ranked[i]]] = true;
  }
}

// The second-order scale of every group: the largest free step that shares it, over 15.
void Simulation::ScaleGrids() {
  grid_.assign(static_cast<size_t>(rows_) * groups_, 0.0f);
  ForRows(1, [&](int row) {
    float h[kMaxGroup];
    for (int g = 0; g < groups_; ++g) {
      Weights(row, g, h_.data(), h);
      grid_[static_cast<size_t>(row) * groups_ + g] =
          fitter(g).Fit(Source(row, g), h, scheme_.group, 0.0f).step / kSubScales;
    }
  });
  std::vector<int> tile(groups_);  // along K: groups of one width in their order
  int counts[2] = {0, 0};
  for (int g = 0; g < groups_; ++g) {
    const int per_tile = kTileChannels / (wide_[g] ? 2 : 1) / scheme_.group;
    const int width = wide_[g] ? 1 : 0;
    tile[g] = 2 * (counts[width]++ / per_tile) + width;
  }
  ForRows(quant::kBlockRows, [&](int first) {
    const int last = std::min(first + quant::kBlockRows, rows_);
    const auto at = [&](int r, int g) -> float& {
      return grid_[static_cast<size_t>(r) * groups_ + g];
    };
    if (scheme_.along_rows) {
      for (int g = 0; g < groups_; ++g) {
        float largest = 0.0f;
        for (int r = first; r < last; ++r) largest = std::max(largest, at(r, g));
        for (int r = first; r < last; ++r) at(r, g) = largest;
      }
      return;
    }
    for (int r = first; r < last; ++r) {
      std::vector<float> largest(2 * groups_, 0.0f);
      for (int g = 0; g < groups_; ++g) largest[tile[g]] = std::max(largest[tile[g]], at(r, g));
      for (int g = 0; g < groups_; ++g) at(r, g) = largest[tile[g]];
    }
  });
}

// Groups in the order of error feedback.
std::vector<int> Simulation::Processing() const {
  std::vector<int> order(groups_);
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> input(groups_, 0.0);
  for (int k = 0; k < cols_; ++k) input[k / scheme_.group] += h_[k];
  if (scheme_.order == Order::kSensitiveFirst) {
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return gain_[a] > gain_[b]; });
  } else if (scheme_.order == Order::kWideLast) {
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return wide_[a] != wide_[b] ? wide_[a] < wide_[b] : input[a] > input[b];
    });
  }
  return order;
}

void Simulation::EncodeBlock(int first_row, const std::vector<int>& order,
                             const ErrorFeedback* feedback, std::vector<float>* result) const {
  const int n = scheme_.group;
  const int lanes = std::min(kLanes, rows_ - first_row);
  std::vector<float> work(static_cast<size_t>(cols_) * kLanes);  // in the order of `order`
  for (int i = 0; i < cols_; ++i) {
    const int source = order[i / n] * n + i % n;
    for (int l = 0; l < lanes; ++l) {
      work[static_cast<size_t>(i) * kLanes + l] =
          weights_[static_cast<size_t>(first_row + l) * cols_ + source];
    }
  }
  float errors[kGroup * kLanes];  // of a strip
  for (int o = 0; o < groups_; ++o) {
    const int g = order[o];
    GroupFit fits[kLanes];
    for (int l = 0; l < lanes; ++l) {
      float w[kMaxGroup], h[kMaxGroup];
      Weights(first_row + l, g, h_.data(), h);
      for (int k = 0; k < n; ++k) {
        w[k] = work[static_cast<size_t>(o * n + k) * kLanes + l];
        if (feedback != nullptr && h[k] > 0.0f) h[k] = feedback->weight(o * n + k);
      }
      fits[l] = fitter(g).Fit(w, h, n, grid_[static_cast<size_t>(first_row + l) * groups_ + g]);
    }
    for (int k = 0; k < n; ++k) {
      const int i = o * n + k;
      float* channel_errors = errors + i % kGroup * kLanes;
      std::fill_n(channel_errors, kLanes, 0.0f);
      for (int l = 0; l < lanes; ++l) {
        const float target = work[static_cast<size_t>(i) * kLanes + l];
        const size_t at = static_cast<size_t>(first_row + l) * cols_ + g * n + k;
        (*result)[at] =
            outliers_[at] ? target : Nearest(target, levels(g), fits[l].step, fits[l].zero);
        channel_errors[l] = target - (*result)[at];
      }
      if (feedback == nullptr) continue;
      feedback->SpreadInStrip(kernels_, i, channel_errors, work.data());
      if ((i + 1) % kGroup == 0) feedback->SpreadStrip(kernels_, i / kGroup, errors, work.data());
    }
  }
}

void Simulation::ReckonBits(int64_t num_outliers) {
  double per_row = 0.0;
  int counts[2] = {0, 0};
  for (int g = 0; g < groups_; ++g) {
    ++counts[wide_[g] ? 1 : 0];
    per_row += scheme_.group * CodeBits(levels(g)) + std::log2(kSubScales + 1);
    if (scheme_.zero != Zero::kNone) per_row += std::ceil(CodeBits(levels(g)));
  }
  const auto tiles = [&](int count, int channels) {
    return (count * scheme_.group + channels - 1) / channels;
  };
  const int num_tiles = tiles(counts[0], kTileChannels) + tiles(counts[1], kTileChannels / 2);
  per_row += scheme_.along_rows ? 16.0 / quant::kBlockRows * groups_ : 16.0 * num_tiles;
  bits_ = per_row * rows_;
  if (num_outliers > 0) {
    bits_ += 32.0 * (static_cast<double>(num_outliers) + num_tiles * (rows_ / quant::kBlockRows));
  }
}

absl::StatusOr<std::vector<float>> Simulation::Run(double share4, double outliers) {
  Widen(share4);
  ScaleGrids();
  const auto budget = static_cast<int64_t>(outliers * rows_ * cols_);
  for (int round = 0; round < kOutlierRounds && budget > 0; ++round) {
    MarkOutliers(budget * (round + 1) / kOutlierRounds - budget * round / kOutlierRounds);
    ScaleGrids();
  }
  ReckonBits(std::count(outliers_.begin(), outliers_.end(), true));
  const std::vector<int> order = Processing();
  std::unique_ptr<ErrorFeedback> feedback;
  if (scheme_.order != Order::kNearest) {
    std::vector<int> channels;
    for (const int g : order) {
      for (int k = 0; k < scheme_.group; ++k) channels.push_back(g * scheme_.group + k);
    }
    auto created = ErrorFeedback::Create(hessian_.matrix, channels, team_, kernels_);
    if (!created.ok()) return created.status();
    feedback = *std::move(created);
  }
  std::vector<float> result(static_cast<size_t>(rows_) * cols_);
  ForRows(kLanes, [&](int first) { EncodeBlock(first, order, feedback.get(), &result); });
  return result;
}

// All matrices of a checkpoint. With error feedback, later layers see the earlier ones quantized.
struct Simulated {
  std::vector<std::vector<float>> matrices;  // [layer * kNumLinearRoles + role]
  double bits = 0.0;                         // average
};

absl::StatusOr<Simulated> Simulate(const Model& model, const Scheme& scheme,
                                   const std::vector<TokenId>& text, ThreadTeam* team,
                                   const std::atomic<bool>* stop) {
  absl::StatusOr<CalibrationWindows> windows =
      CutWindows(text, model.spec.bos, absl::GetFlag(FLAGS_context),
                 absl::GetFlag(FLAGS_calibration_windows), 0, model.spec.vocab_size);
  if (!windows.ok()) return windows.status();
  Calibration calibration(model.spec, model.embedding, *std::move(windows), team, cpu::BestIsa());
  const bool feedback = scheme.order != Order::kNearest;
  using Then = Calibration::Then;
  Simulated result;
  double weights = 0.0;
  for (const LayerWeights& layer : model.layers) {
    if (absl::Status status =
            calibration.Observe(layer, feedback, feedback ? Then::kStay : Then::kAdvance, stop);
        !status.ok()) {
      return status;
    }
    LayerWeights altered = layer;
    for (int r = 0; r < kNumLinearRoles; ++r) {
      const int rows = MatrixRows(layer.linears[r]), cols = MatrixCols(layer.linears[r]);
      if (cols % scheme.group != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("K = ", cols, " is not a multiple of the groups of ", scheme.group));
      }
      std::vector<float> dense(static_cast<size_t>(rows) * cols);
      for (int i = 0; i < rows; ++i) {
        cpu::DequantizeRow(layer.linears[r], i, dense.data() + static_cast<size_t>(i) * cols);
      }
      Simulation simulation(scheme, dense.data(), rows, cols,
                            calibration.hessian(static_cast<LinearRole>(r)), team);
      absl::StatusOr<std::vector<float>> values =
          simulation.Run(absl::GetFlag(FLAGS_share4), absl::GetFlag(FLAGS_outliers));
      if (!values.ok()) return values.status();
      result.bits += simulation.bits();
      weights += static_cast<double>(rows) * cols;
      result.matrices.push_back(*std::move(values));
      altered.linears[r] = DenseMatrix{
          .data = result.matrices.back().data(), .dtype = DType::kF32, .rows = rows, .cols = cols};
    }
    if (!feedback) continue;
    if (absl::Status s = calibration.Advance(altered, stop); !s.ok()) return s;
  }
  result.bits /= weights;
  return result;
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary = "quality_simulate: a quantization that fewbit has no format for, scored.\n",
       .flags = {"model", "reference", "calibration", "text", "scheme", "outliers", "share4",
                 "calibration_windows", "context", "max_windows", "kl_windows", "threads"}});
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
  const int vocab = (*model)->spec.vocab_size;
  absl::StatusOr<std::vector<TokenId>> text =
      TokenizeFile(absl::GetFlag(FLAGS_calibration), dir, vocab);
  if (!text.ok()) return text.status();
  const absl::StatusOr<Simulated> simulated = Simulate(**model, *scheme, *text, &team, stop.flag());
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
  absl::StatusOr<std::vector<TokenId>> ids = TokenizeFile(absl::GetFlag(FLAGS_text), dir, vocab);
  if (!ids.ok()) return ids.status();
  TextOptions options{.context = absl::GetFlag(FLAGS_context),
                      .max_windows = absl::GetFlag(FLAGS_max_windows)};
  const absl::StatusOr<TextScore> score =
      ScoreText(altered, nullptr, *ids, options, &team, {}, stop.flag());
  if (!score.ok()) return score.status();
  nlohmann::json out = {{"average_bits", simulated->bits},
                        {"cpu_seconds", cpu_seconds},
                        {"perplexity", score->perplexity}};
  options.max_windows = absl::GetFlag(FLAGS_kl_windows);
  if (options.max_windows > 0) {
    const absl::StatusOr<TextScore> near =
        ScoreText(altered, reference->get(), *ids, options, &team, {}, stop.flag());
    if (!near.ok()) return near.status();
    out["kl_divergence"] = near->kl_divergence;
    out["top1_agreement"] = near->top1_agreement;
  }
  std::printf("%s\n", out.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const absl::Status status = fewbit::Run(argc, argv);
  return status.ok() ? 0 : fewbit::FailTool(fewbit::kName, status);
}
