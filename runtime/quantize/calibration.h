// The calibration text on its way through the original model, one layer at a time: hidden states of
// all windows, and what each linear layer sees of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/linear.h"
#include "runtime/models/decoder.h"
#include "runtime/models/dense_products.h"
#include "runtime/models/model.h"
#include "runtime/products/dense_linear.h"
#include "runtime/products/team_products.h"
#include "runtime/quantize/hessian.h"
#include "runtime/quantize/lane_kernels.h"
#include "runtime/quantize/scratch_floats.h"
#include "runtime/thread_team.h"
#include "scheduler/ids.h"

namespace fewbit {

struct CalibrationWindows {
  int context = 0;              // tokens per window
  std::vector<TokenId> tokens;  // [windows * context]
  int count() const { return context == 0 ? 0 : static_cast<int>(tokens.size()) / context; }
};

// Cuts `text` into windows that do not overlap, each begun with `bos` (none if negative), and draws
// `max_windows` of them without replacement by `seed`, in the order of the text. With `drawn`,
// after so many others were drawn: windows that a call with max_windows = drawn has not, none if it
// has them all. INVALID_ARGUMENT: not one whole window, or an id outside the vocabulary.
absl::StatusOr<CalibrationWindows> CutWindows(std::span<const TokenId> text, TokenId bos,
                                              int context, int max_windows, uint64_t seed,
                                              int vocab_size, int drawn = 0);

// CANCELLED once *stop is set; `stop` may be null.
absl::Status CheckNotStopped(const std::atomic<bool>* stop);

// hidden [windows * context, E] <- one layer of a model of `spec` over it, each window on its own
// from position 0. `observer` may be null. *stop set (may be null): false, and `hidden` is of no
// use any more.
bool RunWindows(const ModelSpec& spec, const LayerWeights& weights, int context,
                std::span<float> hidden, LayerByLayer* runner, LinearInputObserver* observer,
                const std::atomic<bool>* stop = nullptr);

// Likewise, of numbers that are not all resident: what is done with is released.
bool RunWindows(const ModelSpec& spec, const LayerWeights& weights, int context,
                ScratchFloats* hidden, LayerByLayer* runner,
                const std::atomic<bool>* stop = nullptr);

// hidden [windows * context, E] <- the embedding's rows.
void EmbedWindows(const ModelSpec& spec, const Matrix& embedding, const CalibrationWindows& windows,
                  ScratchFloats* hidden);

// Thread rule: one caller at a time, which is not inside team->Run.
class Calibration {
 public:
  // Embeds the windows. `with_drift`: beside the hidden states that Advance leaves, those of the
  // original model are kept, and full Hessians get their drift. `spec` and `products` outlive the
  // object. All is in memory.
  Calibration(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
              TeamProducts* products, cpu::Isa isa, bool with_drift = false);
  // Likewise with hidden states in a file in `scratch_directory`. Errors: ScratchFloats'.
  static absl::StatusOr<std::unique_ptr<Calibration>> Create(
      const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
      TeamProducts* products, cpu::Isa isa, bool with_drift, const std::string& scratch_directory);

  // Gathers the Hessians of the layer that comes next, over all windows. `full`: their matrices
  // too, not only their diagonals. kAdvance: as if Advance had followed with the same weights. The
  // original model's hidden states, if they are kept, are past the layer in any case. *stop set
  // (may be null): ends early with CANCELLED, and the object is of no use any more.
  enum class Then { kStay, kAdvance };
  absl::Status Observe(const LayerWeights& weights, bool full, Then then,
                       const std::atomic<bool>* stop);

  // Likewise full, of the input of `role` alone, which is the first role with that input: as it
  // comes out of `altered`, the layer as far as it is quantized, before anything else of `altered`
  // is used. For the roles in their order; with kDown the original model's hidden states, if they
  // are kept, go past the layer. `release` is called where mapped weights need not be resident any
  // more; may be empty.
  absl::Status ObserveInput(LinearRole role, const LayerWeights& original,
                            const LayerWeights& altered, const std::function<void()>& release,
                            const std::atomic<bool>* stop);
  static bool IsFirstWithItsInput(LinearRole role);

  // Runs all windows through the layer, as itself or as it came out quantized.
  absl::Status Advance(const LayerWeights& weights, const std::atomic<bool>* stop);

  // For a layer that is not observed: likewise the original model's hidden states, if they are
  // kept.
  absl::Status AdvanceOriginal(const LayerWeights& weights, const std::atomic<bool>* stop);

  // Of the inputs of a role in the layer observed last.
  Hessian* hessian(LinearRole role) { return &hessians_[InputOf(role)]; }

  // For who takes the roles in their order: frees the Hessian that no role after this one has.
  void DoneWith(LinearRole role);
  static bool IsLastWithItsInput(LinearRole role);

 private:
  class Observer;
  class Keeper;
  static constexpr int kNumInputs = 4;  // of q/k/v, o, gate/up, down
  static int InputOf(LinearRole role);
  absl::Status ObserveBatches(int only, bool full, Then then, const LayerWeights& original,
                              const LayerWeights& altered, const std::function<void()>& release,
                              const std::atomic<bool>* stop);
  void Multiply(const Matrix& matrix, const float* x, int tokens, float* y);
  Calibration(const ModelSpec& spec, const Matrix& embedding, CalibrationWindows windows,
              TeamProducts* products, cpu::Isa isa, ScratchFloats hidden, ScratchFloats original);

  const ModelSpec& spec_;
  const CalibrationWindows windows_;
  TeamProducts& products_;
  ThreadTeam* const team_;
  const cpu::Isa isa_;
  DenseLinear linear_;
  const LaneKernels& kernels_;
  ScratchFloats hidden_;    // [windows * context, E]
  ScratchFloats original_;  // likewise in the original model, empty: not kept
  Hessian hessians_[kNumInputs];
};

}  // namespace fewbit
