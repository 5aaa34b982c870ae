// Rows of logits into tokens. Order of operations on a row:
//   logits -> + logit_bias -> penalties (repetition over prompt and output, then presence and
//   frequency over output)
//          -> stop ids masked while min_new_tokens is not reached -> greedy if temperature is 0,
//          else:
//   / temperature -> top_k -> top_p -> min_p -> draw
// top_k keeps the k largest. top_p keeps the shortest run of most likely tokens whose share of what
// top_k left is at least p (one token at least). min_p then drops tokens less likely than min_p
// times the most likely one. Equal logits go by id, lowest first, everywhere. The draw is Philox
// (philox.h) keyed by the request's seed with the token's position as counter, so a token depends
// on its request only: not on the batch, the thread or the machine's instruction set.
//
// logprob, rank and top come from the raw logits, before any of this. They are filled where the
// request asks (want_logprobs, num_top_logprobs > 0) and for kScorePrompt rows, else 0.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/cpu/linear.h"
#include "runtime/batch.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Thread rule: one caller at a time.
class Sampler {
 public:
  Sampler(int32_t vocab_size, ThreadTeam* team, cpu::Isa isa);
  ~Sampler();

  // logits [R, V] belong to `rows` [R]; tokens [R] is filled. Rows are shared out over the team. No
  // allocation. A row with NaN or infinite logits gets kNoToken: its request fails, the others of
  // the step go on.
  void Sample(std::span<const SampleRow> rows, const float* logits, std::span<SampledToken> tokens);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
