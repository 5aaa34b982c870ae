// The calibration text as windows: some that are only measured on, the rest at random offsets to
// learn from. What a step sees depends on the seed and the step alone.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/ids.h"

namespace fewbit::tune {

// Thread rule: immutable.
class TuningText {
 public:
  struct Options {
    TokenId bos{-1};         // begins every window; negative: none
    int context = 512;       // tokens per window, BOS included
    int held_out = 32;       // windows, 2 or more
    double own_share = 0.5;  // of the training windows, where there is an own text
    double noise = 0.0;  // share of the tokens of a training window replaced by others of the text
    uint64_t seed = 0;
    int vocab_size = 0;
  };

  // Sets `held_out` windows aside, spread evenly over the text; no training window overlaps one.
  // `own` are whole windows of another text, which a share of the training windows are drawn from.
  // Both texts outlive the object. INVALID_ARGUMENT: an id outside the vocabulary; a text too short
  // to leave as much for training as is held out, naming what it takes.
  static absl::StatusOr<TuningText> Create(std::span<const TokenId> text,
                                           std::span<const TokenId> own, const Options& options);

  int held_out() const { return options_.held_out; }

  // Replace `out` [context].
  void HeldOut(int window, std::span<TokenId> out) const;
  void Draw(int step, int window, std::span<TokenId> out) const;

 private:
  TuningText(std::span<const TokenId> text, std::span<const TokenId> own, const Options& options)
      : text_(text), own_(own), options_(options) {}
  int64_t stride() const { return options_.context - (ToInt(options_.bos) >= 0 ? 1 : 0); }
  int64_t HeldOutBegin(int window) const;
  void Copy(int64_t begin, std::span<TokenId> out) const;
  void CopyOwn(double random, std::span<TokenId> out) const;
  void AddNoise(int step, int window, std::span<TokenId> out) const;

  std::span<const TokenId> text_, own_;
  Options options_;
  // Runs of window beginnings: first beginning, how many.
  std::vector<std::pair<int64_t, int64_t>> runs_;
  int64_t offsets_ = 0;
};

}  // namespace fewbit::tune
