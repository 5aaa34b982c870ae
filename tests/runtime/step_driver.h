// Drives an Executor the way the engine does, for tests: ForwardBatches out of plain requests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "runtime/batch.h"
#include "runtime/executor.h"

namespace fewbit::testing {

// The least of an engine: sequences that prefill in chunks and then decode, all in the same steps,
// each with a slot and blocks of its own.
class StepDriver {
 public:
  explicit StepDriver(Executor* executor) : executor_(executor) {
    const ExecutorInfo& info = executor->info();
    stride_ = (info.max_context + info.block_tokens - 1) / info.block_tokens;
    batch_.token_ids.reserve(info.max_step_tokens);
    batch_.positions.reserve(info.max_step_tokens);
    batch_.q_start.reserve(info.max_sequences + 1);
    batch_.kv_len.reserve(info.max_sequences);
    batch_.slots.reserve(info.max_sequences);
    batch_.block_table.reserve(info.max_sequences * stride_);
    batch_.samples.reserve(info.max_step_tokens);
    result_.tokens.reserve(info.max_step_tokens);
  }

  struct Sequence {
    Request request;
    std::vector<TokenId> tokens;
    int computed = 0;
    std::vector<SampledToken> scored, sampled;
  };

  int Add(Request request) {
    Sequence s;
    s.tokens = request.prompt;
    s.tokens.reserve(executor_->info().max_context);
    s.scored.reserve(request.prompt.size());
    s.sampled.reserve(request.max_new_tokens);
    s.request = std::move(request);
    sequences_.push_back(std::move(s));
    return static_cast<int>(sequences_.size()) - 1;
  }
  Sequence& sequence(int i) { return sequences_[i]; }

  bool Done() const {
    for (const Sequence& s : sequences_) {
      if (!Done(s)) return false;
    }
    return true;
  }

  // One step with up to `chunk` tokens of every unfinished sequence.
  absl::Status Step(int chunk) {
    Build(chunk);
    const StepHandle handle = executor_->Launch(batch_);
    if (absl::Status status = executor_->Collect(handle, &result_); !status.ok()) return status;
    size_t r = 0;
    for (const int i : stepped_) {
      Sequence& s = sequences_[i];
      for (; r < batch_.samples.size() && batch_.samples[r].request == &s.request; ++r) {
        if (batch_.samples[r].kind == SampleRow::Kind::kScorePrompt) {
          s.scored.push_back(result_.tokens[r]);
        } else {
          s.sampled.push_back(result_.tokens[r]);
          s.tokens.push_back(result_.tokens[r].token);
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  static bool Done(const Sequence& s) {
    return static_cast<int>(s.sampled.size()) >= s.request.max_new_tokens;
  }

  void Build(int chunk) {
    batch_.token_ids.clear();
    batch_.positions.clear();
    batch_.q_start.assign(1, 0);
    batch_.kv_len.clear();
    batch_.slots.clear();
    batch_.block_table.clear();
    batch_.samples.clear();
    batch_.block_table_stride = stride_;
    stepped_.clear();
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Sequence& s = sequences_[i];
      if (Done(s)) continue;
      stepped_.push_back(static_cast<int>(i));
      const int end = std::min<int>(s.computed + chunk, s.tokens.size());
      for (int t = s.computed; t < end; ++t) AddToken(s, t);
      s.computed = end;
      batch_.q_start.push_back(static_cast<int32_t>(batch_.token_ids.size()));
      batch_.kv_len.push_back(end);
      batch_.slots.push_back(static_cast<int32_t>(i));
      for (int b = 0; b < stride_; ++b) {
        batch_.block_table.push_back(BlockId(static_cast<int32_t>(i) * stride_ + b));
      }
    }
  }

  void AddToken(const Sequence& s, int t) {
    SampleRow row;
    row.token_row = static_cast<int32_t>(batch_.token_ids.size());
    row.position = t + 1;
    row.slot = static_cast<int32_t>(&s - sequences_.data());
    row.request = &s.request;
    row.context = s.tokens;
    row.num_prompt_tokens = static_cast<int32_t>(s.request.prompt.size());
    if (t + 1 == static_cast<int>(s.tokens.size())) {
      batch_.samples.push_back(row);
    } else if (s.request.want_prompt_logprobs) {
      row.kind = SampleRow::Kind::kScorePrompt;
      batch_.samples.push_back(row);
    }
    batch_.token_ids.push_back(s.tokens[t]);
    batch_.positions.push_back(t);
  }

  Executor* const executor_;
  int32_t stride_ = 0;
  ForwardBatch batch_;
  StepResult result_;
  std::vector<int> stepped_;
  std::vector<Sequence> sequences_;
};

}  // namespace fewbit::testing
