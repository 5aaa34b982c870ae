#include "tests/bench/cuda/decode.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "runtime/cuda/device_executor.h"
#include "runtime/engine.h"
#include "scheduler/mutex.h"
#include "tests/bench/cuda/machine.h"
#include "tests/bench/cuda/random_model.h"

namespace fewbit::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A collected step: when, what it was, and the device's time so far.
struct StepMark {
  Clock::time_point time;
  StepReport report;
  double device_seconds = 0.0;
};

// Thread-safe: mu_; steps_ belongs to the engine thread until all requests have finished.
class Watch : public EventSink {
 public:
  // A profile begins with the first step in which `requests` sequences decode, or, of prompts, with
  // the second step.
  Watch(const CudaExecutor* executor, int requests, bool of_prompts)
      : executor_(executor), requests_(requests), of_prompts_(of_prompts) {
    steps_.reserve(1 << 14);
  }

  void OnEvents(std::span<const TokenEvent> events) override {
    MutexLock lock(&mu_);
    for (const TokenEvent& event : events) {
      if (event.kind != TokenEvent::Kind::kFinished) continue;
      ++finished_;
      if (event.finish_reason == FinishReason::kLength || !failure_.empty()) continue;
      failure_ = "request " + std::to_string(ToInt(event.request)) + " ended with reason " +
                 std::to_string(static_cast<int>(event.finish_reason)) + " after " +
                 std::to_string(event.timing.generated_tokens) + " tokens";
    }
    changed_.NotifyAll();
  }
  void OnStep(const StepReport& report) override {
    const bool decoding = report.prefill_tokens == 0 && report.tokens == requests_;
    counting_ = counting_ || (of_prompts_ ? !steps_.empty() : decoding);
    if (executor_->clock() != nullptr && !counting_) executor_->clock()->Reset();
    steps_.push_back({Clock::now(), report, executor_->device_seconds()});
  }

  // Empty, or how the first request ended that did not end by its length.
  std::string Wait(int requests) {
    MutexLock lock(&mu_);
    while (finished_ < requests) changed_.Wait(&mu_);
    return failure_;
  }
  const std::vector<StepMark>& steps() const { return steps_; }

 private:
  const CudaExecutor* const executor_;
  std::vector<StepMark> steps_;
  const int requests_;
  const bool of_prompts_;
  bool counting_ = false;
  Mutex mu_;
  CondVar changed_;
  int finished_ FEWBIT_GUARDED_BY(mu_) = 0;
  std::string failure_ FEWBIT_GUARDED_BY(mu_);
};

struct Rate {
  double tokens_per_second = 0.0;
  double busy = 0.0;  // device time over wall time
};

// Over the steps for which `counts` holds, without the first of them.
template <typename Counts>
Rate RateOf(const std::vector<StepMark>& steps, const Counts& counts) {
  const auto first = std::find_if(steps.begin(), steps.end(), counts);
  if (first == steps.end()) return {};
  auto last = first;
  double tokens = 0.0;
  while (last + 1 != steps.end() && counts(last[1])) tokens += (++last)->report.tokens;
  const double seconds = std::chrono::duration<double>(last->time - first->time).count();
  if (seconds <= 0.0) return {};
  return {tokens / seconds, (last->device_seconds - first->device_seconds) / seconds};
}

std::unique_ptr<Request> RandomRequest(int index, int prompt, int new_tokens, int vocab,
                                       bool greedy) {
  std::mt19937 rng(static_cast<uint32_t>(index) + 1);
  auto request = std::make_unique<Request>();
  request->id = RequestId(static_cast<uint64_t>(index) + 1);
  for (int i = 0; i < prompt; ++i) {
    request->prompt.push_back(TokenId(static_cast<int32_t>(rng() % vocab)));
  }
  request->max_new_tokens = new_tokens;
  request->sampling.temperature = greedy ? 0.0f : 1.0f;
  request->sampling.seed = rng();
  return request;
}

struct RequestsRun {
  std::vector<StepMark> steps;
  double seconds = 0.0;  // from handing the first request over to the end of all
};

// Runs `requests` requests at once; no steps, and why on stderr, if one failed.
RequestsRun RunRequests(CudaExecutor* executor, int requests, int prompt, int new_tokens,
                        bool greedy) {
  Watch watch(executor, requests, new_tokens == 1);
  const ExecutorInfo& info = executor->info();
  EngineOptions options;
  options.max_running = std::min(info.max_sequences, requests);
  options.max_waiting = requests;
  options.max_waiting_tokens = int64_t{1} << 40;
  options.step_token_budget = info.max_step_tokens;
  Engine engine(options, executor, &watch);
  const Clock::time_point begin = Clock::now();
  for (int i = 0; i < requests; ++i) {
    const absl::Status status =
        engine.Submit(RandomRequest(i, prompt, new_tokens, info.vocab_size, greedy));
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      return {};
    }
  }
  const std::string failure = watch.Wait(requests);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  engine.Drain(absl::InfiniteFuture());
  if (failure.empty()) return {watch.steps(), seconds};
  const std::vector<float> logits = executor->Logits(1);
  const auto finite =
      std::count_if(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
  std::fprintf(stderr, "%s; %lld of %zu logits of the last step are finite\n", failure.c_str(),
               static_cast<long long>(finite), logits.size());
  return {};
}

class Bench {
 public:
  Bench(const DecodeOptions& options, const ModelSpec& spec)
      : options_(options), spec_(spec), gpu_(GpuName()), date_(Today()) {}

  int Run() {
    const bool rates = options_.first_token.empty();
    if (options_.csv) {
      std::printf(rates ? "gpu,date,commit,shape,batch,context,kv,tokens_per_s,gpu_busy_pct\n"
                        : "gpu,date,commit,shape,prompt,kv,first_token_ms\n");
    }
    for (const std::string& kv : options_.kv) {
      if (!Start(kv)) return 1;
      for (const int prompt : options_.first_token) {
        if (!FirstToken(kv, prompt)) return 1;
      }
      if (!rates) continue;
      for (const int batch : options_.batches) {
        if (!Decode(kv, batch)) return 1;
      }
      if (options_.prefill > 0 && !Prefill(kv)) return 1;
      executor_.reset();
    }
    return 0;
  }

 private:
  int LongestPrompt() const {
    int longest = options_.prefill;
    for (const int prompt : options_.first_token) longest = std::max(longest, prompt);
    return longest;
  }

  bool Start(const std::string& kv) {
    CudaOptions options;
    options.kv_type = kv == "i8"     ? kv::KvType::kI8
                      : kv == "bf16" ? kv::KvType::kBF16
                                     : kv::KvType::kF16;
    options.max_sequences = *std::max_element(options_.batches.begin(), options_.batches.end());
    options.max_step_tokens = std::max({options_.prefill, options.max_sequences, 2048});
    options.max_context = std::min(
        spec_.max_context, std::max(options_.context + options_.steps + 64, LongestPrompt() + 16));
    options.graphs = options_.graphs;
    options.profile = options_.profile;
    options.memory_utilization = 0.95;
    auto model = MakeRandomModel(spec_, options_.mix, options_.lm_head_bits);
    if (!model.ok()) return Fail(model.status());
    auto executor = CudaExecutor::Create(*std::move(model), options);
    if (!executor.ok()) return Fail(executor.status());
    executor_ = *std::move(executor);
    const DeviceMemoryUse& use = executor_->memory();
    std::fprintf(options_.csv ? stderr : stdout,
                 "%s, %s KV: weights %.3f GiB, buffers %.3f GiB, KV %.1f KiB per token\n",
                 spec_.family.c_str(), kv.c_str(), Gib(use.weights), Gib(use.buffers),
                 static_cast<double>(use.kv) / executor_->info().num_blocks /
                     executor_->info().block_tokens / 1024.0);
    std::fflush(stdout);
    return true;
  }

  bool Decode(const std::string& kv, int batch) {
    constexpr int kWarmUp = 8;  // steps after the prompts, the captured graph's first among them
    // While the last prompts run, the first sequences decode already.
    const int budget = executor_->info().max_step_tokens;
    const int early = (batch * options_.context + budget - 1) / budget;
    const int new_tokens = options_.steps + kWarmUp + early + 4;
    const int prompt = std::max(1, options_.context - options_.steps / 2 - kWarmUp - early);
    const std::vector<StepMark> steps =
        RunRequests(executor_.get(), batch, prompt, new_tokens, options_.greedy).steps;
    if (options_.profile && !steps.empty()) {
      return PrintProfile("batch " + std::to_string(batch) + ": one decode step");
    }
    int seen = 0;
    const Rate rate = RateOf(steps, [&](const StepMark& step) {
      const bool decoding = step.report.prefill_tokens == 0 && step.report.tokens == batch;
      return decoding && ++seen > kWarmUp && seen <= kWarmUp + options_.steps + 1;
    });
    if (rate.tokens_per_second <= 0.0) {
      std::fprintf(stderr, "batch %d: a request failed, or no step was measured\n", batch);
      return false;
    }
    std::printf(options_.csv ? "%s,%s,%s,%s,%d,%d,%s,%.1f,%.1f\n"
                             : "%.0s%.0s%.0s%s: batch %d, context %d, %s KV: %.1f tokens/s, GPU "
                               "busy %.1f %%\n",
                gpu_.c_str(), date_.c_str(), FEWBIT_COMMIT, spec_.family.c_str(), batch,
                options_.context, kv.c_str(), rate.tokens_per_second, 100.0 * rate.busy);
    std::fflush(stdout);
    return true;
  }

  bool PrintProfile(const std::string& what) const {
    const OpClock& clock = *executor_->clock();
    double all = 0.0;
    for (const auto& [op, total] : clock.totals()) all += total.seconds;
    std::printf("%s, %s, launches one after the other: %.1f us\n", spec_.family.c_str(),
                what.c_str(), 1e6 * all / clock.steps());
    for (const auto& [op, total] : clock.totals()) {
      std::printf("  %-36s %8.1f us  %4.1f %%  %3d x %.2f us\n", op.c_str(),
                  1e6 * total.seconds / clock.steps(), 100.0 * total.seconds / all,
                  total.launches / clock.steps(), 1e6 * total.seconds / total.launches);
    }
    std::fflush(stdout);
    return true;
  }

  // Prompts one after the other, each in one step. In the CSV file a row of batch 0.
  bool Prefill(const std::string& kv) {
    constexpr int kPrompts = 6;
    const std::vector<StepMark> steps =
        RunRequests(executor_.get(), kPrompts, options_.prefill, 1, options_.greedy).steps;
    if (options_.profile && !steps.empty()) {
      return PrintProfile("prefill of " + std::to_string(options_.prefill) + " tokens");
    }
    const Rate rate = RateOf(steps, [](const StepMark& step) { return step.report.tokens > 0; });
    if (rate.tokens_per_second <= 0.0) {
      std::fprintf(stderr, "prefill: a request failed\n");
      return false;
    }
    std::printf(options_.csv ? "%s,%s,%s,%s,0,%d,%s,%.1f,%.1f\n"
                             : "%.0s%.0s%.0s%s: prefill of %d tokens, %s KV: %.1f tokens/s, GPU "
                               "busy %.1f %%\n",
                gpu_.c_str(), date_.c_str(), FEWBIT_COMMIT, spec_.family.c_str(), options_.prefill,
                kv.c_str(), rate.tokens_per_second, 100.0 * rate.busy);
    std::fflush(stdout);
    return true;
  }

  // Of a request alone, with one new token: the median of some.
  bool FirstToken(const std::string& kv, int prompt) {
    constexpr int kWarmUp = 1, kRequests = 7;
    std::vector<double> ms;
    for (int i = 0; i < kWarmUp + kRequests; ++i) {
      const RequestsRun run = RunRequests(executor_.get(), 1, prompt, 1, options_.greedy);
      if (run.steps.empty()) return false;
      if (i >= kWarmUp) ms.push_back(1e3 * run.seconds);
    }
    std::nth_element(ms.begin(), ms.begin() + kRequests / 2, ms.end());
    std::printf(options_.csv ? "%s,%s,%s,%s,%d,%s,%.2f\n"
                             : "%.0s%.0s%.0s%s: prompt of %d tokens, %s KV: first token after %.2f "
                               "ms\n",
                gpu_.c_str(), date_.c_str(), FEWBIT_COMMIT, spec_.family.c_str(), prompt,
                kv.c_str(), ms[kRequests / 2]);
    std::fflush(stdout);
    return true;
  }

  static bool Fail(const absl::Status& status) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return false;
  }
  static double Gib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

  const DecodeOptions options_;
  const ModelSpec spec_;
  const std::string gpu_, date_;
  std::unique_ptr<CudaExecutor> executor_;
};

}  // namespace

int RunDecode(const DecodeOptions& options) {
  auto spec = FindModel(options.shape);
  if (!spec) {
    std::fprintf(stderr, "unknown --shape %s; known: %s\n", options.shape.c_str(),
                 KnownModels().c_str());
    return 2;
  }
  if (const absl::Status status = CheckCudaDevice(0); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 2;
  }
  if (options.layers > 0) spec->num_layers = options.layers;
  return Bench(options, *spec).Run();
}

}  // namespace fewbit::bench
