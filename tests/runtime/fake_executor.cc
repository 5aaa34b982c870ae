#include "tests/runtime/fake_executor.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

// The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool IsStop(const Request& request, TokenId token) {
  const std::vector<TokenId>& stops = request.stop_token_ids;
  return std::find(stops.begin(), stops.end(), token) != stops.end();
}

}  // namespace

FakeExecutor::FakeExecutor(FakeExecutorOptions options)
    : options_(std::move(options)), closed_(options_.gate_closed) {
  const ExecutorInfo& info = options_.info;
  cache_.assign(static_cast<size_t>(info.num_blocks) * info.block_tokens, TokenId{-1});
  outputs_.resize(info.max_sequences);
  for (const TokenId token : options_.alphabet) FEWBIT_CHECK_LT(ToInt(token), info.vocab_size);
  if (info.max_steps_in_flight > 1) device_ = std::thread([this] { RunSteps(); });
}

FakeExecutor::~FakeExecutor() {
  if (!device_.joinable()) return;
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  device_.join();
}

FakeExecutorOptions FakeExecutor::OptionsFor(const SchedulerLimits& limits) {
  FakeExecutorOptions options;
  options.info.vocab_size = limits.vocab_size;
  options.info.max_context = limits.max_context;
  options.info.max_step_tokens = limits.step_token_budget;
  options.info.max_sequences = limits.max_running;
  options.info.block_tokens = limits.block_tokens;
  options.info.num_blocks = limits.num_blocks;
  options.info.max_steps_in_flight = limits.max_steps_in_flight;
  return options;
}

TokenId FakeExecutor::TokenAt(uint64_t seed, int32_t position) const {
  const uint64_t random = Mix(seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(position));
  if (options_.alphabet.empty()) {
    return TokenId{static_cast<int32_t>(random % options_.info.vocab_size)};
  }
  return options_.alphabet[random % options_.alphabet.size()];
}

void FakeExecutor::CloseGate() {
  MutexLock lock(&mu_);
  closed_ = true;
}

void FakeExecutor::OpenGate() {
  MutexLock lock(&mu_);
  closed_ = false;
  changed_.NotifyAll();
}

void FakeExecutor::AllowSteps(int32_t steps) {
  MutexLock lock(&mu_);
  allowed_ += steps;
  held_ = false;  // so that a WaitUntilHeld that follows waits for the next step
  changed_.NotifyAll();
}

void FakeExecutor::WaitUntilHeld() {
  MutexLock lock(&mu_);
  while (!held_) changed_.Wait(&mu_);
}

void FakeExecutor::WaitUntilInFlight(int32_t steps) {
  MutexLock lock(&mu_);
  while (static_cast<int32_t>(launched_.size()) != steps) changed_.Wait(&mu_);
}

void FakeExecutor::FailNextStep(absl::Status error) {
  MutexLock lock(&mu_);
  next_error_ = std::move(error);
}

void FakeExecutor::FailRowsOf(RequestId id) {
  MutexLock lock(&mu_);
  failing_.insert(ToInt(id));
}

uint64_t FakeExecutor::steps() const {
  MutexLock lock(&mu_);
  return steps_;
}

int32_t FakeExecutor::max_sequences_seen() const {
  MutexLock lock(&mu_);
  return max_sequences_seen_;
}

int32_t FakeExecutor::max_tokens_seen() const {
  MutexLock lock(&mu_);
  return max_tokens_seen_;
}

int32_t FakeExecutor::max_steps_in_flight_seen() const {
  MutexLock lock(&mu_);
  return max_steps_in_flight_seen_;
}

StepHandle FakeExecutor::Launch(const ForwardBatch& batch) {
  VerifyShapes(batch);
  MutexLock lock(&mu_);
  for (const Step& step : launched_) FEWBIT_CHECK(step.batch != &batch) << "batch in flight";
  Step& step = launched_.emplace_back();
  step.batch = &batch;
  step.handle = StepHandle{++next_handle_};
  step.launched_at = absl::Now();
  const int32_t in_flight = static_cast<int32_t>(launched_.size());
  FEWBIT_CHECK_LE(in_flight, options_.info.max_steps_in_flight) << "Launch before Collect";
  max_steps_in_flight_seen_ = std::max(max_steps_in_flight_seen_, in_flight);
  changed_.NotifyAll();
  return step.handle;
}

// The device's thread. A deque keeps its elements in place while others come and go at the ends.
void FakeExecutor::RunSteps() {
  while (true) {
    Step* next = nullptr;
    {
      MutexLock lock(&mu_);
      const auto waits = [](const Step& step) { return !step.done; };
      while (!stopping_ && std::none_of(launched_.begin(), launched_.end(), waits)) {
        changed_.Wait(&mu_);
      }
      if (stopping_) return;
      next = &*std::find_if(launched_.begin(), launched_.end(), waits);
    }
    RunStep(next);
    MutexLock lock(&mu_);
    next->done = true;
    changed_.NotifyAll();
  }
}

void FakeExecutor::RunStep(Step* step) {
  const ForwardBatch& batch = *step->batch;
  step->status = PassGate(*step);
  int32_t s = -1;
  for (const SampleRow& row : batch.samples) {
    while (s < 0 || batch.q_start[s + 1] <= row.token_row) VerifySequence(batch, ++s);
    VerifySample(batch, s, row);
    step->result.tokens.push_back(Draw(row));
  }
  const int32_t num_sequences = static_cast<int32_t>(batch.slots.size());
  while (++s < num_sequences) VerifySequence(batch, s);
  MutexLock lock(&mu_);
  for (size_t i = 0; !failing_.empty() && i < batch.samples.size(); ++i) {
    const RequestId id = batch.samples[i].request->id;
    if (failing_.contains(ToInt(id))) step->result.tokens[i].token = kNoToken;
  }
}

void FakeExecutor::VerifyShapes(const ForwardBatch& batch) const {
  const ExecutorInfo& info = options_.info;
  const size_t num_sequences = batch.slots.size();
  FEWBIT_CHECK_GT(num_sequences, 0u);
  FEWBIT_CHECK_LE(num_sequences, static_cast<size_t>(info.max_sequences));
  FEWBIT_CHECK_LE(batch.token_ids.size(), static_cast<size_t>(info.max_step_tokens));
  FEWBIT_CHECK_EQ(batch.positions.size(), batch.token_ids.size());
  FEWBIT_CHECK_EQ(batch.q_start.size(), num_sequences + 1);
  FEWBIT_CHECK_EQ(batch.kv_len.size(), num_sequences);
  FEWBIT_CHECK_EQ(batch.block_table.size(), num_sequences * batch.block_table_stride);
  FEWBIT_CHECK_EQ(batch.q_start.front(), 0);
  FEWBIT_CHECK_EQ(static_cast<size_t>(batch.q_start.back()), batch.token_ids.size());
  int32_t last_row = -1;
  for (const SampleRow& row : batch.samples) {
    FEWBIT_CHECK_GT(row.token_row, last_row);
    FEWBIT_CHECK_LT(static_cast<size_t>(row.token_row), batch.token_ids.size());
    last_row = row.token_row;
  }
  std::vector<bool> seen(info.max_sequences);
  for (const int32_t slot : batch.slots) {
    FEWBIT_CHECK(slot >= 0 && slot < info.max_sequences && !seen[slot]) << "slot " << slot;
    seen[slot] = true;
  }
}

// Checks one sequence's tokens and blocks, and writes its tokens into the emulated cache.
void FakeExecutor::VerifySequence(const ForwardBatch& batch, int32_t s) {
  const ExecutorInfo& info = options_.info;
  const int32_t first_row = batch.q_start[s];
  const int32_t num_tokens = batch.q_start[s + 1] - first_row;
  const int32_t first_position = batch.kv_len[s] - num_tokens;
  FEWBIT_CHECK_GT(num_tokens, 0);
  FEWBIT_CHECK_GE(first_position, 0);
  FEWBIT_CHECK_LE(batch.kv_len[s], info.max_context);
  const int32_t used = (batch.kv_len[s] + info.block_tokens - 1) / info.block_tokens;
  for (int32_t i = 0; i < batch.block_table_stride; ++i) {
    const int32_t block = ToInt(batch.block_table[s * batch.block_table_stride + i]);
    FEWBIT_CHECK(i < used ? block >= 0 && block < info.num_blocks : block == -1)
        << "sequence " << s << " block " << i << " is " << block;
  }
  for (int32_t i = 0; i < num_tokens; ++i) {
    TokenId token = batch.token_ids[first_row + i];
    FEWBIT_CHECK_EQ(batch.positions[first_row + i], first_position + i);
    if (token == kLastSampled) {
      FEWBIT_CHECK(num_tokens == 1 && info.max_steps_in_flight > 1) << "kLastSampled";
      token = outputs_[batch.slots[s]].back();
    }
    FEWBIT_CHECK(ToInt(token) >= 0 && ToInt(token) < info.vocab_size) << ToInt(token);
    cache_[CacheIndex(batch, s, first_position + i)] = token;
  }
}

void FakeExecutor::VerifySample(const ForwardBatch& batch, int32_t s, const SampleRow& row) const {
  FEWBIT_CHECK_EQ(row.slot, batch.slots[s]);
  FEWBIT_CHECK_EQ(row.position, batch.positions[row.token_row] + 1);
  FEWBIT_CHECK_EQ(static_cast<size_t>(row.num_prompt_tokens), row.request->prompt.size());
  const int32_t known = static_cast<int32_t>(row.context.size());
  if (row.kind == SampleRow::Kind::kSample) {
    FEWBIT_CHECK_LE(known, row.position);
    FEWBIT_CHECK_LT(row.position - known, options_.info.max_steps_in_flight);
    FEWBIT_CHECK_EQ(known < row.position, batch.token_ids[row.token_row] == kLastSampled);
    FEWBIT_CHECK_EQ(row.token_row + 1, batch.q_start[s + 1]);
  } else {
    FEWBIT_CHECK_LT(row.position, row.num_prompt_tokens);
  }
  if (options_.verify_kv) VerifyContext(batch, s, row);
}

// What the row's sequence reads is its own context: what the host knows of it, and what was drawn
// here where the host does not know it yet.
void FakeExecutor::VerifyContext(const ForwardBatch& batch, int32_t s, const SampleRow& row) const {
  const int32_t known = static_cast<int32_t>(row.context.size());
  for (int32_t position = 0; position < row.position; ++position) {
    const TokenId own = position < known ? row.context[position]
                                         : outputs_[row.slot][position - row.num_prompt_tokens];
    FEWBIT_CHECK_EQ(cache_[CacheIndex(batch, s, position)], own)
        << "request " << ToInt(row.request->id) << " reads a foreign token at " << position;
  }
}

size_t FakeExecutor::CacheIndex(const ForwardBatch& batch, int32_t s, int32_t position) const {
  const int32_t block_tokens = options_.info.block_tokens;
  const BlockId block = batch.block_table[s * batch.block_table_stride + position / block_tokens];
  return static_cast<size_t>(ToInt(block)) * block_tokens + position % block_tokens;
}

SampledToken FakeExecutor::Draw(const SampleRow& row) {
  const int32_t vocab_size = options_.info.vocab_size;
  SampledToken drawn;
  if (row.kind == SampleRow::Kind::kScorePrompt) {
    drawn.token = row.context[row.position];
  } else if (options_.script) {
    drawn.token = options_.script(row);
  } else {
    drawn.token = TokenAt(row.request->sampling.seed, row.position);
    for (int32_t i = 1; row.forbid_stop && IsStop(*row.request, drawn.token); ++i) {
      FEWBIT_CHECK_LT(i, 1000) << "every token of the alphabet is a stop token";
      drawn.token = TokenAt(row.request->sampling.seed + i, row.position);
    }
  }
  if (row.kind == SampleRow::Kind::kSample) {
    std::vector<TokenId>& outputs = outputs_[row.slot];
    if (row.starts_request()) outputs.clear();
    FEWBIT_CHECK_EQ(static_cast<size_t>(row.position - row.num_prompt_tokens), outputs.size());
    outputs.push_back(drawn.token);
  }
  drawn.logprob = -0.125f * static_cast<float>(ToInt(drawn.token) % 8);
  drawn.rank = 1;
  drawn.num_top = std::min(row.request->num_top_logprobs, vocab_size);
  for (int32_t i = 0; i < drawn.num_top; ++i) {
    drawn.top[i].token = TokenId{(ToInt(drawn.token) + i) % vocab_size};
    drawn.top[i].logprob = drawn.logprob - static_cast<float>(i);
  }
  return drawn;
}

absl::Status FakeExecutor::PassGate(const Step& step) {
  MutexLock lock(&mu_);
  const absl::Time end = std::max(step.launched_at, last_end_) + options_.step_time;
  while (absl::Now() < end) changed_.WaitUntil(&mu_, end);
  while (closed_ && allowed_ == 0) {
    held_ = true;
    changed_.NotifyAll();
    changed_.Wait(&mu_);
  }
  held_ = false;
  if (allowed_ > 0) --allowed_;
  ++steps_;
  if (options_.step_time > absl::ZeroDuration()) last_end_ = absl::Now();
  const ForwardBatch& batch = *step.batch;
  max_sequences_seen_ = std::max(max_sequences_seen_, static_cast<int32_t>(batch.slots.size()));
  max_tokens_seen_ = std::max(max_tokens_seen_, static_cast<int32_t>(batch.token_ids.size()));
  return std::exchange(next_error_, absl::OkStatus());
}

absl::Status FakeExecutor::Collect(StepHandle handle, StepResult* result) {
  Step* oldest = nullptr;
  {
    MutexLock lock(&mu_);
    FEWBIT_CHECK(!launched_.empty() && handle == launched_.front().handle) << "Collect";
    oldest = &launched_.front();
    while (device_.joinable() && !oldest->done) changed_.Wait(&mu_);
  }
  if (!device_.joinable()) RunStep(oldest);
  result->tokens = std::move(oldest->result.tokens);
  absl::Status status = std::move(oldest->status);
  MutexLock lock(&mu_);
  launched_.pop_front();
  changed_.NotifyAll();
  return status;
}

}  // namespace fewbit
