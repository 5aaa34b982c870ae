#include "runtime/quantize/calibration.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

// Tokens that run through a layer at once, and bytes of what a layer makes of them: the fewer of
// the two, one window at least.
constexpr int kBatchTokens = 2048;
constexpr int64_t kBatchBytes = 32 << 20;
constexpr int kGramRows = 8;
constexpr int kGramTokens = 256;

// Windows that run through a layer at once.
int BatchWindows(const ModelSpec& spec, int context) {
  // The arrays of a layer's run that are as wide as the model, its heads and its MLP.
  const int64_t token_bytes =
      int64_t{sizeof(float)} * (4 * spec.hidden_size + 3 * spec.q_size() + 2 * spec.ffn_size);
  const auto tokens = std::min<int64_t>(kBatchTokens, kBatchBytes / token_bytes);
  return std::max(1, static_cast<int>(tokens) / context);
}

size_t WindowFloats(const ModelSpec& spec, int context) {
  return static_cast<size_t>(context) * spec.hidden_size;
}

// SplitMix64 (Steele, Lea, Flood, 2014).
uint64_t NextRandom(uint64_t* state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

absl::StatusOr<CalibrationWindows> CutWindows(std::span<const TokenId> text, TokenId bos,
                                              int context, int max_windows, uint64_t seed,
                                              int vocab_size, int drawn) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (ToInt(text[i]) >= 0 && ToInt(text[i]) < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("calibration token ", i, " has the id ", ToInt(text[i]),
                     ", outside the model's vocabulary of ", vocab_size));
  }
  const bool with_bos = ToInt(bos) >= 0;
  const size_t stride = static_cast<size_t>(context) - (with_bos ? 1 : 0);
  const size_t available = text.size() / stride;
  if (available == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the calibration text is too short: ", text.size(),
                     " tokens, and one window takes ", stride, " (context ", context, ")"));
  }
  std::vector<size_t> order(available);
  for (size_t i = 0; i < available; ++i) order[i] = i;
  const size_t skipped = std::min(available, static_cast<size_t>(drawn));
  const size_t count = std::min(available, skipped + static_cast<size_t>(max_windows));
  uint64_t state = seed;
  for (size_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + NextRandom(&state) % (available - i)]);
  }
  order = {order.begin() + static_cast<std::ptrdiff_t>(skipped),
           order.begin() + static_cast<std::ptrdiff_t>(count)};
  std::sort(order.begin(), order.end());
  CalibrationWindows windows;
  windows.context = context;
  windows.tokens.reserve(order.size() * context);
  for (const size_t w : order) {
    if (with_bos) windows.tokens.push_back(bos);
    const auto begin = text.begin() + static_cast<std::ptrdiff_t>(w * stride);
    windows.tokens.insert(windows.tokens.end(), begin, begin + static_cast<std::ptrdiff_t>(stride));
  }
  return windows;
}

// Keeps the inputs of one batch, or one of them.
class Calibration::Keeper : public LinearInputObserver {
 public:
  // only: the input that is wanted, -1 for all. After the last one the layer goes on to its end.
  explicit Keeper(int only) : only_(only) {}

  void OnInput(LinearRole role, const float* x, int tokens, int cols) override {
    if (only_ >= 0 && InputOf(role) != only_) return;
    inputs_[InputOf(role)].assign(x, x + static_cast<size_t>(tokens) * cols);
  }
  bool EndsAt(LinearRole role) override {
    return InputOf(role) == only_ && role != LinearRole::kDown;
  }
  std::vector<float>& input(int i) { return inputs_[i]; }

 private:
  const int only_;
  std::vector<float> inputs_[kNumInputs];
};

class Calibration::Observer : public LinearInputObserver {
 public:
  // only: the input that is wanted, with which the layer ends; -1 for all. `original`: has the same
  // batch in the original model; null: no drift is wanted.
  Observer(Calibration* owner, int only, bool full, Keeper* original)
      : owner_(*owner), only_(only), full_(full), original_(original) {}

  bool EndsAt(LinearRole role) override { return InputOf(role) == only_; }

  void OnInput(LinearRole role, const float* x, int tokens, int cols) override {
    const int input = InputOf(role);
    if (only_ >= 0 && input != only_) return;
    std::vector<double>& squares = squares_[input];
    squares.resize(cols);
    tokens_[input] += tokens;
    owner_.kernels_.add_squares(x, tokens, cols, squares.data());
    if (!full_) return;
    AddGram(x, x, tokens, cols, true, &owner_.hessians_[input].matrix);
    if (original_ == nullptr) return;
    std::vector<float>& difference = original_->input(input);
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= x[i];
    AddGram(difference.data(), x, tokens, cols, false, &owner_.hessians_[input].drift);
  }

  // Sums to means.
  void Finish() {
    for (int i = 0; i < kNumInputs; ++i) {
      if (only_ >= 0 && i != only_) continue;
      FEWBIT_CHECK(tokens_[i] > 0) << "the layer did not show input " << i;
      const double scale = 1.0 / static_cast<double>(tokens_[i]);
      Hessian& hessian = owner_.hessians_[i];
      hessian.diagonal.resize(squares_[i].size());
      for (size_t k = 0; k < squares_[i].size(); ++k) {
        hessian.diagonal[k] = static_cast<float>(squares_[i][k] * scale);
      }
      const int cols = static_cast<int>(squares_[i].size());
      if (full_) Mirror(cols, static_cast<float>(scale), &hessian.matrix);
      for (float& value : hessian.drift) value *= static_cast<float>(scale);
    }
  }

 private:
  // gram += a^T b in tiles of 8 rows x 16 columns, of a symmetric one the lower triangle; each tile
  // belongs to one rank, tokens in order.
  void AddGram(const float* a, const float* b, int tokens, int cols, bool symmetric,
               std::vector<float>* gram) {
    gram->resize(static_cast<size_t>(cols) * cols);
    const int row_tiles = cols / kGramRows;
    ThreadTeam* team = owner_.team_;
    const LaneKernels& kernels = owner_.kernels_;
    team->Run([&](int rank) {
      for (int begin = 0; begin < tokens; begin += kGramTokens) {
        const int count = std::min(kGramTokens, tokens - begin);
        const size_t at = static_cast<size_t>(begin) * cols;
        for (int r = rank; r < row_tiles; r += team->size()) {
          const int end = symmetric ? r * kGramRows + 1 : cols;
          for (int c = 0; c < end; c += kLanes) {
            kernels.add_gram_tile(a + at + r * kGramRows, b + at + c, count, cols,
                                  gram->data() + static_cast<size_t>(r) * kGramRows * cols + c);
          }
        }
      }
    });
  }

  static void Mirror(int cols, float scale, std::vector<float>* gram) {
    for (int r = 0; r < cols; ++r) {
      for (int c = 0; c <= r; ++c) {
        const float mean = (*gram)[static_cast<size_t>(r) * cols + c] * scale;
        (*gram)[static_cast<size_t>(r) * cols + c] = mean;
        (*gram)[static_cast<size_t>(c) * cols + r] = mean;
      }
    }
  }

  Calibration& owner_;
  const int only_;
  const bool full_;
  Keeper* const original_;
  std::vector<double> squares_[kNumInputs];
  int64_t tokens_[kNumInputs] = {};
};

Calibration::Calibration(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
                         ThreadTeam* team, cpu::Isa isa, ScratchFloats hidden,
                         ScratchFloats original)
    : spec_(spec),
      windows_(std::move(windows)),
      team_(team),
      isa_(isa),
      kernels_(LaneKernelsFor(isa)),
      hidden_(std::move(hidden)),
      original_(std::move(original)) {
  EmbedWindows(spec, embedding, windows_, &hidden_);
  if (!original_.empty()) EmbedWindows(spec, embedding, windows_, &original_);
}

Calibration::Calibration(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
                         ThreadTeam* team, cpu::Isa isa, bool with_drift)
    : Calibration(spec, embedding, windows, team, isa,
                  ScratchFloats::InMemory(windows.tokens.size() * spec.hidden_size),
                  with_drift ? ScratchFloats::InMemory(windows.tokens.size() * spec.hidden_size)
                             : ScratchFloats()) {}

absl::StatusOr<std::unique_ptr<Calibration>> Calibration::Create(
    const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows, ThreadTeam* team,
    cpu::Isa isa, bool with_drift, const std::string& scratch_directory) {
  absl::StatusOr<ScratchFloats> hidden =
      ScratchFloats::InDirectory(scratch_directory, windows.tokens.size() * spec.hidden_size);
  if (!hidden.ok()) return hidden.status();
  absl::StatusOr<ScratchFloats> original = ScratchFloats();
  if (with_drift) original = ScratchFloats::Like(*hidden);
  if (!original.ok()) return original.status();
  return std::unique_ptr<Calibration>(new Calibration(
      spec, embedding, std::move(windows), team, isa, *std::move(hidden), *std::move(original)));
}

int Calibration::InputOf(LinearRole role) {
  switch (role) {
    case LinearRole::kQ:
    case LinearRole::kK:
    case LinearRole::kV:
      return 0;
    case LinearRole::kO:
      return 1;
    case LinearRole::kGate:
    case LinearRole::kUp:
      return 2;
    case LinearRole::kDown:
      return 3;
  }
  return 0;
}

void Calibration::DoneWith(LinearRole role) {
  const int next = static_cast<int>(role) + 1;
  if (next < kNumLinearRoles && InputOf(static_cast<LinearRole>(next)) == InputOf(role)) return;
  hessians_[InputOf(role)] = Hessian{};
}

absl::Status Calibration::Observe(const LayerWeights& weights, bool full, Then then,
                                  const std::atomic<bool>* stop) {
  for (Hessian& hessian : hessians_) hessian = Hessian{};
  return ObserveBatches(-1, full, then, weights, weights, stop);
}

bool Calibration::IsFirstWithItsInput(LinearRole role) {
  const int before = static_cast<int>(role) - 1;
  return before < 0 || InputOf(static_cast<LinearRole>(before)) != InputOf(role);
}

absl::Status Calibration::ObserveInput(LinearRole role, const LayerWeights& original,
                                       const LayerWeights& altered, const std::atomic<bool>* stop) {
  FEWBIT_CHECK(IsFirstWithItsInput(role)) << LinearRoleName(role);
  const int input = InputOf(role);
  hessians_[input] = Hessian{};
  // A layer that ends early leaves its hidden states alone.
  return ObserveBatches(input, true, Then::kAdvance, original, altered, stop);
}

// only: as Observer's. A few windows at a time through the original model, whose inputs the
// observer compares with, and through `altered`.
absl::Status Calibration::ObserveBatches(int only, bool full, Then then,
                                         const LayerWeights& original, const LayerWeights& altered,
                                         const std::atomic<bool>* stop) {
  Keeper keeper(only);
  const bool drift = full && !original_.empty();
  Observer observer(this, only, full, drift ? &keeper : nullptr);
  const size_t batch =
      WindowFloats(spec_, windows_.context) * BatchWindows(spec_, windows_.context);
  std::vector<float> scratch;
  for (size_t begin = 0; begin < hidden_.size(); begin += batch) {
    const size_t count = std::min(batch, hidden_.size() - begin);
    const auto run = [&](const LayerWeights& weights, std::span<float> hidden,
                         LinearInputObserver* to) {
      return RunWindows(spec_, weights, windows_.context, hidden, team_, isa_, to, stop);
    };
    std::span<float> inputs = hidden_.values().subspan(begin, count);
    if (then == Then::kStay) {
      scratch.assign(inputs.begin(), inputs.end());
      inputs = scratch;
    }
    if (drift) {
      if (!run(original, original_.values().subspan(begin, count), &keeper)) {
        return absl::CancelledError("stopped");
      }
      original_.Release(begin, count);
    }
    if (!run(altered, inputs, &observer)) return absl::CancelledError("stopped");
    hidden_.Release(begin, count);
  }
  observer.Finish();
  return absl::OkStatus();
}

absl::Status Calibration::Advance(const LayerWeights& weights, const std::atomic<bool>* stop) {
  if (!RunWindows(spec_, weights, windows_.context, &hidden_, team_, isa_, stop)) {
    return absl::CancelledError("stopped");
  }
  return absl::OkStatus();
}

absl::Status Calibration::AdvanceOriginal(const LayerWeights& weights,
                                          const std::atomic<bool>* stop) {
  if (original_.empty()) return absl::OkStatus();
  if (!RunWindows(spec_, weights, windows_.context, &original_, team_, isa_, stop)) {
    return absl::CancelledError("stopped");
  }
  return absl::OkStatus();
}

absl::Status CheckNotStopped(const std::atomic<bool>* stop) {
  if (stop == nullptr || !stop->load(std::memory_order_relaxed)) return absl::OkStatus();
  return absl::CancelledError("stopped");
}

bool RunWindows(const ModelSpec& spec, const LayerWeights& weights, int context,
                std::span<float> hidden, ThreadTeam* team, cpu::Isa isa,
                LinearInputObserver* observer, const std::atomic<bool>* stop) {
  const size_t window = WindowFloats(spec, context);
  const int windows = static_cast<int>(hidden.size() / window);
  const int batch = BatchWindows(spec, context);
  for (int begin = 0; begin < windows; begin += batch) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) return false;
    const int count = std::min(batch, windows - begin);
    std::vector<int32_t> q_start(count + 1);
    for (int i = 0; i <= count; ++i) q_start[i] = i * context;
    RunLayer(spec, weights, q_start, hidden.data() + begin * window, team, isa, observer);
  }
  return true;
}

bool RunWindows(const ModelSpec& spec, const LayerWeights& weights, int context,
                ScratchFloats* hidden, ThreadTeam* team, cpu::Isa isa,
                const std::atomic<bool>* stop) {
  const size_t batch = WindowFloats(spec, context) * BatchWindows(spec, context);
  for (size_t begin = 0; begin < hidden->size(); begin += batch) {
    const size_t count = std::min(batch, hidden->size() - begin);
    if (!RunWindows(spec, weights, context, hidden->values().subspan(begin, count), team, isa,
                    nullptr, stop)) {
      return false;
    }
    hidden->Release(begin, count);
  }
  return true;
}

void EmbedWindows(const ModelSpec& spec, const Matrix& embedding, const CalibrationWindows& windows,
                  ScratchFloats* hidden) {
  const size_t e = spec.hidden_size;
  for (size_t begin = 0; begin < windows.tokens.size(); begin += kBatchTokens) {
    const size_t count = std::min<size_t>(kBatchTokens, windows.tokens.size() - begin);
    EmbedTokens(embedding, std::span(windows.tokens).subspan(begin, count),
                hidden->values().data() + begin * e);
    hidden->Release(begin * e, count * e);
  }
}

}  // namespace fewbit
