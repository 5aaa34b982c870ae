#include "runtime/quantize/calibration.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/products/pieces.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

// Tokens that run through a layer at once, and bytes of what a layer makes of them: the fewer of
// the two, one window at least.
constexpr int kBatchTokens = 2048;
constexpr int64_t kBatchBytes = 32 << 20;
constexpr int kGramTile = 256;  // channels, either way, of a tile of a Hessian

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
  Keeper(int only, ThreadTeam* team, const std::function<void()>& release)
      : only_(only), team_(team), release_(release) {}

  void OnInput(LinearRole role, const float* x, int tokens, int cols) override {
    if (release_) release_();
    if (only_ >= 0 && InputOf(role) != only_) return;
    std::vector<float>& input = inputs_[InputOf(role)];
    input.resize(static_cast<size_t>(tokens) * cols);
    ForPieces(team_, static_cast<int64_t>(input.size()), kPieceElements,
              [&](int, int64_t begin, int64_t end) {
                std::copy(x + begin, x + end, input.begin() + begin);
              });
  }
  bool EndsAt(LinearRole role) override {
    return InputOf(role) == only_ && role != LinearRole::kDown;
  }
  std::vector<float>& input(int i) { return inputs_[i]; }

 private:
  const int only_;
  ThreadTeam* const team_;
  const std::function<void()>& release_;
  std::vector<float> inputs_[kNumInputs];
};

class Calibration::Observer : public LinearInputObserver {
 public:
  // only: the input that is wanted, with which the layer ends; -1 for all. `original`: has the same
  // batch in the original model; null: no drift is wanted. `only_matrix`: has this input alone, and
  // its misses are wanted instead of the drift; may be null.
  Observer(Calibration* owner, int only, bool full, Keeper* original, const Matrix* only_matrix)
      : owner_(*owner), only_(only), full_(full), original_(original), only_matrix_(only_matrix) {}

  bool EndsAt(LinearRole role) override { return InputOf(role) == only_; }

  void OnInput(LinearRole role, const float* x, int tokens, int cols) override {
    const int input = InputOf(role);
    if (only_ >= 0 && input != only_) return;
    std::vector<double>& squares = squares_[input];
    squares.resize(cols);
    tokens_[input] += tokens;
    AddSquares(x, tokens, cols, squares.data());
    if (!full_) return;
    Hessian& hessian = owner_.hessians_[input];
    const Factor right(owner_.products_, x, tokens, cols);
    if (hessian.matrix.empty()) hessian.matrix = HessianMatrix(cols);
    AddProduct(right, right, true, hessian.matrix.row(0));
    if (original_ == nullptr) return;
    std::vector<float>& difference = original_->input(input);
    ForPieces(owner_.team_, static_cast<int64_t>(difference.size()), kPieceElements,
              [&](int, int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) difference[i] -= x[i];
              });
    if (only_matrix_ != nullptr) {
      AddMisses(right, difference, &hessian.misses);
      return;
    }
    if (hessian.drift.empty()) {
      hessian.drift = ScratchFloats::InMemory(static_cast<size_t>(cols) * cols);
    }
    AddProduct(right, Factor(owner_.products_, difference.data(), tokens, cols), false,
               hessian.drift.values().data());
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
      if (full_) ScaleLower(static_cast<float>(scale), &hessian.matrix);
      for (ScratchFloats* sums : {&hessian.drift, &hessian.misses}) {
        const int rows = static_cast<int>(sums->size() / cols);
        Scale(static_cast<float>(scale), rows, cols, sums->values().data());
      }
    }
  }

 private:
  // Inputs of a batch [tokens, cols] as what they are multiplied as.
  struct Factor {
    Factor(const TeamProducts& products, const float* x, int rows, int channels)
        : data(x), tokens(rows), cols(channels) {
      if (!HasBFloat16Products()) return;
      narrow.resize(static_cast<size_t>(tokens) * cols);
      products.Narrow(x, static_cast<int64_t>(narrow.size()), narrow.data());
      data = narrow.data();
      type = TileType::kBFloat16;
    }
    size_t size() const {  // of a number, in bytes
      return type == TileType::kBFloat16 ? sizeof(uint16_t) : sizeof(float);
    }
    std::vector<uint16_t> narrow;
    const void* data;
    TileType type = TileType::kFloat32;
    int tokens, cols;
  };

  // sums [cols] += the squares of the tokens in ascending order.
  void AddSquares(const float* x, int tokens, int cols, double* sums) {
    ForPieces(owner_.team_, cols, kGramTile, [&](int, int64_t begin, int64_t end) {
      owner_.kernels_.add_squares(x + begin, tokens, static_cast<int>(end - begin), cols,
                                  sums + begin);
    });
  }

  // sums += left^T right, of a symmetric one the tiles that its lower triangle touches.
  void AddProduct(const Factor& left, const Factor& right, bool symmetric, float* sums) {
    const int cols = left.cols;
    TileProduct whole;
    whole.k = left.tokens;
    whole.type = left.type;
    whole.a = {left.data, cols, true};
    whole.b = {right.data, cols, false};
    whole.beta = 1.0f;
    whole.c_row_stride = cols;
    std::vector<TileProduct> tiles;
    for (int row = 0; row < cols; row += kGramTile) {
      whole.m = std::min(kGramTile, cols - row);
      whole.n = symmetric ? row + whole.m : cols;
      whole.a.data = static_cast<const char*>(left.data) + row * left.size();
      whole.c = sums + static_cast<size_t>(row) * cols;
      CutProduct(whole, kGramTile, kGramTile, &tiles);
    }
    owner_.products_.Multiply(tiles);
  }

  // sums += what the matrix makes of the differences [tokens, K], times the inputs, as
  // Hessian::misses.
  void AddMisses(const Factor& inputs, const std::vector<float>& differences, ScratchFloats* sums) {
    const int tokens = inputs.tokens, cols = inputs.cols, rows = MatrixRows(*only_matrix_);
    const int panel_rows = PanelRows(cols);
    const int64_t panels = Pieces(rows, panel_rows);
    if (sums->empty()) {
      *sums = ScratchFloats::InMemory(static_cast<size_t>(panels) * cols * panel_rows);
    }
    std::vector<float> outputs(static_cast<size_t>(tokens) * rows);
    owner_.Multiply(*only_matrix_, differences.data(), tokens, outputs.data());
    const Factor right(owner_.products_, outputs.data(), tokens, rows);
    TileProduct whole;
    whole.k = tokens;
    whole.type = inputs.type;
    whole.m = cols;
    whole.a = {inputs.data, cols, true};
    whole.beta = 1.0f;
    whole.c_row_stride = panel_rows;
    std::vector<TileProduct> tiles;
    for (int64_t p = 0; p < panels; ++p) {
      const int first = static_cast<int>(p) * panel_rows;
      whole.n = std::min(panel_rows, rows - first);
      whole.b = {static_cast<const char*>(right.data) + first * right.size(), rows, false};
      whole.c = sums->values().data() + static_cast<size_t>(first) * cols;
      CutProduct(whole, kGramTile, panel_rows, &tiles);
    }
    owner_.products_.Multiply(tiles);
  }

  void Scale(float factor, int rows, int cols, float* sums) {
    ForPieces(owner_.team_, rows, 1, [&](int, int64_t row, int64_t) {
      for (int64_t i = row * cols; i < (row + 1) * cols; ++i) sums[i] *= factor;
    });
  }

  void ScaleLower(float factor, HessianMatrix* matrix) {
    ForPieces(owner_.team_, matrix->size(), 1, [&](int, int64_t row, int64_t) {
      float* values = matrix->row(static_cast<int>(row));
      for (int64_t i = 0; i <= row; ++i) values[i] *= factor;
    });
  }

  Calibration& owner_;
  const int only_;
  const bool full_;
  Keeper* const original_;
  const Matrix* const only_matrix_;
  std::vector<double> squares_[kNumInputs];
  int64_t tokens_[kNumInputs] = {};
};

Calibration::Calibration(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
                         TeamProducts* products, cpu::Isa isa, ScratchFloats hidden,
                         ScratchFloats original)
    : spec_(spec),
      windows_(std::move(windows)),
      products_(*products),
      team_(products->team()),
      isa_(isa),
      linear_(products, isa),
      kernels_(LaneKernelsFor(isa)),
      hidden_(std::move(hidden)),
      original_(std::move(original)) {
  EmbedWindows(spec, embedding, windows_, &hidden_);
  if (!original_.empty()) EmbedWindows(spec, embedding, windows_, &original_);
}

Calibration::Calibration(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
                         TeamProducts* products, cpu::Isa isa, bool with_drift)
    : Calibration(spec, embedding, windows, products, isa,
                  ScratchFloats::InMemory(windows.tokens.size() * spec.hidden_size),
                  with_drift ? ScratchFloats::InMemory(windows.tokens.size() * spec.hidden_size)
                             : ScratchFloats()) {}

absl::StatusOr<std::unique_ptr<Calibration>> Calibration::Create(
    const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
    TeamProducts* products, cpu::Isa isa, bool with_drift, const std::string& scratch_directory) {
  absl::StatusOr<ScratchFloats> hidden =
      ScratchFloats::InDirectory(scratch_directory, windows.tokens.size() * spec.hidden_size);
  if (!hidden.ok()) return hidden.status();
  absl::StatusOr<ScratchFloats> original = ScratchFloats();
  if (with_drift) original = ScratchFloats::Like(*hidden);
  if (!original.ok()) return original.status();
  return std::unique_ptr<Calibration>(new Calibration(spec, embedding, std::move(windows), products,
                                                      isa, *std::move(hidden),
                                                      *std::move(original)));
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

bool Calibration::IsLastWithItsInput(LinearRole role) {
  const int next = static_cast<int>(role) + 1;
  return next == kNumLinearRoles || InputOf(static_cast<LinearRole>(next)) != InputOf(role);
}

void Calibration::DoneWith(LinearRole role) {
  if (IsLastWithItsInput(role)) hessians_[InputOf(role)] = Hessian{};
}

absl::Status Calibration::Observe(const LayerWeights& weights, bool full, Then then,
                                  const std::atomic<bool>* stop) {
  for (Hessian& hessian : hessians_) hessian = Hessian{};
  return ObserveBatches(-1, full, then, weights, weights, nullptr, stop);
}

bool Calibration::IsFirstWithItsInput(LinearRole role) {
  const int before = static_cast<int>(role) - 1;
  return before < 0 || InputOf(static_cast<LinearRole>(before)) != InputOf(role);
}

absl::Status Calibration::ObserveInput(LinearRole role, const LayerWeights& original,
                                       const LayerWeights& altered,
                                       const std::function<void()>& release,
                                       const std::atomic<bool>* stop) {
  FEWBIT_CHECK(IsFirstWithItsInput(role)) << LinearRoleName(role);
  const int input = InputOf(role);
  hessians_[input] = Hessian{};
  // A layer that ends early leaves its hidden states alone.
  return ObserveBatches(input, true, Then::kAdvance, original, altered, release, stop);
}

// only: as Observer's. A few windows at a time through the original model, whose inputs the
// observer compares with, and through `altered`.
absl::Status Calibration::ObserveBatches(int only, bool full, Then then,
                                         const LayerWeights& original, const LayerWeights& altered,
                                         const std::function<void()>& release,
                                         const std::atomic<bool>* stop) {
  Keeper keeper(only, team_, release);
  const bool drift = full && !original_.empty();
  const Matrix& down = original[LinearRole::kDown];
  const bool misses =
      drift && only == InputOf(LinearRole::kDown) && MatrixRows(down) < MatrixCols(down);
  Observer observer(this, only, full, drift ? &keeper : nullptr, misses ? &down : nullptr);
  const size_t batch =
      WindowFloats(spec_, windows_.context) * BatchWindows(spec_, windows_.context);
  LayerByLayer runner(spec_, team_, isa_, &linear_);
  std::vector<float> scratch;
  for (size_t begin = 0; begin < hidden_.size(); begin += batch) {
    const size_t count = std::min(batch, hidden_.size() - begin);
    const auto run = [&](const LayerWeights& weights, std::span<float> hidden,
                         LinearInputObserver* to) {
      return RunWindows(spec_, weights, windows_.context, hidden, &runner, to, stop);
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
      if (release) release();
    }
    if (!run(altered, inputs, &observer)) return absl::CancelledError("stopped");
    hidden_.Release(begin, count);
  }
  observer.Finish();
  return absl::OkStatus();
}

// y [tokens, N] = x W^T of a matrix as it is.
void Calibration::Multiply(const Matrix& matrix, const float* x, int tokens, float* y) {
  const auto& w = std::get<DenseMatrix>(matrix);
  std::vector<uint8_t> staged(linear_.ActivationBytes(w, tokens));
  const int rows = w.rows;
  ForPieces(team_, tokens, 1, [&](int, int64_t begin, int64_t end) {
    linear_.Prepare(w, x, static_cast<int>(begin), static_cast<int>(end), staged.data());
  });
  ForPieces(team_, rows, DenseProducts::kRowUnit, [&](int rank, int64_t begin, int64_t end) {
    linear_.Linear(rank, w, x, staged.data(), tokens, static_cast<int>(begin),
                   static_cast<int>(end), y, rows);
  });
}

absl::Status Calibration::Advance(const LayerWeights& weights, const std::atomic<bool>* stop) {
  LayerByLayer runner(spec_, team_, isa_, &linear_);
  if (!RunWindows(spec_, weights, windows_.context, &hidden_, &runner, stop)) {
    return absl::CancelledError("stopped");
  }
  return absl::OkStatus();
}

absl::Status Calibration::AdvanceOriginal(const LayerWeights& weights,
                                          const std::atomic<bool>* stop) {
  if (original_.empty()) return absl::OkStatus();
  LayerByLayer runner(spec_, team_, isa_, &linear_);
  if (!RunWindows(spec_, weights, windows_.context, &original_, &runner, stop)) {
    return absl::CancelledError("stopped");
  }
  return absl::OkStatus();
}

absl::Status CheckNotStopped(const std::atomic<bool>* stop) {
  if (stop == nullptr || !stop->load(std::memory_order_relaxed)) return absl::OkStatus();
  return absl::CancelledError("stopped");
}

bool RunWindows(const ModelSpec& spec, const LayerWeights& weights, int context,
                std::span<float> hidden, LayerByLayer* runner, LinearInputObserver* observer,
                const std::atomic<bool>* stop) {
  const size_t window = WindowFloats(spec, context);
  const int windows = static_cast<int>(hidden.size() / window);
  const int batch = BatchWindows(spec, context);
  for (int begin = 0; begin < windows; begin += batch) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) return false;
    const int count = std::min(batch, windows - begin);
    std::vector<int32_t> q_start(count + 1);
    for (int i = 0; i <= count; ++i) q_start[i] = i * context;
    runner->Run(weights, q_start, hidden.data() + begin * window, observer);
  }
  return true;
}

bool RunWindows(const ModelSpec& spec, const LayerWeights& weights, int context,
                ScratchFloats* hidden, LayerByLayer* runner, const std::atomic<bool>* stop) {
  const size_t batch = WindowFloats(spec, context) * BatchWindows(spec, context);
  for (size_t begin = 0; begin < hidden->size(); begin += batch) {
    const size_t count = std::min(batch, hidden->size() - begin);
    if (!RunWindows(spec, weights, context, hidden->values().subspan(begin, count), runner, nullptr,
                    stop)) {
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
