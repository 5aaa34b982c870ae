#include "runtime/tune/tune_options.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"

namespace fewbit::tune {
namespace {

constexpr int kMaxSteps = 1 << 20;
constexpr int kMaxWindows = 1 << 16;
constexpr int kMaxThreads = 1024;
constexpr double kMaxRate = 1.0;

}  // namespace

absl::Status TuneOptions::Validate() const {
  const auto bad = [](auto... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  if (model_dir.empty()) return bad("model is empty: give the directory of the original");
  if (quantized_dir.empty()) return bad("quantized is empty: give the directory to tune");
  if (out_dir.empty()) return bad("out is empty: give the directory to write");
  const struct {
    const char* name;
    int value, low, high;
  } numbers[] = {{"tune_steps", steps, 1, kMaxSteps},
                 {"batch", batch, 1, kMaxWindows},
                 {"context", context, 2, 1 << 20},
                 {"held_out", held_out, 2, kMaxWindows},
                 {"own_windows", own_windows, 0, kMaxSteps},
                 {"evaluate_every", evaluate_every, 1, kMaxSteps},
                 {"checkpoint_every", checkpoint_every, 1, kMaxSteps},
                 {"threads", threads, 0, kMaxThreads}};
  for (const auto& number : numbers) {
    if (number.value >= number.low && number.value <= number.high) continue;
    return bad(number.name, " is ", number.value, ", not in ", number.low, " to ", number.high);
  }
  const struct {
    const char* name;
    double value;
  } rates[] = {{"sub_scale_rate", sub_scale_rate},
               {"second_order_rate", second_order_rate},
               {"outlier_rate", outlier_rate},
               {"norm_rate", norm_rate},
               {"noise", noise},
               {"own_share", own_share}};
  for (const auto& rate : rates) {
    if (rate.value >= 0.0 && rate.value <= kMaxRate) continue;
    return bad(rate.name, " is ", rate.value, ", not in 0 to ", kMaxRate);
  }
  return absl::OkStatus();
}

TuningText::Options TextOptionsOf(const TuneOptions& options, const ModelSpec& spec) {
  return {.bos = spec.bos,
          .context = options.context,
          .held_out = options.held_out,
          .own_share = options.own_share,
          .noise = options.noise,
          .seed = options.seed,
          .vocab_size = spec.vocab_size};
}

StepRates TuneOptions::RatesOf(int step) const {
  const int warm_up = std::max(1, steps / 20);
  double factor = std::min(1.0, static_cast<double>(step) / warm_up);
  if (step > warm_up) {
    const double gone = static_cast<double>(step - warm_up) / (steps - warm_up + 1);
    factor = 0.5 * (1.0 + std::cos(std::numbers::pi * gone));
  }
  StepRates rates;
  rates.step = step;
  rates.of[static_cast<int>(TunedKind::kSubScales)] = factor * sub_scale_rate;
  rates.of[static_cast<int>(TunedKind::kSecondOrder)] = factor * second_order_rate;
  rates.of[static_cast<int>(TunedKind::kOutliers)] = factor * outlier_rate;
  rates.of[static_cast<int>(TunedKind::kNorms)] = factor * norm_rate;
  return rates;
}

}  // namespace fewbit::tune
