// One decoder layer as phases that all ranks of a team run together, and the scratch they share.
// Decoder::Forward strings the phases of all layers together in one Run; RunLayer runs them one by
// one so that an observer can look in between. Nothing here knows a family.
//
// Two ways to share the work between the linear layers (norms, staging of activations) out: over
// tokens, with a barrier after it, or, for very few tokens, every rank does all of it in its own
// memory and no barrier is needed. Both give the same bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/ops.h"
#include "runtime/aligned_buffer.h"
#include "runtime/models/dense_products.h"
#include "runtime/models/model.h"
#include "runtime/models/rope.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Up to this many tokens every rank norms and stages all of them itself.
inline constexpr int kRedundantTokens = 2;

// The sequences of a step, as in ForwardBatch.
struct LayerBatch {
  std::span<const int32_t> positions;    // [T]
  std::span<const int32_t> q_start;      // [S + 1]
  const BlockId* block_table = nullptr;  // [S, block_table_stride]
  int32_t block_table_stride = 0;
  std::span<const int32_t> wanted;  // ascending token rows that survive the last layer
};

// Keys and values of one layer.
struct LayerCache {
  uint8_t* blocks = nullptr;
  kv::BlockShape shape;
};

// Most bytes that staging `tokens` for any linear layer of `weights` takes. `products` may be null.
size_t MaxActivationBytes(const LayerWeights& weights, int tokens,
                          const DenseProducts* products = nullptr);

// Thread rule: Begin by the caller outside a Run; the phases by every rank inside one. Each phase
// ends with a barrier or says that it does not.
class LayerRunner {
 public:
  struct Limits {
    int max_tokens = 0;
    int max_position = 0;                   // exclusive
    int num_layers = 0;                     // per step
    size_t activation_bytes = 0;            // for max_tokens
    size_t redundant_activation_bytes = 0;  // for kRedundantTokens
    bool allow_redundant = true;  // false: phases always leave what they make in shared memory
    DenseProducts* products = nullptr;  // for dense matrices; null: cpu::Linear
  };
  LayerRunner(const ModelSpec& spec, ThreadTeam* team, cpu::Isa isa, const Limits& limits);

  void Begin(const LayerBatch& batch);

  int tokens() const { return tokens_; }
  bool shared() const {
    return !redundant_;
  }  // how this step's work between linear layers is shared out
  // The tokens whose hidden rows this rank makes and norms; in redundant mode all of them, for
  // itself.
  Share TokenShare(int rank, int tokens) const;
  float* hidden(int rank) const;                              // [T, E]
  const float* normed() const { return normed_.data(); }      // [T, E], shared mode only
  const float* attended() const { return attended_.data(); }  // [T, H * D]
  const float* activated() const { return gate_.data(); }     // [T, F]

  // Cosines and sines of the step's positions. No barrier: they are first used two phases later.
  void FillRope(int rank);

  // All phases of layer number `index` of the step. `wanted_only`: after attention only the wanted
  // rows go on, as rows 0 .. R - 1.
  void Layer(int rank, const LayerWeights& w, const LayerCache& cache, int index, bool wanted_only);

  // The phases, in order. `rows` tokens; `index` 0 has nothing pending to add.
  void AttentionInput(int rank, const LayerWeights& w, int index);
  void Qkv(int rank, const LayerWeights& w);
  void Attention(int rank, const LayerWeights& w, const LayerCache& cache, int index,
                 bool wanted_only);
  void AttentionOutput(int rank, const LayerWeights& w, int rows);
  void MlpInput(int rank, const LayerWeights& w, int rows);
  void GateUp(int rank, const LayerWeights& w, int rows);
  void Down(int rank, const LayerWeights& w, int rows);

  // Adds what the last layer left pending to this rank's hidden rows. No barrier.
  void Finish(int rank, int rows);

 private:
  // Consecutive tokens of one sequence whose attention is one item of work per kv head.
  struct Tile {
    int32_t sequence = 0;
    int32_t token_begin = 0;
    int32_t token_end = 0;
    int32_t out_row = 0;
  };
  // What a rank has for itself.
  struct Local {
    AlignedBuffer<float> hidden, normed;  // [kRedundantTokens, E]
    AlignedBuffer<uint8_t> activations[3];
    AlignedBuffer<float> queries, outputs;  // [kMaxTileRows, padded D]
    AlignedBuffer<int32_t> positions;       // [kMaxTileRows]
    AlignedBuffer<uint8_t> attention;
  };
  struct alignas(kCacheLine) Counter {
    std::atomic<int32_t> next{0};
  };

  float* Normed(int rank) const;
  uint8_t* Activations(int rank, int slot) const;
  void TokenBarrier();
  void MakeTiles(std::span<const int32_t> wanted);
  void AddTiles(int sequence, int token_begin, int token_end, int out_row,
                std::vector<Tile>* tiles);
  void NormAndStage(int rank, const LayerWeights& w, const std::vector<float>& norm, bool add,
                    std::initializer_list<LinearRole> roles, int rows, uint32_t unused_roles);
  Share QkvRows(int rank, int index) const;
  void Stage(const Matrix& w, const float* x, int rows, Share share, void* activations);
  void StageInput(int rank, const Matrix& w, const float* x, int rows);
  void Multiply(int rank, const Matrix& w, const float* x, const void* activations, int tokens,
                Share rows, float* y, size_t y_stride);
  void Project(int rank, const Matrix& w, const float* x, int rows);
  void StoreKeyValue(int token, int sequence, int kv_head, const LayerWeights& w,
                     const LayerCache& cache);
  void StoreShare(int rank, const LayerWeights& w, const LayerCache& cache);
  void PrepareQuery(const LayerWeights& w, int token, int head, float* query) const;
  void AttendItem(int rank, const LayerWeights& w, const LayerCache& cache, const Tile& tile,
                  int kv_head, int head_begin, int head_end);
  void KeepWantedRows(int rank);

  const ModelSpec& spec_;
  ThreadTeam* const team_;
  const cpu::Isa isa_;
  const RopeTable rope_;
  const bool allow_redundant_;
  DenseProducts* const products_;
  const int row_unit_;  // rows of a linear layer are shared out in these units
  const int max_tokens_;
  const int group_;       // query heads per kv head
  const int key_offset_;  // of a token's keys in a row of qkv_
  const int value_offset_;
  const int qkv_stride_;

  LayerBatch batch_;
  int tokens_ = 0;
  bool redundant_ = false;
  bool fused_store_ =
      false;       // decode: whoever attends for a kv head stores its key and value first
  int parts_ = 1;  // pieces into which the query heads of a kv head are cut
  std::vector<Tile> tiles_, wanted_tiles_;
  std::unique_ptr<Counter[]> counters_;  // [L] next item of a layer's attention
  int num_counters_ = 0;

  AlignedBuffer<float> hidden_, normed_, qkv_, attended_, gate_, up_, projected_, cosines_, sines_;
  AlignedBuffer<uint8_t> activations_[3];
  std::vector<Local> locals_;
  std::vector<int32_t> sequence_of_;  // [T]
};

}  // namespace fewbit
