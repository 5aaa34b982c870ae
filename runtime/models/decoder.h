// The one decoder: every family of the arch table is this code driven by ModelSpec's flags. Tensors
// are float32 [T, ...], row-major.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/cpu/linear.h"
#include "runtime/batch.h"
#include "runtime/kv_cache.h"
#include "runtime/models/dense_products.h"
#include "runtime/models/model.h"
#include "runtime/thread_team.h"

namespace fewbit {

struct DecoderLimits {
  int32_t max_step_tokens = 512;  // T
  int32_t max_logit_rows = 64;    // R of one Logits or Forward
  int32_t max_context = 0;        // positions; 0: spec.max_context
};

// Scratch for one step of one model; owns no weights. Thread rule: one caller at a time.
class Decoder {
 public:
  // `model` (all layers loaded) and `team` outlive the decoder.
  Decoder(const Model* model, ThreadTeam* team, cpu::Isa isa, const DecoderLimits& limits);
  ~Decoder();

  // Runs T tokens of S sequences through all layers, writing their keys and values into `kv`
  // (through batch.block_table) and the logits of `logit_rows` (ascending indices in T) into
  // `logits` [R, V]. No allocation. A token's result depends on its own sequence only.
  void Forward(const ForwardBatch& batch, KvCache* kv, std::span<const int32_t> logit_rows,
               float* logits);

  // Forward in two halves, for steps that want more rows than max_logit_rows: RunTokens keeps the
  // last hidden state of the rows of `logit_rows` (any number of them), and Logits turns rows
  // [begin, end) of these into logits [end - begin, V].
  void RunTokens(const ForwardBatch& batch, KvCache* kv, std::span<const int32_t> logit_rows);
  void Logits(int begin, int end, float* logits);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Sees the input of each linear layer while a layer runs; q, k and v share one input, as do gate
// and up (called once, with kQ and kGate).
class LinearInputObserver {
 public:
  virtual ~LinearInputObserver() = default;
  // x [tokens, cols], contiguous. Called on the caller's thread, outside the team.
  virtual void OnInput(LinearRole role, const float* x, int tokens, int cols) = 0;
  // True: nothing after this input is wanted; the layer ends here and leaves `hidden` as it was.
  virtual bool EndsAt(LinearRole /*role*/) { return false; }
};

// Decoder layers over whole independent sequences from position 0, for calibration. Keeps its
// scratch between calls. Thread rule: one caller at a time.
class LayerByLayer {
 public:
  // `spec`, `team` and `products` outlive the object. `products` null: dense matrices are
  // multiplied as when serving.
  LayerByLayer(const ModelSpec& spec, ThreadTeam* team, cpu::Isa isa,
               DenseProducts* products = nullptr);
  ~LayerByLayer();

  // One layer: hidden [T, E] in place, q_start [S + 1]. No keys or values outlive the call.
  // `observer` may be null. Aborts if the system has no memory.
  void Run(const LayerWeights& weights, std::span<const int32_t> q_start, float* hidden,
           LinearInputObserver* observer);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// hidden [T, E] <- embedding rows; logits [T, V] <- head(norm(hidden)): the two ends of the model,
// for calibration and evaluation. `products` as above.
void EmbedTokens(const Matrix& embedding, std::span<const TokenId> ids, float* hidden);
void ComputeLogits(const ModelSpec& spec, std::span<const float> final_norm, const Matrix& head,
                   const float* hidden, int tokens, ThreadTeam* team, cpu::Isa isa, float* logits,
                   DenseProducts* products = nullptr);

}  // namespace fewbit
