#include "server/warm_up.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/engine.h"

namespace fewbit {
namespace {

constexpr int32_t kPromptTokens = 4;
constexpr int32_t kNewTokens = 4;  // with steps in flight the last ones are planned ahead

constexpr RequestId kWarmUp{1};
constexpr RequestId kCanary{2};

// How the requests ended. Read after the engine's thread has ended.
class Listener : public EventSink {
 public:
  void OnEvents(std::span<const TokenEvent> events) override {
    for (const TokenEvent& event : events) {
      if (event.kind == TokenEvent::Kind::kPromptLogprob) sum_ += event.token.logprob;
      if (event.kind == TokenEvent::Kind::kFinished) {
        all_well_ = all_well_ && event.finish_reason == FinishReason::kLength;
      }
    }
  }
  bool all_well() const { return all_well_; }
  double sum_of_logprobs() const { return sum_; }

 private:
  bool all_well_ = true;
  double sum_ = 0.0;
};

std::unique_ptr<Request> MakeRequest(const ModelSpec& spec, int32_t max_context) {
  auto request = std::make_unique<Request>();
  request->id = kWarmUp;
  const int32_t prompt = std::clamp(max_context - kNewTokens, 1, kPromptTokens);
  for (int32_t i = 0; i < prompt; ++i) request->prompt.push_back(TokenId{i % spec.vocab_size});
  if (ToInt(spec.bos) >= 0) request->prompt.front() = spec.bos;
  request->max_new_tokens = std::min(kNewTokens, max_context - prompt);
  request->arrival = absl::Now();
  return request;
}

std::unique_ptr<Request> MakeRequest(const Canary& canary) {
  auto request = std::make_unique<Request>();
  request->id = kCanary;
  request->prompt = canary.token_ids;
  request->max_new_tokens = 1;
  request->want_prompt_logprobs = true;
  request->arrival = absl::Now();
  return request;
}

absl::StatusOr<std::string> Compare(const Canary& canary, double sum_of_logprobs,
                                    const std::string& device) {
  const double mean = sum_of_logprobs / static_cast<double>(canary.token_ids.size() - 1);
  const std::string numbers =
      absl::StrFormat("a mean log-probability of %.4f, %.4f +- %.4f expected", mean,
                      canary.mean_logprob, canary.tolerance);
  if (std::abs(mean - canary.mean_logprob) <= canary.tolerance) {
    return absl::StrCat("the canary has ", numbers);
  }
  return absl::InternalError(absl::StrCat("on ", device, " the checkpoint's canary.json has ",
                                          numbers,
                                          ": the weights or what is computed from them are wrong"));
}

}  // namespace

absl::StatusOr<std::string> WarmUp(const ModelSpec& spec, const Canary* canary,
                                   Executor* executor) {
  const ExecutorInfo& info = executor->info();
  EngineOptions options;
  options.max_running = info.max_sequences;
  options.step_token_budget = info.max_step_tokens;
  Listener listener;
  Engine engine(options, executor, &listener);
  absl::Status status = engine.Submit(MakeRequest(spec, info.max_context));
  const bool fits =
      canary != nullptr && canary->token_ids.size() < static_cast<size_t>(info.max_context);
  if (status.ok() && fits) status = engine.Submit(MakeRequest(*canary));
  engine.Drain(absl::InfiniteFuture());
  if (!status.ok()) return status;
  if (engine.stats().failed) {
    // What it tells whoever comes next.
    status = engine.Submit(MakeRequest(spec, info.max_context));
    return absl::InternalError(absl::StrCat("warming up on ", info.device, ": ", status.message()));
  }
  if (!listener.all_well()) {
    return absl::InternalError(
        absl::StrCat("warming up on ", info.device,
                     ": the model's logits are not finite; the checkpoint is broken"));
  }
  if (canary == nullptr) return "the checkpoint has no canary.json";
  if (!fits) return "the canary is longer than the context";
  return Compare(*canary, listener.sum_of_logprobs(), info.device);
}

}  // namespace fewbit
