#include "runtime/cpu_executor.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/aligned_buffer.h"
#include "runtime/executor_limits.h"
#include "runtime/kv_cache.h"
#include "runtime/models/decoder.h"
#include "runtime/sampler.h"
#include "runtime/thread_team.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kMaxThreads = 1024;
// Logit rows that are in memory together; a step that wants more (prompt logprobs) takes turns.
constexpr int32_t kLogitRows = 64;

absl::Status CheckOptions(const ModelSpec& spec, const CpuExecutorOptions& o) {
  if (o.threads < 0 || o.threads > kMaxThreads) {
    return InvalidOption("threads", o.threads, absl::StrCat("0 (automatic) to ", kMaxThreads));
  }
  absl::Status status =
      CheckExecutorLimits(spec, o.max_sequences, o.max_step_tokens, o.max_context, o.num_blocks);
  if (!status.ok()) return status;
  if (o.num_blocks == 0 && o.kv_bytes < 1)
    return InvalidOption("kv_bytes", o.kv_bytes, "at least 1");
  if (o.isa && !cpu::IsaSupported(*o.isa)) {
    return absl::InvalidArgumentError(
        absl::StrCat("isa is ", cpu::IsaName(*o.isa), ": this machine does not have it"));
  }
  return absl::OkStatus();
}

// KV blocks by the options, or why they are too few.
absl::StatusOr<int32_t> NumBlocks(const CpuExecutorOptions& o, const ModelSpec& spec,
                                  int32_t max_context, size_t block_bytes) {
  const int32_t per_sequence = kv::BlocksFor(max_context);
  const int64_t bytes = static_cast<int64_t>(block_bytes) * spec.num_layers;
  const int64_t wanted = static_cast<int64_t>(per_sequence) * o.max_sequences;
  const int64_t blocks = o.num_blocks > 0 ? o.num_blocks : std::min(o.kv_bytes / bytes, wanted);
  if (blocks >= per_sequence) {
    return static_cast<int32_t>(std::min<int64_t>(blocks, INT32_MAX));
  }
  const std::string needs =
      absl::StrCat("one sequence of ", max_context, " tokens needs ", per_sequence, " blocks of ",
                   bytes, " bytes = ", per_sequence * bytes, " bytes");
  if (o.num_blocks > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_blocks is ", o.num_blocks, ": too few, ", needs));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a KV cache of ", o.kv_bytes, " bytes is too small: ", needs));
}

}  // namespace

struct CpuExecutor::Impl {
  Impl(const Model* model, const CpuExecutorOptions& options, cpu::Isa isa, int32_t max_context,
       std::unique_ptr<KvCache> cache)
      : team(options.threads),
        kv(std::move(cache)),
        logit_rows(std::min(kLogitRows, options.max_step_tokens)),
        decoder(model, &team, isa,
                {.max_step_tokens = options.max_step_tokens,
                 .max_logit_rows = logit_rows,
                 .max_context = max_context}),
        sampler(model->spec.vocab_size, &team, isa),
        logits(static_cast<size_t>(logit_rows) * model->spec.vocab_size) {
    rows.reserve(options.max_step_tokens);
    tokens.resize(options.max_step_tokens);
    info.device = absl::StrCat("cpu: ", cpu::IsaName(isa), ", ", team.size(),
                               team.size() == 1 ? " thread" : " threads");
    info.vocab_size = model->spec.vocab_size;
    info.max_context = max_context;
    info.max_step_tokens = options.max_step_tokens;
    info.max_sequences = options.max_sequences;
    info.block_tokens = kv::kBlockTokens;
    info.num_blocks = kv->num_blocks();
    info.kv_bytes = kv->bytes();
    info.weight_bytes = model->weight_bytes;
  }

  void Step(const ForwardBatch& batch) {
    rows.clear();
    for (const SampleRow& sample : batch.samples) {
      FEWBIT_CHECK(rows.empty() || rows.back() < sample.token_row) << "samples out of order";
      rows.push_back(sample.token_row);
    }
    const int total = static_cast<int>(rows.size());
    if (total <= logit_rows) {
      decoder.Forward(batch, kv.get(), rows, logits.data());
      SampleRows(batch, 0, total);
      return;
    }
    decoder.RunTokens(batch, kv.get(), rows);
    for (int begin = 0; begin < total; begin += logit_rows) {
      const int end = std::min(begin + logit_rows, total);
      decoder.Logits(begin, end, logits.data());
      SampleRows(batch, begin, end);
    }
  }

  void SampleRows(const ForwardBatch& batch, int begin, int end) {
    if (begin == end) return;
    const auto samples = std::span(batch.samples).subspan(begin, end - begin);
    sampler.Sample(samples, logits.data(), std::span(tokens).subspan(begin, end - begin));
  }

  ExecutorInfo info;
  ThreadTeam team;
  std::unique_ptr<KvCache> kv;
  const int32_t logit_rows;
  Decoder decoder;
  Sampler sampler;
  AlignedBuffer<float> logits;       // [logit_rows, V]
  std::vector<int32_t> rows;         // [R] token rows of the step's samples
  std::vector<SampledToken> tokens;  // [max_step_tokens]
  int num_tokens = 0;
  uint64_t steps = 0;
  bool launched = false;
};

CpuExecutor::CpuExecutor() = default;
CpuExecutor::~CpuExecutor() = default;

absl::StatusOr<std::unique_ptr<CpuExecutor>> CpuExecutor::Create(
    const Model* model, const CpuExecutorOptions& options) {
  const ModelSpec& spec = model->spec;
  if (absl::Status status = CheckOptions(spec, options); !status.ok()) return status;
  const int32_t max_context = options.max_context > 0 ? options.max_context : spec.max_context;
  const kv::BlockShape shape{options.kv_type, spec.num_kv_heads, spec.head_dim};
  const auto blocks = NumBlocks(options, spec, max_context, shape.block_bytes());
  if (!blocks.ok()) return blocks.status();
  auto cache = KvCache::Create(shape, spec.num_layers, *blocks);
  if (!cache.ok()) return cache.status();
  std::unique_ptr<CpuExecutor> executor(new CpuExecutor());
  executor->impl_ = std::make_unique<Impl>(model, options, options.isa.value_or(cpu::BestIsa()),
                                           max_context, *std::move(cache));
  return executor;
}

const ExecutorInfo& CpuExecutor::info() const { return impl_->info; }

StepHandle CpuExecutor::Launch(const ForwardBatch& batch) {
  Impl& impl = *impl_;
  FEWBIT_CHECK(!impl.launched) << "the previous step was not collected";
  FEWBIT_CHECK(static_cast<int32_t>(batch.kv_len.size()) <= impl.info.max_sequences)
      << batch.kv_len.size() << " sequences for at most " << impl.info.max_sequences;
  FEWBIT_CHECK(batch.samples.size() <= impl.tokens.size())
      << batch.samples.size() << " samples for at most " << impl.tokens.size();
  for (const int32_t length : batch.kv_len) {
    FEWBIT_CHECK(length <= impl.info.max_context)
        << "a sequence of " << length << " tokens for at most " << impl.info.max_context;
  }
  for (const TokenId id : batch.token_ids) {
    FEWBIT_CHECK(ToInt(id) >= 0 && ToInt(id) < impl.info.vocab_size)
        << "token " << ToInt(id) << " of a vocabulary of " << impl.info.vocab_size;
  }
  impl.launched = true;
  impl.num_tokens = static_cast<int>(batch.samples.size());
  impl.Step(batch);
  return StepHandle(++impl.steps);
}

absl::Status CpuExecutor::Collect(StepHandle handle, StepResult* result) {
  Impl& impl = *impl_;
  FEWBIT_CHECK(impl.launched && handle == StepHandle(impl.steps)) << "no such step is running";
  impl.launched = false;
  result->tokens.assign(impl.tokens.begin(), impl.tokens.begin() + impl.num_tokens);
  return absl::OkStatus();
}

}  // namespace fewbit
