#include "runtime/models/decoder_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kRowUnit = 16;     // of cpu::Linear
constexpr int kTileTokens = 32;  // query rows of a tile, over all heads of a group

constexpr int RoundUp(int n, int unit) { return (n + unit - 1) / unit * unit; }

// The part of matrix `index` that falls to a rank when the rows of several matrices are shared out
// as if they were one.
Share RowsOf(const int* rows, int count, int unit, int index, int rank, int size) {
  int units = 0;
  int before = 0;
  for (int i = 0; i < count; ++i) {
    if (i == index) before = units;
    units += (rows[i] + unit - 1) / unit;
  }
  const Share all = ShareOf(units, 1, rank, size);
  const int begin = std::max(all.begin - before, 0) * unit;
  const int end = std::min(std::max(all.end - before, 0) * unit, rows[index]);
  return {std::min(begin, end), end};
}

}  // namespace

size_t MaxActivationBytes(const LayerWeights& weights, int tokens, const DenseProducts* products) {
  size_t bytes = 0;
  for (const Matrix& w : weights.linears) {
    bytes = std::max(bytes, cpu::ActivationBytes(w, tokens));
    const auto* dense = std::get_if<DenseMatrix>(&w);
    if (products == nullptr || dense == nullptr) continue;
    bytes = std::max(bytes, products->ActivationBytes(*dense, tokens));
  }
  return bytes;
}

LayerRunner::LayerRunner(const ModelSpec& spec, ThreadTeam* team, cpu::Isa isa,
                         const Limits& limits)
    : spec_(spec),
      team_(team),
      isa_(isa),
      rope_(spec.rope, limits.max_position),
      allow_redundant_(limits.allow_redundant),
      products_(limits.products),
      row_unit_(limits.products != nullptr ? DenseProducts::kRowUnit : kRowUnit),
      max_tokens_(limits.max_tokens),
      group_(spec.num_heads / spec.num_kv_heads),
      key_offset_(RoundUp(spec.q_size(), kRowUnit)),
      value_offset_(key_offset_ + RoundUp(spec.kv_size(), kRowUnit)),
      qkv_stride_(value_offset_ + RoundUp(spec.kv_size(), kRowUnit)) {
  FEWBIT_CHECK(group_ * spec.num_kv_heads == spec.num_heads)
      << spec.num_heads << " query heads cannot share " << spec.num_kv_heads << " kv heads";
  const size_t t = limits.max_tokens;
  hidden_ = AlignedBuffer<float>(t * spec.hidden_size);
  normed_ = AlignedBuffer<float>(t * spec.hidden_size);
  projected_ = AlignedBuffer<float>(t * spec.hidden_size);
  qkv_ = AlignedBuffer<float>(t * qkv_stride_);
  attended_ = AlignedBuffer<float>(t * spec.q_size());
  gate_ = AlignedBuffer<float>(t * spec.ffn_size);
  up_ = AlignedBuffer<float>(t * spec.ffn_size);
  cosines_ = AlignedBuffer<float>(t * rope_.pairs());
  sines_ = AlignedBuffer<float>(t * rope_.pairs());
  for (auto& slot : activations_) slot = AlignedBuffer<uint8_t>(limits.activation_bytes);
  const int padded = kv::BlockShape{kv::KvType::kF32, 1, spec.head_dim}.padded_dim();
  for (int rank = 0; rank < team->size(); ++rank) {
    Local local;
    if (allow_redundant_) {
      local.hidden = AlignedBuffer<float>(kRedundantTokens * spec.hidden_size);
      local.normed = AlignedBuffer<float>(kRedundantTokens * spec.hidden_size);
      for (auto& slot : local.activations) {
        slot = AlignedBuffer<uint8_t>(limits.redundant_activation_bytes);
      }
    }
    local.queries = AlignedBuffer<float>(cpu::kMaxTileRows * padded);
    local.outputs = AlignedBuffer<float>(cpu::kMaxTileRows * padded);
    local.positions = AlignedBuffer<int32_t>(cpu::kMaxTileRows);
    local.attention = AlignedBuffer<uint8_t>(cpu::AttentionScratchBytes(padded));
    locals_.push_back(std::move(local));
  }
  num_counters_ = limits.num_layers;
  counters_ = std::make_unique<Counter[]>(num_counters_);
  tiles_.reserve(t);
  wanted_tiles_.reserve(t);
  sequence_of_.reserve(t);
}

void LayerRunner::Begin(const LayerBatch& batch) {
  batch_ = batch;
  tokens_ = static_cast<int>(batch.positions.size());
  FEWBIT_CHECK(tokens_ > 0 && tokens_ <= max_tokens_)
      << tokens_ << " tokens in a step for at most " << max_tokens_;
  redundant_ = allow_redundant_ && tokens_ <= kRedundantTokens;
  const int sequences = static_cast<int>(batch.q_start.size()) - 1;
  sequence_of_.clear();
  for (int s = 0; s < sequences; ++s) {
    sequence_of_.resize(batch.q_start[s + 1], s);
  }
  parts_ = (group_ + cpu::kMaxTileRows - 1) / cpu::kMaxTileRows;
  const int items = tokens_ * spec_.num_kv_heads * parts_;
  if (items < team_->size()) parts_ = std::min(group_, parts_ * (team_->size() / items));
  // Every token must be attended for then, wanted or not.
  fused_store_ =
      tokens_ == sequences && parts_ == 1 && batch.wanted.size() == static_cast<size_t>(tokens_);
  MakeTiles(batch.wanted);
  for (int i = 0; i < num_counters_; ++i) {
    counters_[i].next.store(0, std::memory_order_relaxed);
  }
}

// Cuts a run of tokens of one sequence into tiles; a token's keys are before the next one's, so
// later tiles cost more.
void LayerRunner::AddTiles(int sequence, int token_begin, int token_end, int out_row,
                           std::vector<Tile>* tiles) {
  const int step = std::max(1, kTileTokens / group_);
  for (int begin = token_begin; begin < token_end; begin += step) {
    const int end = std::min(begin + step, token_end);
    tiles->push_back({sequence, begin, end, out_row + begin - token_begin});
  }
}

void LayerRunner::MakeTiles(std::span<const int32_t> wanted) {
  tiles_.clear();
  wanted_tiles_.clear();
  for (size_t s = 0; s + 1 < batch_.q_start.size(); ++s) {
    AddTiles(static_cast<int>(s), batch_.q_start[s], batch_.q_start[s + 1], batch_.q_start[s],
             &tiles_);
  }
  for (size_t i = 0; i < wanted.size();) {
    size_t end = i + 1;
    while (end < wanted.size() && wanted[end] == wanted[end - 1] + 1 &&
           sequence_of_[wanted[end]] == sequence_of_[wanted[i]]) {
      ++end;
    }
    AddTiles(sequence_of_[wanted[i]], wanted[i], wanted[end - 1] + 1, static_cast<int>(i),
             &wanted_tiles_);
    i = end;
  }
}

Share LayerRunner::TokenShare(int rank, int tokens) const {
  if (redundant_) return {0, tokens};
  const int unit = tokens < cpu::kStageTokens ? 1 : cpu::kStageTokens;
  return ShareOf(tokens, unit, rank, team_->size());
}

float* LayerRunner::hidden(int rank) const {
  return redundant_ ? locals_[rank].hidden.data() : hidden_.data();
}

float* LayerRunner::Normed(int rank) const {
  return redundant_ ? locals_[rank].normed.data() : normed_.data();
}

uint8_t* LayerRunner::Activations(int rank, int slot) const {
  return redundant_ ? locals_[rank].activations[slot].data() : activations_[slot].data();
}

void LayerRunner::TokenBarrier() {
  if (!redundant_) team_->Barrier();
}

void LayerRunner::FillRope(int rank) {
  const Share share = ShareOf(tokens_, 1, rank, team_->size());
  for (int t = share.begin; t < share.end; ++t) {
    const size_t row = static_cast<size_t>(t) * rope_.pairs();
    rope_.Fill(batch_.positions[t], cosines_.data() + row, sines_.data() + row);
  }
}

void LayerRunner::Layer(int rank, const LayerWeights& w, const LayerCache& cache, int index,
                        bool wanted_only) {
  const int rows = wanted_only ? static_cast<int>(batch_.wanted.size()) : tokens_;
  AttentionInput(rank, w, index);
  Qkv(rank, w);
  Attention(rank, w, cache, index, wanted_only);
  if (rows == 0) return;
  AttentionOutput(rank, w, rows);
  MlpInput(rank, w, rows);
  GateUp(rank, w, rows);
  Down(rank, w, rows);
}

void LayerRunner::NormAndStage(int rank, const LayerWeights& w, const std::vector<float>& norm,
                               bool add, std::initializer_list<LinearRole> roles, int rows,
                               uint32_t unused_roles) {
  const int e = spec_.hidden_size;
  const Share share = TokenShare(rank, rows);
  for (int t = share.begin; t < share.end; ++t) {
    float* row = hidden(rank) + static_cast<size_t>(t) * e;
    if (add) cpu::AddRow(isa_, row, projected_.data() + static_cast<size_t>(t) * e, e);
    cpu::RmsNorm(isa_, row, norm.data(), spec_.rms_eps, e,
                 Normed(rank) + static_cast<size_t>(t) * e);
  }
  int slot = 0;
  for (const LinearRole role : roles) {
    if (share.begin < share.end && (unused_roles >> slot & 1) == 0) {
      Stage(w[role], Normed(rank), rows, share, Activations(rank, slot));
    }
    ++slot;
  }
  TokenBarrier();
}

// The rows of q, k or v (`index` 0 to 2) that this rank computes.
Share LayerRunner::QkvRows(int rank, int index) const {
  const int rows[3] = {spec_.q_size(), spec_.kv_size(), spec_.kv_size()};
  return RowsOf(rows, 3, row_unit_, index, rank, team_->size());
}

void LayerRunner::AttentionInput(int rank, const LayerWeights& w, int index) {
  uint32_t unused =
      0;  // what a rank stages for itself alone need not cover matrices it does not use
  for (int i = 0; redundant_ && i < 3; ++i) {
    const Share share = QkvRows(rank, i);
    if (share.begin == share.end) unused |= 1u << i;
  }
  NormAndStage(rank, w, w.input_norm, index > 0, {LinearRole::kQ, LinearRole::kK, LinearRole::kV},
               tokens_, unused);
}

void LayerRunner::Qkv(int rank, const LayerWeights& w) {
  const int offsets[3] = {0, key_offset_, value_offset_};
  const LinearRole roles[3] = {LinearRole::kQ, LinearRole::kK, LinearRole::kV};
  for (int i = 0; i < 3; ++i) {
    const Share share = QkvRows(rank, i);
    if (share.begin == share.end) continue;
    Multiply(rank, w[roles[i]], Normed(rank), Activations(rank, i), tokens_, share,
             qkv_.data() + offsets[i], qkv_stride_);
  }
  team_->Barrier();
}

// Bias, norm and rotation of a key happen where it was projected; nobody else reads it.
void LayerRunner::StoreKeyValue(int token, int sequence, int kv_head, const LayerWeights& w,
                                const LayerCache& cache) {
  const int d = spec_.head_dim;
  float* row = qkv_.data() + static_cast<size_t>(token) * qkv_stride_;
  float* key = row + key_offset_ + kv_head * d;
  float* value = row + value_offset_ + kv_head * d;
  if (!w.k_bias.empty()) {
    cpu::AddRow(isa_, key, w.k_bias.data() + kv_head * d, d);
    cpu::AddRow(isa_, value, w.v_bias.data() + kv_head * d, d);
  }
  if (!w.k_norm.empty()) cpu::RmsNorm(isa_, key, w.k_norm.data(), spec_.rms_eps, d, key);
  const size_t turn = static_cast<size_t>(token) * rope_.pairs();
  cpu::Rotate(isa_, key, cosines_.data() + turn, sines_.data() + turn, spec_.rope.rotary_dim,
              spec_.rope.interleaved);
  const int position = batch_.positions[token];
  const BlockId block =
      batch_.block_table[static_cast<size_t>(sequence) * batch_.block_table_stride +
                         position / kv::kBlockTokens];
  cpu::StoreKeyValue(isa_, cache.shape, cache.blocks + ToInt(block) * cache.shape.block_bytes(),
                     kv_head, position % kv::kBlockTokens, key, value);
}

void LayerRunner::StoreShare(int rank, const LayerWeights& w, const LayerCache& cache) {
  const Share share = ShareOf(tokens_, 1, rank, team_->size());
  for (int t = share.begin; t < share.end; ++t) {
    for (int h = 0; h < spec_.num_kv_heads; ++h) StoreKeyValue(t, sequence_of_[t], h, w, cache);
  }
  team_->Barrier();
}

void LayerRunner::PrepareQuery(const LayerWeights& w, int token, int head, float* query) const {
  const int d = spec_.head_dim;
  const float* from = qkv_.data() + static_cast<size_t>(token) * qkv_stride_ + head * d;
  std::memcpy(query, from, sizeof(float) * d);
  if (!w.q_bias.empty()) cpu::AddRow(isa_, query, w.q_bias.data() + head * d, d);
  if (!w.q_norm.empty()) cpu::RmsNorm(isa_, query, w.q_norm.data(), spec_.rms_eps, d, query);
  const size_t turn = static_cast<size_t>(token) * rope_.pairs();
  cpu::Rotate(isa_, query, cosines_.data() + turn, sines_.data() + turn, spec_.rope.rotary_dim,
              spec_.rope.interleaved);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (int i = 0; i < d; ++i) query[i] *= scale;
}

// Query heads [head_begin, head_end) of a kv head's group, for every token of the tile.
void LayerRunner::AttendItem(int rank, const LayerWeights& w, const LayerCache& cache,
                             const Tile& tile, int kv_head, int head_begin, int head_end) {
  Local& local = locals_[rank];
  const int d = spec_.head_dim;
  const int padded = cache.shape.padded_dim();
  int rows = 0;
  for (int t = tile.token_begin; t < tile.token_end; ++t) {
    for (int h = head_begin; h < head_end; ++h) {
      PrepareQuery(w, t, kv_head * group_ + h, local.queries.data() + rows * padded);
      local.positions[rows++] = batch_.positions[t];
    }
  }
  cpu::AttentionTile attention;
  attention.queries = local.queries.data();
  attention.positions = local.positions.data();
  attention.rows = rows;
  attention.window = spec_.sliding_window;
  attention.layer = cache.blocks;
  attention.blocks =
      batch_.block_table + static_cast<size_t>(tile.sequence) * batch_.block_table_stride;
  attention.shape = cache.shape;
  attention.head = kv_head;
  attention.out = local.outputs.data();
  cpu::Attend(isa_, attention, local.attention.data());
  const float* from = local.outputs.data();
  for (int t = tile.token_begin; t < tile.token_end; ++t) {
    const size_t out_row = tile.out_row + t - tile.token_begin;
    float* out = attended_.data() + out_row * spec_.q_size() + kv_head * group_ * d;
    for (int h = head_begin; h < head_end; ++h, from += padded) {
      std::memcpy(out + h * d, from, sizeof(float) * d);
    }
  }
}

// Hidden rows of the wanted tokens move to the front.
void LayerRunner::KeepWantedRows(int rank) {
  const size_t e = spec_.hidden_size;
  float* rows = hidden(rank);
  for (size_t i = 0; i < batch_.wanted.size(); ++i) {
    const size_t from = batch_.wanted[i];
    if (from != i) {
      std::memcpy(rows + i * e, rows + from * e, sizeof(float) * e);
    }
  }
}

void LayerRunner::Attention(int rank, const LayerWeights& w, const LayerCache& cache, int index,
                            bool wanted_only) {
  if (!fused_store_) StoreShare(rank, w, cache);
  if (wanted_only && (redundant_ || rank == 0)) KeepWantedRows(rank);
  const std::vector<Tile>& tiles = wanted_only ? wanted_tiles_ : tiles_;
  const int per_tile = spec_.num_kv_heads * parts_;
  const int items = static_cast<int>(tiles.size()) * per_tile;
  std::atomic<int32_t>& next = counters_[index].next;
  for (int item = next.fetch_add(1, std::memory_order_relaxed); item < items;
       item = next.fetch_add(1, std::memory_order_relaxed)) {
    // Costly tiles first, so that the ranks end together.
    const Tile& tile = tiles[tiles.size() - 1 - item / per_tile];
    const int kv_head = item % per_tile / parts_;
    const int part = item % parts_;
    if (fused_store_) StoreKeyValue(tile.token_begin, tile.sequence, kv_head, w, cache);
    AttendItem(rank, w, cache, tile, kv_head, group_ * part / parts_, group_ * (part + 1) / parts_);
  }
  team_->Barrier();
}

// x [rows, K] for `w`, of the tokens of `share`.
void LayerRunner::Stage(const Matrix& w, const float* x, int rows, Share share, void* activations) {
  const auto* dense = std::get_if<DenseMatrix>(&w);
  if (products_ != nullptr && dense != nullptr) {
    products_->Prepare(*dense, x, share.begin, share.end, activations);
  } else {
    cpu::PrepareActivations(isa_, w, x, MatrixCols(w), rows, share.begin, share.end, activations);
  }
}

void LayerRunner::StageInput(int rank, const Matrix& w, const float* x, int rows) {
  const auto* dense = std::get_if<DenseMatrix>(&w);
  const size_t bytes = products_ != nullptr && dense != nullptr
                           ? products_->ActivationBytes(*dense, rows)
                           : cpu::ActivationBytes(w, rows);
  if (bytes == 0) return;
  const Share share = TokenShare(rank, rows);
  if (share.begin < share.end) Stage(w, x, rows, share, Activations(rank, 0));
  TokenBarrier();
}

// y [tokens, N] = x W^T, for some rows of W.
void LayerRunner::Multiply(int rank, const Matrix& w, const float* x, const void* activations,
                           int tokens, Share rows, float* y, size_t y_stride) {
  const auto* dense = std::get_if<DenseMatrix>(&w);
  if (products_ != nullptr && dense != nullptr) {
    products_->Linear(rank, *dense, x, activations, tokens, rows.begin, rows.end, y, y_stride);
  } else {
    cpu::Linear(isa_, w, x, MatrixCols(w), activations, tokens, rows.begin, rows.end, y, y_stride);
  }
}

// projected = x W^T, pending to be added to the hidden rows.
void LayerRunner::Project(int rank, const Matrix& w, const float* x, int rows) {
  StageInput(rank, w, x, rows);
  const Share share = ShareOf(MatrixRows(w), row_unit_, rank, team_->size());
  if (share.begin < share.end) {
    Multiply(rank, w, x, Activations(rank, 0), rows, share, projected_.data(), spec_.hidden_size);
  }
  team_->Barrier();
}

void LayerRunner::AttentionOutput(int rank, const LayerWeights& w, int rows) {
  Project(rank, w[LinearRole::kO], attended_.data(), rows);
}

void LayerRunner::MlpInput(int rank, const LayerWeights& w, int rows) {
  NormAndStage(rank, w, w.post_attention_norm, true, {LinearRole::kGate, LinearRole::kUp}, rows, 0);
}

// A rank makes the same rows of gate and up, so it can join them without waiting for anybody.
void LayerRunner::GateUp(int rank, const LayerWeights& w, int rows) {
  const int f = spec_.ffn_size;
  const Share share = ShareOf(f, row_unit_, rank, team_->size());
  if (share.begin < share.end) {
    Multiply(rank, w[LinearRole::kGate], Normed(rank), Activations(rank, 0), rows, share,
             gate_.data(), f);
    Multiply(rank, w[LinearRole::kUp], Normed(rank), Activations(rank, 1), rows, share, up_.data(),
             f);
    for (int t = 0; t < rows; ++t) {
      const size_t at = static_cast<size_t>(t) * f + share.begin;
      cpu::SiluMul(isa_, gate_.data() + at, up_.data() + at, share.end - share.begin);
    }
  }
  team_->Barrier();
}

void LayerRunner::Down(int rank, const LayerWeights& w, int rows) {
  Project(rank, w[LinearRole::kDown], gate_.data(), rows);
}

void LayerRunner::Finish(int rank, int rows) {
  const int e = spec_.hidden_size;
  const Share share = TokenShare(rank, rows);
  for (int t = share.begin; t < share.end; ++t) {
    const size_t at = static_cast<size_t>(t) * e;
    cpu::AddRow(isa_, hidden(rank) + at, projected_.data() + at, e);
  }
}

}  // namespace fewbit
