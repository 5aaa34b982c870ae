#include "runtime/tune/tuning_text.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "runtime/philox.h"
#include "scheduler/check.h"

namespace fewbit::tune {

absl::StatusOr<TuningText> TuningText::Create(std::span<const TokenId> text,
                                              std::span<const TokenId> own,
                                              const Options& options) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (ToInt(text[i]) >= 0 && ToInt(text[i]) < options.vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("calibration token ", i, " has the id ", ToInt(text[i]),
                     ", outside the model's vocabulary of ", options.vocab_size));
  }
  FEWBIT_CHECK_EQ(own.size() % static_cast<size_t>(options.context), 0u);
  TuningText result(text, own, options);
  const int64_t stride = result.stride();
  const auto size = static_cast<int64_t>(text.size());
  const int64_t needed = 2 * options.held_out * stride;
  if (size < needed) {
    return absl::InvalidArgumentError(
        absl::StrCat("the calibration text is too short: ", size, " tokens, but ", options.held_out,
                     " windows of ", stride, " to measure on and as many to learn from take ",
                     needed, "; give more text, or a smaller context or held_out"));
  }
  int64_t begin = 0;
  for (int w = 0; w <= options.held_out; ++w) {
    const int64_t end = w < options.held_out ? result.HeldOutBegin(w) : size;
    if (end - begin >= stride) {
      result.runs_.emplace_back(begin, end - begin - stride + 1);
      result.offsets_ += result.runs_.back().second;
    }
    begin = end + stride;
  }
  FEWBIT_CHECK(result.offsets_ > 0);  // half of the text or more lies between the held-out windows
  return result;
}

// In the middle of the w-th of equal parts of the text.
int64_t TuningText::HeldOutBegin(int window) const {
  const auto size = static_cast<int64_t>(text_.size());
  const int64_t begin = size * window / options_.held_out;
  const int64_t end = size * (window + 1) / options_.held_out;
  return begin + (end - begin - stride()) / 2;
}

void TuningText::Copy(int64_t begin, std::span<TokenId> out) const {
  FEWBIT_CHECK_EQ(static_cast<int>(out.size()), options_.context);
  if (ToInt(options_.bos) >= 0) {
    out[0] = options_.bos;
    out = out.subspan(1);
  }
  const auto part = text_.subspan(static_cast<size_t>(begin), out.size());
  std::copy(part.begin(), part.end(), out.begin());
}

void TuningText::HeldOut(int window, std::span<TokenId> out) const {
  Copy(HeldOutBegin(window), out);
}

void TuningText::Draw(int step, int window, std::span<TokenId> out) const {
  const uint64_t position = static_cast<uint64_t>(step) << 32 | static_cast<uint32_t>(window);
  double random = PhiloxUniform(options_.seed, position);
  if (!own_.empty()) {
    if (random < options_.own_share) return CopyOwn(random / options_.own_share, out);
    random = (random - options_.own_share) / (1.0 - options_.own_share);
  }
  int64_t index =
      std::min(static_cast<int64_t>(random * static_cast<double>(offsets_)), offsets_ - 1);
  for (const auto& [begin, count] : runs_) {
    if (index < count) {
      Copy(begin + index, out);
      break;
    }
    index -= count;
  }
  if (options_.noise > 0.0) AddNoise(step, window, out);
}

void TuningText::CopyOwn(double random, std::span<TokenId> out) const {
  const size_t windows = own_.size() / out.size();
  const auto window = static_cast<size_t>(random * static_cast<double>(windows));
  const auto part = own_.subspan(std::min(window, windows - 1) * out.size(), out.size());
  std::copy(part.begin(), part.end(), out.begin());
}

void TuningText::AddNoise(int step, int window, std::span<TokenId> out) const {
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(options_.seed),
                                       static_cast<uint32_t>(options_.seed >> 32)};
  const auto limit = static_cast<uint64_t>(options_.noise * 0x1p32);
  const size_t first = out.size() - static_cast<size_t>(stride());
  for (size_t i = first; i < out.size(); ++i) {
    // The last word keeps these numbers apart from those of PhiloxUniform.
    const PhiloxBlock random = Philox4x32(
        {static_cast<uint32_t>(i), static_cast<uint32_t>(window), static_cast<uint32_t>(step), 1},
        key);
    if (random[0] < limit) out[i] = text_[(uint64_t{random[1]} * text_.size()) >> 32];
  }
}

}  // namespace fewbit::tune
