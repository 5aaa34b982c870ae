// One sequence through the decoder that serves, chunk by chunk, with the logits of every token:
// what evaluation needs of a model. The KV cache is float32, so that what is measured is the
// weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/models/decoder.h"
#include "runtime/models/model.h"
#include "runtime/thread_team.h"
#include "scheduler/ids.h"

namespace fewbit {

// Thread rule: one caller at a time, which is not inside team->Run.
class SequenceRunner {
 public:
  // Room for a sequence of `max_tokens`. `model` and `team` outlive the object. INVALID_ARGUMENT:
  // max_tokens beyond the model's context; RESOURCE_EXHAUSTED: no memory for the KV cache.
  static absl::StatusOr<std::unique_ptr<SequenceRunner>> Create(const Model* model,
                                                                ThreadTeam* team, int max_tokens);

  // Forgets the sequence.
  void Reset() { position_ = 0; }

  // Appends `ids` and returns their logits [ids, V], valid until the next call. REQUIRES: 1 to
  // kMaxStep ids, all in the vocabulary, max_tokens kept. DATA_LOSS: a logit that is not
  // finite, so weights that are not; no number measured on such a model counts.
  absl::StatusOr<std::span<const float>> Step(std::span<const TokenId> ids);

  int position() const { return position_; }
  const Model& model() const { return *model_; }

  static constexpr int kMaxStep = 256;  // tokens; bounds the memory of the logits

 private:
  SequenceRunner(const Model* model, ThreadTeam* team, int max_tokens,
                 std::unique_ptr<KvCache> cache);

  const Model* const model_;
  const int max_tokens_;
  std::unique_ptr<KvCache> cache_;
  Decoder decoder_;
  ForwardBatch batch_;
  std::vector<int32_t> rows_;
  std::vector<float> logits_;
  int position_ = 0;
};

}  // namespace fewbit
