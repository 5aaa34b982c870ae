#include "runtime/sampler.h"

#include <vector>

#include "runtime/row_sampler.h"
#include "scheduler/check.h"

namespace fewbit {

struct Sampler::Impl {
  void RunRows(int rank, Share share) {
    for (int r = share.begin; r < share.end; ++r) {
      const float* row = logits + static_cast<size_t>(r) * vocab_size;
      if (!samplers[rank].Sample(rows[r], row, &tokens[r])) tokens[r].token = kNoToken;
    }
  }

  int32_t vocab_size = 0;
  ThreadTeam* team = nullptr;
  std::vector<RowSampler> samplers;  // [ranks]
  std::span<const SampleRow> rows;
  const float* logits = nullptr;
  std::span<SampledToken> tokens;
};

Sampler::Sampler(int32_t vocab_size, ThreadTeam* team, cpu::Isa isa)
    : impl_(std::make_unique<Impl>()) {
  impl_->vocab_size = vocab_size;
  impl_->team = team;
  for (int rank = 0; rank < team->size(); ++rank) impl_->samplers.emplace_back(vocab_size, isa);
}

Sampler::~Sampler() = default;

void Sampler::Sample(std::span<const SampleRow> rows, const float* logits,
                     std::span<SampledToken> tokens) {
  FEWBIT_CHECK(rows.size() == tokens.size())
      << rows.size() << " rows, " << tokens.size() << " tokens";
  Impl* impl = impl_.get();
  impl->rows = rows;
  impl->logits = logits;
  impl->tokens = tokens;
  const int count = static_cast<int>(rows.size());
  if (count <= 1) {
    impl->RunRows(0, {0, count});  // not worth waking anybody
    return;
  }
  impl->team->Run([impl](int rank) {
    const int count = static_cast<int>(impl->rows.size());
    impl->RunRows(rank, ShareOf(count, 1, rank, impl->team->size()));
  });
}

}  // namespace fewbit
