#include "runtime/eval/score_as_served.h"

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/engine.h"
#include "runtime/eval/windows.h"
#include "scheduler/mutex.h"

namespace fewbit {
namespace {

// What became of each window, one request each with its number as id. Thread-safe: mu_.
class WindowScores : public EventSink {
 public:
  explicit WindowScores(size_t windows) : windows_(windows) {}

  void OnEvents(std::span<const TokenEvent> events) override {
    MutexLock lock(&mu_);
    for (const TokenEvent& event : events) {
      Window& window = windows_[ToInt(event.request)];
      if (event.kind == TokenEvent::Kind::kPromptLogprob) {
        window.nll -= static_cast<double>(event.token.logprob);
        ++window.tokens;
      } else if (event.kind == TokenEvent::Kind::kFinished) {
        if (event.finish_reason == FinishReason::kError) failed_ = true;
        --in_flight_;
        changed_.NotifyAll();
      }
    }
  }

  // Returns when fewer than `limit` windows are under way, and counts one more; false: one failed.
  bool Admit(int limit) {
    MutexLock lock(&mu_);
    while (in_flight_ >= limit && !failed_) changed_.Wait(&mu_);
    ++in_flight_;
    return !failed_;
  }

  // Sums in the order of the windows. Behind the engine's end.
  TextScore Total() {
    MutexLock lock(&mu_);
    TextScore score;
    for (const Window& window : windows_) {
      score.nll += window.nll;
      score.tokens += window.tokens;
    }
    score.nll /= static_cast<double>(score.tokens);
    score.perplexity = std::exp(score.nll);
    score.windows = static_cast<int>(windows_.size());
    return score;
  }

  bool failed() {
    MutexLock lock(&mu_);
    return failed_;
  }

 private:
  struct Window {
    double nll = 0.0;
    int64_t tokens = 0;
  };

  Mutex mu_;
  CondVar changed_;
  std::vector<Window> windows_ FEWBIT_GUARDED_BY(mu_);
  int in_flight_ FEWBIT_GUARDED_BY(mu_) = 0;
  bool failed_ FEWBIT_GUARDED_BY(mu_) = false;
};

std::unique_ptr<Request> RequestFor(const Windows& windows, size_t w) {
  auto request = std::make_unique<Request>();
  request->id = RequestId{w};
  windows.Get(w, &request->prompt);
  request->max_new_tokens = 1;
  request->want_prompt_logprobs = true;
  request->arrival = absl::Now();
  return request;
}

}  // namespace

absl::StatusOr<TextScore> ScoreTextAsServed(Executor* executor, TokenId bos,
                                            std::span<const TokenId> text,
                                            const TextOptions& options,
                                            const std::function<void(int, int)>& progress,
                                            const std::atomic<bool>* stop) {
  const ExecutorInfo& info = executor->info();
  const absl::StatusOr<Windows> windows = Windows::Cut(text, bos, info.vocab_size, options);
  if (!windows.ok()) return windows.status();
  WindowScores scores(windows->size());
  EngineOptions engine_options;
  engine_options.max_running = info.max_sequences;
  engine_options.step_token_budget = info.max_step_tokens;
  engine_options.max_waiting = 2 * info.max_sequences;
  engine_options.max_waiting_tokens = int64_t{2} * info.max_sequences * info.max_context;
  absl::Status status;
  {
    Engine engine(engine_options, executor, &scores);
    for (size_t w = 0; w < windows->size() && status.ok(); ++w) {
      if (!scores.Admit(2 * info.max_sequences)) break;
      if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
        return absl::CancelledError("stopped");
      }
      if (progress) progress(static_cast<int>(w), static_cast<int>(windows->size()));
      status = engine.Submit(RequestFor(*windows, w));
    }
    if (status.ok()) engine.Drain(absl::InfiniteFuture());
    if (engine.stats().failed) {
      return absl::InternalError(absl::StrCat("the executor on ", info.device, " has failed"));
    }
  }
  if (!status.ok()) return status;
  if (scores.failed()) return absl::DataLossError("model: the logits are not finite");
  TextScore score = scores.Total();
  score.stride = static_cast<int>(windows->stride());
  return score;
}

}  // namespace fewbit
