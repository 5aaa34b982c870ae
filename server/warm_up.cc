#include "server/warm_up.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/engine.h"

namespace fewbit {
namespace {

constexpr int32_t kPromptTokens = 4;
constexpr int32_t kNewTokens = 4;  // with steps in flight the last ones are planned ahead

// How the request ended. Read after the engine's thread has ended.
class LastEvent : public EventSink {
 public:
  void OnEvents(std::span<const TokenEvent> events) override {
    reason_ = events.back().finish_reason;
  }
  FinishReason reason() const { return reason_; }

 private:
  FinishReason reason_ = FinishReason::kNone;
};

std::unique_ptr<Request> MakeRequest(const ModelSpec& spec, int32_t max_context) {
  auto request = std::make_unique<Request>();
  request->id = RequestId{1};
  const int32_t prompt = std::clamp(max_context - kNewTokens, 1, kPromptTokens);
  for (int32_t i = 0; i < prompt; ++i) request->prompt.push_back(TokenId{i % spec.vocab_size});
  if (ToInt(spec.bos) >= 0) request->prompt.front() = spec.bos;
  request->max_new_tokens = std::min(kNewTokens, max_context - prompt);
  request->arrival = absl::Now();
  return request;
}

}  // namespace

absl::Status WarmUp(const ModelSpec& spec, Executor* executor) {
  const ExecutorInfo& info = executor->info();
  EngineOptions options;
  options.max_running = info.max_sequences;
  options.step_token_budget = info.max_step_tokens;
  LastEvent last;
  Engine engine(options, executor, &last);
  absl::Status status = engine.Submit(MakeRequest(spec, info.max_context));
  engine.Drain(absl::InfiniteFuture());
  if (!status.ok()) return status;
  if (last.reason() == FinishReason::kLength) return absl::OkStatus();
  if (engine.stats().failed) {
    // What it tells whoever comes next.
    status = engine.Submit(MakeRequest(spec, info.max_context));
    return absl::InternalError(absl::StrCat("warming up on ", info.device, ": ", status.message()));
  }
  return absl::InternalError(
      absl::StrCat("warming up on ", info.device,
                   ": the model's logits are not finite; the checkpoint is broken"));
}

}  // namespace fewbit
