// One row of logits into one token: the work of Sampler, with the scratch that one thread needs for
// it.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/ops.h"
#include "runtime/aligned_buffer.h"
#include "runtime/batch.h"

namespace fewbit {

// Thread rule: one thread.
class RowSampler {
 public:
  RowSampler(int32_t vocab_size, cpu::Isa isa);

  // False if the row has NaN or infinite logits; `token` is not filled then.
  bool Sample(const SampleRow& row, const float* logits, SampledToken* token);

 private:
  struct Candidate {
    float logit = 0.0f;
    int32_t id = 0;
  };

  // Candidates by falling logit, equal ones by rising id.
  static bool Better(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }

  const float* Adjust(const SampleRow& row, const float* logits);
  void Penalize(const SampleRow& row, float* logits);
  int32_t Draw(const SamplingParams& params, double uniform, const float* logits, float max);
  int32_t DrawFromAll(double uniform, const float* logits, float max, float factor, float min_p);
  int32_t DrawFromTop(const SamplingParams& params, double uniform, const float* logits, float max,
                      float factor);
  // The k best of the row to the front of candidates_, in no order.
  void SelectTop(const float* logits, int k);
  // How many of the first n candidates, the best first, weigh at least `needed` together (n if all
  // are needed, never 0); these move to the front, in no order.
  int NarrowToMass(int n, double needed, float max, float factor);
  // Every token that is `last` or better to candidates_, by id; returns how many. Needs the
  // block_max_ of this row.
  int CollectNoWorse(const float* logits, const Candidate& last);
  // weights_ = exp((logit - max) * factor) of candidates [begin, end); returns their sum.
  double WeighCandidates(int begin, int end, float max, float factor);
  void Describe(const SampleRow& row, const float* logits, const cpu::RowStats& stats,
                SampledToken* token);

  const int32_t vocab_size_;
  const cpu::Isa isa_;
  const int num_blocks_;
  AlignedBuffer<float> adjusted_;        // [V]
  AlignedBuffer<float> weights_;         // [V]
  AlignedBuffer<float> block_max_;       // [2, num_blocks_]: in order, and to be partitioned
  AlignedBuffer<double> block_sums_;     // [num_blocks_]
  AlignedBuffer<int32_t> counts_;        // [V], 0 between rows
  AlignedBuffer<Candidate> candidates_;  // [V]
};

}  // namespace fewbit
