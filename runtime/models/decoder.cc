#include "runtime/models/decoder.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/cpu/ops.h"
#include "runtime/aligned_buffer.h"
#include "runtime/models/decoder_layer.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kHeadRowUnit = 16;
constexpr int kHeadChunkRows = 64;  // of ComputeLogits

// The last norm and the head. Like the layers, a few rows are staged by every rank for itself, more
// are shared out.
class HeadRunner {
 public:
  // `products` as LayerByLayer's.
  HeadRunner(const ModelSpec& spec, const Matrix& head, ThreadTeam* team, cpu::Isa isa,
             int max_rows, DenseProducts* products)
      : spec_(spec),
        head_(head),
        team_(team),
        isa_(isa),
        max_rows_(max_rows),
        dense_(std::get_if<DenseMatrix>(&head)),
        products_(dense_ != nullptr ? products : nullptr) {
    normed_ = AlignedBuffer<float>(static_cast<size_t>(max_rows) * spec.hidden_size);
    activations_ =
        AlignedBuffer<uint8_t>(products_ != nullptr ? products_->ActivationBytes(*dense_, max_rows)
                                                    : cpu::ActivationBytes(head, max_rows));
    for (int rank = 0; rank < team->size(); ++rank) {
      locals_.push_back({AlignedBuffer<float>(kRedundantTokens * spec.hidden_size),
                         AlignedBuffer<uint8_t>(cpu::ActivationBytes(head, kRedundantTokens))});
    }
  }

  // On every rank: logits [rows, V] of hidden [rows, E], which this rank may read. No barrier at
  // the end.
  void Run(int rank, std::span<const float> norm, const float* hidden, int rows, float* logits) {
    FEWBIT_CHECK(rows <= max_rows_) << rows << " rows of logits for at most " << max_rows_;
    const size_t e = spec_.hidden_size;
    const bool redundant = rows <= kRedundantTokens && products_ == nullptr;
    float* normed = redundant ? locals_[rank].normed.data() : normed_.data();
    uint8_t* staged = redundant ? locals_[rank].activations.data() : activations_.data();
    const Share tokens = redundant ? Share{0, rows} : ShareOf(rows, 1, rank, team_->size());
    for (int t = tokens.begin; t < tokens.end; ++t) {
      cpu::RmsNorm(isa_, hidden + t * e, norm.data(), spec_.rms_eps, spec_.hidden_size,
                   normed + t * e);
    }
    if (products_ != nullptr) {
      products_->Prepare(*dense_, normed, tokens.begin, tokens.end, staged);
    } else if (tokens.begin < tokens.end) {
      cpu::PrepareActivations(isa_, head_, normed, e, rows, tokens.begin, tokens.end, staged);
    }
    if (!redundant) team_->Barrier();
    const int unit = products_ != nullptr ? DenseProducts::kRowUnit : kHeadRowUnit;
    const Share share = ShareOf(spec_.vocab_size, unit, rank, team_->size());
    if (products_ != nullptr) {
      products_->Linear(rank, *dense_, normed, staged, rows, share.begin, share.end, logits,
                        spec_.vocab_size);
    } else if (share.begin < share.end) {
      cpu::Linear(isa_, head_, normed, e, staged, rows, share.begin, share.end, logits,
                  spec_.vocab_size);
    }
  }

 private:
  struct Local {
    AlignedBuffer<float> normed;
    AlignedBuffer<uint8_t> activations;
  };

  const ModelSpec& spec_;
  const Matrix& head_;
  ThreadTeam* const team_;
  const cpu::Isa isa_;
  const int max_rows_;
  const DenseMatrix* const dense_;  // null: the head is not dense
  DenseProducts* const products_;
  AlignedBuffer<float> normed_;
  AlignedBuffer<uint8_t> activations_;
  std::vector<Local> locals_;
};

LayerRunner::Limits RunnerLimits(const Model& model, const DecoderLimits& limits) {
  LayerRunner::Limits out;
  out.max_tokens = limits.max_step_tokens;
  out.max_position = limits.max_context > 0 ? limits.max_context : model.spec.max_context;
  out.num_layers = model.spec.num_layers;
  for (const LayerWeights& w : model.layers) {
    out.activation_bytes = std::max(out.activation_bytes, MaxActivationBytes(w, out.max_tokens));
    out.redundant_activation_bytes =
        std::max(out.redundant_activation_bytes, MaxActivationBytes(w, kRedundantTokens));
  }
  return out;
}

}  // namespace

struct Decoder::Impl {
  Impl(const Model* model, ThreadTeam* team, cpu::Isa isa, const DecoderLimits& limits)
      : model(model),
        team(team),
        runner(model->spec, team, isa, RunnerLimits(*model, limits)),
        head(model->spec, model->head, team, isa, limits.max_logit_rows, nullptr) {
    FEWBIT_CHECK(static_cast<int>(model->layers.size()) == model->spec.num_layers)
        << "a decoder needs all " << model->spec.num_layers << " layers, not "
        << model->layers.size();
  }

  void Begin(const ForwardBatch& forward, KvCache* cache, std::span<const int32_t> logit_rows) {
    batch = &forward;
    kv = cache;
    rows = static_cast<int>(logit_rows.size());
    LayerBatch layers;
    layers.positions = forward.positions;
    layers.q_start = forward.q_start;
    layers.block_table = forward.block_table.data();
    layers.block_table_stride = forward.block_table_stride;
    layers.wanted = logit_rows;
    runner.Begin(layers);
  }

  void RunLayers(int rank) {
    const size_t e = model->spec.hidden_size;
    const Share share = runner.TokenShare(rank, runner.tokens());
    for (int t = share.begin; t < share.end; ++t) {
      cpu::DequantizeRow(model->embedding, ToInt(batch->token_ids[t]), runner.hidden(rank) + t * e);
    }
    runner.FillRope(rank);
    const int last = model->spec.num_layers - 1;
    for (int l = 0; l <= last; ++l) {
      runner.Layer(rank, model->layers[l], {kv->layer(l), kv->shape()}, l,
                   l == last && rows < runner.tokens());
    }
    runner.Finish(rank, rows);
  }

  const Model* const model;
  ThreadTeam* const team;
  LayerRunner runner;
  HeadRunner head;

  const ForwardBatch* batch = nullptr;
  KvCache* kv = nullptr;
  int rows = 0;
  float* logits = nullptr;
};

Decoder::Decoder(const Model* model, ThreadTeam* team, cpu::Isa isa, const DecoderLimits& limits)
    : impl_(std::make_unique<Impl>(model, team, isa, limits)) {}

Decoder::~Decoder() = default;

void Decoder::Forward(const ForwardBatch& batch, KvCache* kv, std::span<const int32_t> logit_rows,
                      float* logits) {
  Impl* impl = impl_.get();
  impl->Begin(batch, kv, logit_rows);
  impl->logits = logits;
  impl->team->Run([impl](int rank) {
    impl->RunLayers(rank);
    if (impl->rows == 0) return;
    // Rows beyond a rank's own share of Finish are read next.
    if (impl->runner.shared()) impl->team->Barrier();
    impl->head.Run(rank, impl->model->final_norm, impl->runner.hidden(rank), impl->rows,
                   impl->logits);
  });
}

void Decoder::RunTokens(const ForwardBatch& batch, KvCache* kv,
                        std::span<const int32_t> logit_rows) {
  Impl* impl = impl_.get();
  impl->Begin(batch, kv, logit_rows);
  impl->team->Run([impl](int rank) { impl->RunLayers(rank); });
}

void Decoder::Logits(int begin, int end, float* logits) {
  Impl* impl = impl_.get();
  FEWBIT_CHECK(begin >= 0 && begin <= end && end <= impl->rows)
      << "rows " << begin << " to " << end << " of " << impl->rows;
  if (begin == end) return;
  const float* hidden =
      impl->runner.hidden(0) + static_cast<size_t>(begin) * impl->model->spec.hidden_size;
  struct {
    const float* hidden;
    int rows;
    float* logits;
  } const job = {hidden, end - begin, logits};
  impl->team->Run([impl, &job](int rank) {
    impl->head.Run(rank, impl->model->final_norm, job.hidden, job.rows, job.logits);
  });
}

struct LayerByLayer::Impl {
  // Scratch for as many tokens in blocks of keys and values, and as much staging.
  void Prepare(const LayerWeights& weights, int tokens, int longest, int blocks) {
    const size_t bytes = MaxActivationBytes(weights, tokens, products);
    if (runner == nullptr || tokens > limits.max_tokens || longest > limits.max_position ||
        bytes > limits.activation_bytes) {
      runner.reset();
      limits.max_tokens = std::max(limits.max_tokens, tokens);
      limits.max_position = std::max(limits.max_position, longest);
      limits.num_layers = 1;
      limits.activation_bytes = std::max(limits.activation_bytes, bytes);
      limits.allow_redundant = false;
      limits.products = products;
      runner = std::make_unique<LayerRunner>(spec, team, isa, limits);
    }
    if (blocks > cache_blocks) {
      cache.reset();
      auto created =
          KvCache::Create({kv::KvType::kF32, spec.num_kv_heads, spec.head_dim}, 1, blocks);
      FEWBIT_CHECK(created.ok()) << created.status().ToString();
      cache = *std::move(created);
      cache_blocks = blocks;
    }
  }

  const ModelSpec& spec;
  ThreadTeam* const team;
  const cpu::Isa isa;
  DenseProducts* const products;
  LayerRunner::Limits limits;
  std::unique_ptr<LayerRunner> runner;
  std::unique_ptr<KvCache> cache;
  int cache_blocks = 0;
};

LayerByLayer::LayerByLayer(const ModelSpec& spec, ThreadTeam* team, cpu::Isa isa,
                           DenseProducts* products)
    : impl_(new Impl{.spec = spec,
                     .team = team,
                     .isa = isa,
                     .products = products,
                     .limits = {},
                     .runner = nullptr,
                     .cache = nullptr}) {}

LayerByLayer::~LayerByLayer() = default;

void LayerByLayer::Run(const LayerWeights& weights, std::span<const int32_t> q_start, float* hidden,
                       LinearInputObserver* observer) {
  const ModelSpec& spec = impl_->spec;
  const int tokens = q_start.back();
  const int sequences = static_cast<int>(q_start.size()) - 1;
  std::vector<int32_t> positions(tokens);
  int longest = 0;
  for (int s = 0; s < sequences; ++s) {
    std::iota(positions.begin() + q_start[s], positions.begin() + q_start[s + 1], 0);
    longest = std::max(longest, q_start[s + 1] - q_start[s]);
  }
  const int stride = kv::BlocksFor(longest);
  std::vector<BlockId> table(static_cast<size_t>(sequences) * stride);
  for (size_t i = 0; i < table.size(); ++i) table[i] = BlockId(static_cast<int32_t>(i));
  impl_->Prepare(weights, tokens, longest, sequences * stride);
  LayerRunner& runner = *impl_->runner;
  KvCache& cache = *impl_->cache;
  ThreadTeam* team = impl_->team;
  LayerBatch batch;
  batch.positions = positions;
  batch.q_start = q_start;
  batch.block_table = table.data();
  batch.block_table_stride = stride;
  runner.Begin(batch);

  const auto observe_and_end = [&](LinearRole role, const float* x, int cols) {
    if (observer == nullptr) return false;
    observer->OnInput(role, x, tokens, cols);
    return observer->EndsAt(role);
  };
  const size_t bytes = sizeof(float) * tokens * spec.hidden_size;
  std::memcpy(runner.hidden(0), hidden, bytes);
  team->Run([&](int rank) {
    runner.FillRope(rank);
    runner.AttentionInput(rank, weights, 0);
  });
  if (observe_and_end(LinearRole::kQ, runner.normed(), spec.hidden_size)) return;
  team->Run([&](int rank) {
    runner.Qkv(rank, weights);
    runner.Attention(rank, weights, {cache.layer(0), cache.shape()}, 0, false);
  });
  if (observe_and_end(LinearRole::kO, runner.attended(), spec.q_size())) return;
  team->Run([&](int rank) {
    runner.AttentionOutput(rank, weights, tokens);
    runner.MlpInput(rank, weights, tokens);
  });
  if (observe_and_end(LinearRole::kGate, runner.normed(), spec.hidden_size)) return;
  team->Run([&](int rank) { runner.GateUp(rank, weights, tokens); });
  if (observe_and_end(LinearRole::kDown, runner.activated(), spec.ffn_size)) return;
  team->Run([&](int rank) {
    runner.Down(rank, weights, tokens);
    runner.Finish(rank, tokens);
  });
  std::memcpy(hidden, runner.hidden(0), bytes);
}

void EmbedTokens(const Matrix& embedding, std::span<const TokenId> ids, float* hidden) {
  const size_t e = MatrixCols(embedding);
  for (size_t t = 0; t < ids.size(); ++t) {
    cpu::DequantizeRow(embedding, ToInt(ids[t]), hidden + t * e);
  }
}

void ComputeLogits(const ModelSpec& spec, std::span<const float> final_norm, const Matrix& head,
                   const float* hidden, int tokens, ThreadTeam* team, cpu::Isa isa, float* logits,
                   DenseProducts* products) {
  HeadRunner runner(spec, head, team, isa, std::min(tokens, kHeadChunkRows), products);
  for (int begin = 0; begin < tokens; begin += kHeadChunkRows) {
    const int rows = std::min(kHeadChunkRows, tokens - begin);
    const float* from = hidden + static_cast<size_t>(begin) * spec.hidden_size;
    float* to = logits + static_cast<size_t>(begin) * spec.vocab_size;
    team->Run([&](int rank) { runner.Run(rank, final_norm, from, rows, to); });
  }
}

}  // namespace fewbit
