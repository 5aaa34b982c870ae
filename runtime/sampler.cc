#include "runtime/sampler.h"

#include <atomic>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/row_sampler.h"
#include "scheduler/check.h"

namespace fewbit {

struct Sampler::Impl {
  void RunRows(int rank, Share share) {
    for (int r = share.begin; r < share.end; ++r) {
      const float* row = logits + static_cast<size_t>(r) * vocab_size;
      if (samplers[rank].Sample(rows[r], row, &tokens[r])) continue;
      int bad = bad_row.load(std::memory_order_relaxed);
      while (r < bad && !bad_row.compare_exchange_weak(bad, r, std::memory_order_relaxed)) {
      }
    }
  }

  int32_t vocab_size = 0;
  ThreadTeam* team = nullptr;
  std::vector<RowSampler> samplers;  // [ranks]
  std::span<const SampleRow> rows;
  const float* logits = nullptr;
  std::span<SampledToken> tokens;
  std::atomic<int> bad_row{0};  // the first bad row of a call; the number of rows if there is none
};

Sampler::Sampler(int32_t vocab_size, ThreadTeam* team, cpu::Isa isa)
    : impl_(std::make_unique<Impl>()) {
  impl_->vocab_size = vocab_size;
  impl_->team = team;
  for (int rank = 0; rank < team->size(); ++rank) impl_->samplers.emplace_back(vocab_size, isa);
}

Sampler::~Sampler() = default;

absl::Status Sampler::Sample(std::span<const SampleRow> rows, const float* logits,
                             std::span<SampledToken> tokens) {
  FEWBIT_CHECK(rows.size() == tokens.size())
      << rows.size() << " rows, " << tokens.size() << " tokens";
  Impl* impl = impl_.get();
  impl->rows = rows;
  impl->logits = logits;
  impl->tokens = tokens;
  const int none = static_cast<int>(rows.size());
  impl->bad_row.store(none, std::memory_order_relaxed);
  if (none <= 1) {
    impl->RunRows(0, {0, none});  // not worth waking anybody
  } else {
    impl->team->Run([impl](int rank) {
      const int count = static_cast<int>(impl->rows.size());
      impl->RunRows(rank, ShareOf(count, 1, rank, impl->team->size()));
    });
  }
  const int bad = impl->bad_row.load(std::memory_order_relaxed);
  if (bad == none) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the logits of request ", ToInt(rows[bad].request->id),
                                          " at position ", rows[bad].position,
                                          " are not finite: the model's weights hold NaN or "
                                          "infinite values, or its activations overflow"));
}

}  // namespace fewbit
