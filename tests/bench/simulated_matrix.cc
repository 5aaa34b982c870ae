#include "tests/bench/simulated_matrix.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/quantize/drift_product.h"
#include "runtime/quantize/error_feedback.h"

namespace fewbit {
namespace {

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
  Simulation(const Scheme& scheme, const float* weights, int rows, int cols, Hessian* hessian,
             TeamProducts* products)
      : scheme_(scheme),
        weights_(weights),
        rows_(rows),
        cols_(cols),
        hessian_(*hessian),
        products_(products),
        team_(products->team()),
        kernels_(LaneKernelsFor(cpu::BestIsa())),
        narrow_(scheme.zero, scheme.levels),
        wide_fitter_(scheme.zero, 16),
        groups_(cols / scheme.group),
        h_(hessian->diagonal),
        wide_(groups_, false),
        outliers_(static_cast<size_t>(rows) * cols, false) {
    const float mean = std::accumulate(h_.begin(), h_.end(), 0.0f) / static_cast<float>(cols);
    for (float& h : h_) h += mean > 0.0f ? kHessianFloor * mean : 1.0f;
  }

  absl::StatusOr<SimulatedMatrix> Run(const SimulationSettings& settings);

 private:
  const GroupFitter& fitter(int group) const { return wide_[group] ? wide_fitter_ : narrow_; }
  int levels(int group) const { return wide_[group] ? 16 : scheme_.levels; }

  template <typename Fn>
  void ForRows(int step, const Fn& fn) const {
    team_->Run([&](int rank) {
      const Share share = ShareOf((rows_ + step - 1) / step, 1, rank, team_->size());
      for (int r = share.begin; r < share.end; ++r) fn(rank, r * step);
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
  std::vector<float> Targets(int first_row, const std::vector<int>& channels) const;
  void Correct(int rank, int first_row, const std::vector<int>& channels,
               const ErrorFeedback& feedback, float correction, std::vector<float>* targets) const;
  ScratchFloats Misses();
  void EncodeBlock(int first_row, const std::vector<int>& order, const ErrorFeedback* feedback,
                   std::vector<float>* work, std::vector<float>* result) const;
  double Bits(int64_t num_outliers) const;

  const Scheme& scheme_;
  const float* const weights_;
  const int rows_, cols_;
  Hessian& hessian_;
  TeamProducts* const products_;
  ThreadTeam* const team_;
  const LaneKernels& kernels_;
  const GroupFitter narrow_, wide_fitter_;
  const int groups_;
  std::vector<float> h_;
  ScratchFloats misses_;        // as Hessian's; empty: nothing to make up for
  std::vector<char> wide_;      // [groups]
  std::vector<double> gain_;    // [groups] what the strips were ranked by
  std::vector<char> outliers_;  // [rows, cols]
  std::vector<float> grid_;     // [rows, groups] second-order scale
};

void Simulation::Widen(double share4) {
  std::vector<double> parts(static_cast<size_t>(rows_) * groups_);
  ForRows(1, [&](int /*rank*/, int row) {
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
  ForRows(1, [&](int /*rank*/, int row) {
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
  ForRows(1, [&](int /*rank*/, int row) {
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
  ForRows(quant::kBlockRows, [&](int /*rank*/, int first) {
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

// Sixteen rows of weights, channels in the order of `channels`, [K][16 rows].
std::vector<float> Simulation::Targets(int first_row, const std::vector<int>& channels) const {
  const int lanes = std::min(kLanes, rows_ - first_row);
  std::vector<float> targets(static_cast<size_t>(cols_) * kLanes);
  for (int i = 0; i < cols_; ++i) {
    for (int l = 0; l < lanes; ++l) {
      targets[static_cast<size_t>(i) * kLanes + l] =
          weights_[static_cast<size_t>(first_row + l) * cols_ + channels[i]];
    }
  }
  return targets;
}

// What the weights miss of the original outputs because their inputs have drifted.
ScratchFloats Simulation::Misses() {
  if (hessian_.drift.empty()) return std::move(hessian_.misses);
  const DenseMatrix matrix = {.data = weights_, .dtype = DType::kF32, .rows = rows_, .cols = cols_};
  return DriftProduct(matrix, /*drop=*/false, &hessian_.drift, products_);
}

// Adds `correction` of that.
void Simulation::Correct(int rank, int first_row, const std::vector<int>& channels,
                         const ErrorFeedback& feedback, float correction,
                         std::vector<float>* targets) const {
  const int panel_rows = PanelRows(cols_);
  const float* panel = misses_.values().data() +
                       static_cast<size_t>(first_row / panel_rows) * panel_rows * cols_ +
                       first_row % panel_rows;
  std::vector<float> change(targets->size());
  for (int i = 0; i < cols_; ++i) {
    std::copy_n(panel + static_cast<size_t>(channels[i]) * panel_rows, kLanes,
                change.data() + static_cast<size_t>(i) * kLanes);
  }
  feedback.Solve(&products_->multiplier(rank), kLanes, change.data());
  for (size_t i = 0; i < targets->size(); ++i) (*targets)[i] += correction * change[i];
}

// `work` [K][16 rows] in the order of the groups `order`: the targets, used up.
void Simulation::EncodeBlock(int first_row, const std::vector<int>& order,
                             const ErrorFeedback* feedback, std::vector<float>* work,
                             std::vector<float>* result) const {
  const int n = scheme_.group;
  const int lanes = std::min(kLanes, rows_ - first_row);
  const std::vector<float> targets = *work;
  float errors[kGroup * kLanes];  // of a strip
  for (int o = 0; o < groups_; ++o) {
    const int g = order[o];
    GroupFit fits[kLanes];
    for (int l = 0; l < lanes; ++l) {
      float w[kMaxGroup], h[kMaxGroup];
      Weights(first_row + l, g, h_.data(), h);
      for (int k = 0; k < n; ++k) {
        w[k] = (*work)[static_cast<size_t>(o * n + k) * kLanes + l];
        if (feedback != nullptr && h[k] > 0.0f) h[k] = feedback->weight(o * n + k);
      }
      fits[l] = fitter(g).Fit(w, h, n, grid_[static_cast<size_t>(first_row + l) * groups_ + g]);
    }
    for (int k = 0; k < n; ++k) {
      const int i = o * n + k;
      float* channel_errors = errors + i % kGroup * kLanes;
      std::fill_n(channel_errors, kLanes, 0.0f);
      for (int l = 0; l < lanes; ++l) {
        const float target = (*work)[static_cast<size_t>(i) * kLanes + l];
        const size_t at = static_cast<size_t>(first_row + l) * cols_ + g * n + k;
        (*result)[at] =
            outliers_[at] ? target : Nearest(target, levels(g), fits[l].step, fits[l].zero);
        channel_errors[l] = (*result)[at] - targets[static_cast<size_t>(i) * kLanes + l];
      }
      if (feedback == nullptr) continue;
      float* next = work->data() + static_cast<size_t>(i + 1) * kLanes;
      feedback->SpreadInStrip(kernels_, i, channel_errors, next);
      if ((i + 1) % kGroup == 0) {
        feedback->SpreadStrip(kernels_, i / kGroup, errors, cols_, next);
      }
    }
  }
}

double Simulation::Bits(int64_t num_outliers) const {
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
  double bits = per_row * rows_;
  if (num_outliers > 0) {
    bits += 32.0 * (static_cast<double>(num_outliers) + num_tiles * (rows_ / quant::kBlockRows));
  }
  return bits;
}

absl::StatusOr<SimulatedMatrix> Simulation::Run(const SimulationSettings& settings) {
  Widen(settings.share4);
  ScaleGrids();
  const auto budget = static_cast<int64_t>(settings.outliers * rows_ * cols_);
  for (int round = 0; round < kOutlierRounds && budget > 0; ++round) {
    MarkOutliers(budget * (round + 1) / kOutlierRounds - budget * round / kOutlierRounds);
    ScaleGrids();
  }
  const std::vector<int> order = Processing();
  std::vector<int> channels;
  for (const int g : order) {
    for (int k = 0; k < scheme_.group; ++k) channels.push_back(g * scheme_.group + k);
  }
  std::unique_ptr<ErrorFeedback> feedback;
  if (scheme_.order != Order::kNearest) {
    hessian_.matrix.Arrange(channels, team_);
    auto created = ErrorFeedback::Create(&hessian_.matrix, products_);
    if (!created.ok()) return created.status();
    feedback = *std::move(created);
    if (settings.correction > 0.0f) misses_ = Misses();
  }
  SimulatedMatrix result{.values = std::vector<float>(static_cast<size_t>(rows_) * cols_),
                         .bits = Bits(std::count(outliers_.begin(), outliers_.end(), true))};
  ForRows(kLanes, [&](int rank, int first) {
    std::vector<float> work = Targets(first, channels);
    if (!misses_.empty()) {
      Correct(rank, first, channels, *feedback, settings.correction, &work);
    }
    EncodeBlock(first, order, feedback.get(), &work, &result.values);
  });
  return result;
}

}  // namespace

absl::StatusOr<SimulatedMatrix> SimulateMatrix(const Scheme& scheme,
                                               const std::vector<float>& weights, int rows,
                                               int cols, Hessian* hessian,
                                               const SimulationSettings& settings,
                                               TeamProducts* products) {
  if (cols % scheme.group != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("K = ", cols, " is not a multiple of the groups of ", scheme.group));
  }
  return Simulation(scheme, weights.data(), rows, cols, hessian, products).Run(settings);
}

}  // namespace fewbit
