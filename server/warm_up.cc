#include "server/warm_up.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/engine.h"

namespace fewbit {
namespace {

constexpr int32_t kPromptTokens = 4;
constexpr int32_t kNewTokens = 4;  // with steps in flight the last ones are planned ahead

constexpr RequestId kWarmUp{1};
constexpr uint64_t kFirstPrompt = 2;  // of the canary

// How the requests ended. Read after the engine's thread has ended.
class Listener : public EventSink {
 public:
  explicit Listener(size_t canary_prompts) : tops_(canary_prompts) {}

  void OnEvents(std::span<const TokenEvent> events) override {
    for (const TokenEvent& event : events) {
      if (event.kind == TokenEvent::Kind::kToken && event.request != kWarmUp) {
        TopTokens& top = tops_[ToInt(event.request) - kFirstPrompt];
        for (int32_t i = 0; i < event.token.num_top; ++i) {
          top.ids.push_back(event.token.top[i].token);
          top.logprobs.push_back(event.token.top[i].logprob);
        }
      }
      if (event.kind == TokenEvent::Kind::kFinished) {
        all_well_ = all_well_ && event.finish_reason == FinishReason::kLength;
      }
    }
  }
  bool all_well() const { return all_well_; }
  // By prompt of the canary.
  std::span<const TopTokens> tops() const { return tops_; }

 private:
  bool all_well_ = true;
  std::vector<TopTokens> tops_;
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

std::unique_ptr<Request> MakeRequest(const CanaryPrompt& prompt, int number) {
  auto request = std::make_unique<Request>();
  request->id = RequestId{kFirstPrompt + static_cast<uint64_t>(number)};
  request->prompt = prompt.token_ids;
  request->max_new_tokens = 1;
  request->want_logprobs = true;
  request->num_top_logprobs = Canary::kTop;
  request->arrival = absl::Now();
  return request;
}

bool Fits(const Canary& canary, int32_t max_context) {
  return std::all_of(canary.prompts.begin(), canary.prompts.end(), [&](const CanaryPrompt& prompt) {
    return prompt.token_ids.size() < static_cast<size_t>(max_context);
  });
}

absl::StatusOr<WarmUpResult> Judge(const CanaryDistances& found, double kl_limit,
                                   const std::string& device) {
  std::string numbers = absl::StrFormat(
      "%.4f nats from those of the machine that made the checkpoint", found.expected_served);
  bool wrong = found.expected_served > kl_limit;
  if (found.original_served) {
    absl::StrAppendFormat(&numbers, ", %.4f from the original's (%.4f there)",
                          *found.original_served, *found.original_expected);
    wrong = wrong || *found.original_served - *found.original_expected > kl_limit;
  }
  if (!wrong) {
    return WarmUpResult{.about_canary = absl::StrCat("the canary's answers are ", numbers),
                        .canary = found};
  }
  return absl::InternalError(absl::StrFormat(
      "on %s the answers to the checkpoint's canary.json are %s; --canary_kl_limit is %g: the "
      "weights or what is computed from them are wrong",
      device, numbers, kl_limit));
}

}  // namespace

absl::StatusOr<WarmUpResult> WarmUp(const ModelSpec& spec, const Canary* canary, double kl_limit,
                                    Executor* executor) {
  const ExecutorInfo& info = executor->info();
  EngineOptions options;
  options.max_running = info.max_sequences;
  options.step_token_budget = info.max_step_tokens;
  const bool fits = canary != nullptr && Fits(*canary, info.max_context);
  const int prompts = fits ? static_cast<int>(canary->prompts.size()) : 0;
  Listener listener(static_cast<size_t>(prompts));
  Engine engine(options, executor, &listener);
  absl::Status status = engine.Submit(MakeRequest(spec, info.max_context));
  for (int i = 0; status.ok() && i < prompts; ++i) {
    status = engine.Submit(MakeRequest(canary->prompts[i], i));
  }
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
  if (canary == nullptr) {
    return WarmUpResult{.about_canary = "the checkpoint has no canary.json", .canary = {}};
  }
  if (!fits) {
    return WarmUpResult{.about_canary = "the canary is longer than the context", .canary = {}};
  }
  return Judge(MeasureCanary(*canary, listener.tops()), kl_limit, info.device);
}

}  // namespace fewbit
