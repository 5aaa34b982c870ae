#include "runtime/tune/own_text.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/device.h"
#include "runtime/engine.h"
#include "runtime/models/model.h"
#include "runtime/tune/tuning_text.h"
#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

constexpr int kPromptTokens = 16;  // of a window, BOS apart
constexpr int kSequences = 128;
constexpr int kStepTokens = 2048;

// Thread rule: the engine's thread until it is drained.
class Collector : public EventSink {
 public:
  Collector(std::vector<TokenId>* tokens, int context, const std::function<void(int)>& progress,
            const std::atomic<bool>* stop)
      : tokens_(*tokens),
        context_(context),
        written_(tokens->size() / static_cast<size_t>(context)),
        progress_(progress),
        stop_(stop) {}

  void StartAt(int window, int token) { written_[static_cast<size_t>(window)] = token; }
  void set_engine(Engine* engine) { engine_ = engine; }
  bool complete() const {
    return std::all_of(written_.begin(), written_.end(), [&](int n) { return n == context_; });
  }

  void OnEvents(std::span<const TokenEvent> events) override {
    for (const TokenEvent& event : events) {
      const auto window = static_cast<size_t>(ToInt(event.request));
      if (event.kind == TokenEvent::Kind::kToken) {
        tokens_[window * static_cast<size_t>(context_) + static_cast<size_t>(written_[window]++)] =
            event.token.token;
      } else if (event.kind == TokenEvent::Kind::kFinished && progress_) {
        progress_(++finished_);
      }
    }
    if (stop_ == nullptr || !stop_->load(std::memory_order_relaxed) || cancelled_) return;
    cancelled_ = true;
    for (size_t w = 0; w < written_.size(); ++w) engine_->Cancel(RequestId{w});
  }

 private:
  std::vector<TokenId>& tokens_;
  const int context_;
  std::vector<int> written_;  // tokens of each window so far
  const std::function<void(int)>& progress_;
  const std::atomic<bool>* const stop_;
  Engine* engine_ = nullptr;
  int finished_ = 0;
  bool cancelled_ = false;
};

// The first tokens of each window; the rest is left to the model.
std::vector<TokenId> Prompts(const TuningText& text, const TuneOptions& options) {
  const auto context = static_cast<size_t>(options.context);
  std::vector<TokenId> tokens(options.own_windows * context);
  for (int w = 0; w < options.own_windows; ++w) {
    text.Draw(/*step=*/0, w, std::span(tokens).subspan(w * context, context));
  }
  return tokens;
}

absl::Status SubmitAll(const TuneOptions& options, int prompt_tokens,
                       std::span<const TokenId> tokens, Collector* collector, Engine* engine) {
  for (int w = 0; w < options.own_windows; ++w) {
    const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(w) * options.context;
    auto request = std::make_unique<Request>();
    request->id = RequestId{static_cast<uint64_t>(w)};
    request->prompt.assign(begin, begin + prompt_tokens);
    request->max_new_tokens = options.context - prompt_tokens;
    request->sampling.temperature = 1.0f;
    request->sampling.seed = options.seed + static_cast<uint64_t>(w);
    request->arrival = absl::Now();
    collector->StartAt(w, prompt_tokens);
    if (absl::Status status = engine->Submit(std::move(request)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> WriteOwnText(const TuneOptions& options,
                                                  std::span<const TokenId> calibration,
                                                  const std::function<void(int)>& progress,
                                                  const std::atomic<bool>* stop) {
  const absl::StatusOr<std::unique_ptr<Model>> model = LoadModel(options.model_dir);
  if (!model.ok()) return model.status();
  const ModelSpec& spec = (*model)->spec;
  const absl::StatusOr<TuningText> text =
      TuningText::Create(calibration, {}, TextOptionsOf(options, spec));
  if (!text.ok()) return text.status();
  DeviceOptions device;
  device.device = options.device;
  device.threads = options.threads;
  device.max_sequences = std::min(kSequences, options.own_windows);
  device.max_step_tokens = kStepTokens;
  device.max_context = options.context;
  absl::StatusOr<std::unique_ptr<Executor>> executor = CreateExecutor(model->get(), device);
  if (!executor.ok()) return executor.status();
  std::vector<TokenId> tokens = Prompts(*text, options);
  Collector collector(&tokens, options.context, progress, stop);
  const int bos = ToInt(spec.bos) >= 0 ? 1 : 0;
  const int prompt_tokens = std::min(kPromptTokens + bos, options.context - 1);
  EngineOptions engine_options;
  engine_options.max_running = device.max_sequences;
  engine_options.max_waiting = options.own_windows;
  engine_options.max_waiting_tokens = int64_t{options.own_windows} * prompt_tokens;
  engine_options.step_token_budget = kStepTokens;
  absl::Status status = ValidateEngineOptions(engine_options, (*executor)->info());
  if (!status.ok()) return status;
  Engine engine(engine_options, executor->get(), &collector);
  collector.set_engine(&engine);
  status = SubmitAll(options, prompt_tokens, tokens, &collector, &engine);
  engine.Drain(status.ok() ? absl::InfiniteFuture() : absl::Now());
  if (!status.ok()) return status;
  if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
    return absl::CancelledError("stopped");
  }
  if (!collector.complete()) {
    return absl::InternalError(
        absl::StrCat(options.model_dir, ": the engine ended before its text was written"));
  }
  return tokens;
}

}  // namespace fewbit::tune
