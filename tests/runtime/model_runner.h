// Drives a Decoder the way the engine does, for tests: sequences with block tables out of one pool,
// any mix of chunks in a step.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "runtime/batch.h"
#include "runtime/kv_cache.h"
#include "runtime/models/decoder.h"
#include "runtime/models/model.h"
#include "runtime/thread_team.h"

namespace fewbit::testing {

class ModelRunner {
 public:
  struct Options {
    int threads = 2;
    cpu::Isa isa = cpu::BestIsa();
    kv::KvType kv_type = kv::KvType::kF32;
    int max_tokens = 256;
    int num_blocks = 64;
  };

  explicit ModelRunner(const Model& model) : ModelRunner(model, Options{}) {}
  ModelRunner(const Model& model, const Options& options)
      : model_(model),
        team_(options.threads),
        decoder_(&model, &team_, options.isa,
                 {.max_step_tokens = options.max_tokens, .max_logit_rows = options.max_tokens}),
        kv_(KvCache::Create({options.kv_type, model.spec.num_kv_heads, model.spec.head_dim},
                            model.spec.num_layers, options.num_blocks)
                .value()) {
    for (int b = options.num_blocks; b-- > 0;) free_.push_back(BlockId(b));
  }

  struct Sequence {
    std::vector<TokenId> tokens;  // known
    int computed = 0;
    std::vector<BlockId> blocks;
    std::vector<float> logits;  // [computed, V], in order
  };

  int Add(std::span<const int32_t> prompt) {
    sequences_.emplace_back();
    for (const int32_t id : prompt) sequences_.back().tokens.push_back(TokenId(id));
    return static_cast<int>(sequences_.size()) - 1;
  }
  Sequence& sequence(int i) { return sequences_[i]; }

  // What one sequence does in a step: up to `tokens` of its uncomputed tokens.
  struct Part {
    int sequence = 0;
    int tokens = 0;
  };

  // One step. The logits of every token are kept, or of each sequence's last one only.
  void Step(const std::vector<Part>& parts, bool last_only = false) {
    ForwardBatch batch;
    batch.q_start = {0};
    batch.block_table_stride = 1;
    std::vector<int32_t> rows;
    for (const Part& part : parts) {
      Sequence& s = sequences_[part.sequence];
      const int count = std::min<int>(part.tokens, s.tokens.size() - s.computed);
      for (int t = s.computed; t < s.computed + count; ++t) {
        if (!last_only || t + 1 == s.computed + count) {
          rows.push_back(static_cast<int32_t>(batch.token_ids.size()));
        }
        batch.token_ids.push_back(s.tokens[t]);
        batch.positions.push_back(t);
      }
      batch.q_start.push_back(batch.q_start.back() + count);
      batch.kv_len.push_back(s.computed + count);
      while (static_cast<int>(s.blocks.size()) * kv::kBlockTokens < s.computed + count) {
        s.blocks.push_back(free_.back());
        free_.pop_back();
      }
      batch.block_table_stride =
          std::max(batch.block_table_stride, static_cast<int>(s.blocks.size()));
    }
    for (const Part& part : parts) {
      std::vector<BlockId> row = sequences_[part.sequence].blocks;
      row.resize(batch.block_table_stride, BlockId(-1));
      batch.block_table.insert(batch.block_table.end(), row.begin(), row.end());
    }
    const size_t v = model_.spec.vocab_size;
    std::vector<float> logits(rows.size() * v);
    decoder_.Forward(batch, kv_.get(), rows, logits.data());
    auto from = logits.begin();
    for (size_t k = 0; k < parts.size(); ++k) {
      Sequence& s = sequences_[parts[k].sequence];
      const int count = batch.q_start[k + 1] - batch.q_start[k];
      const auto to = from + (last_only ? 1 : count) * v;
      s.logits.insert(s.logits.end(), from, to);
      s.computed += count;
      from = to;
    }
  }

  // Runs sequence i's prompt in chunks, then adds `count` greedy tokens one by one.
  std::vector<int32_t> Greedy(int i, int chunk, int count) {
    std::vector<int32_t> ids;
    while (sequences_[i].computed < static_cast<int>(sequences_[i].tokens.size())) {
      Step({{i, chunk}});
    }
    while (static_cast<int>(ids.size()) < count) {
      ids.push_back(Best(i));
      sequences_[i].tokens.push_back(TokenId(ids.back()));
      if (static_cast<int>(ids.size()) < count) Step({{i, chunk}});
    }
    return ids;
  }

  // The token with the largest logit after the last computed one.
  int32_t Best(int i) const {
    const Sequence& s = sequences_[i];
    const auto row = s.logits.end() - model_.spec.vocab_size;
    return static_cast<int32_t>(std::max_element(row, s.logits.end()) - row);
  }

  Decoder& decoder() { return decoder_; }
  KvCache* kv() { return kv_.get(); }

 private:
  const Model& model_;
  ThreadTeam team_;
  Decoder decoder_;
  std::unique_ptr<KvCache> kv_;
  std::vector<BlockId> free_;
  std::vector<Sequence> sequences_;
};

}  // namespace fewbit::testing
