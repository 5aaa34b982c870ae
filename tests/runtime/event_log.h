// The tests' event sink: keeps what every request was told and checks the order rules while it
// listens.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "runtime/engine.h"
#include "scheduler/check.h"
#include "scheduler/ids.h"
#include "scheduler/mutex.h"
#include "scheduler/step.h"

namespace fewbit {

// Thread-safe: mu_.
class EventLog : public EventSink {
 public:
  struct Line {
    std::vector<TokenId> tokens;
    std::vector<TokenId> scored;  // of the prompt
    FinishReason reason = FinishReason::kNone;
    RequestTiming timing;
    bool finished() const { return reason != FinishReason::kNone; }
  };

  void OnEvents(std::span<const TokenEvent> events) override {
    FEWBIT_CHECK(!events.empty());
    MutexLock lock(&mu_);
    for (const TokenEvent& event : events) {
      Line& line = lines_[event.request];
      FEWBIT_CHECK(!line.finished()) << "an event after the final one of " << ToInt(event.request);
      switch (event.kind) {
        case TokenEvent::Kind::kPromptLogprob:
          FEWBIT_CHECK(line.tokens.empty()) << "a prompt score after a token";
          line.scored.push_back(event.token.token);
          break;
        case TokenEvent::Kind::kToken:
          line.tokens.push_back(event.token.token);
          break;
        case TokenEvent::Kind::kFinished:
          FEWBIT_CHECK(event.finish_reason != FinishReason::kNone);
          line.reason = event.finish_reason;
          line.timing = event.timing;
          ++num_finished_;
          break;
      }
    }
    changed_.NotifyAll();
  }

  void OnStep(const StepReport& report) override {
    MutexLock lock(&mu_);
    reports_.push_back(report);
  }

  // Blocks until the request has finished; a copy of its line.
  Line WaitFinished(RequestId id) {
    MutexLock lock(&mu_);
    while (!lines_[id].finished()) changed_.Wait(&mu_);
    return lines_[id];
  }

  void WaitFinishedCount(size_t count) {
    MutexLock lock(&mu_);
    while (num_finished_ < count) changed_.Wait(&mu_);
  }

  void WaitTokens(RequestId id, size_t count) {
    MutexLock lock(&mu_);
    while (lines_[id].tokens.size() < count) changed_.Wait(&mu_);
  }

  Line line(RequestId id) const {
    MutexLock lock(&mu_);
    const auto it = lines_.find(id);
    return it == lines_.end() ? Line{} : it->second;
  }

  // Drops a finished line, so that its id can be used again.
  void Forget(RequestId id) {
    MutexLock lock(&mu_);
    FEWBIT_CHECK(lines_[id].finished());
    lines_.erase(id);
  }

  size_t num_finished() const {
    MutexLock lock(&mu_);
    return num_finished_;
  }

  std::vector<StepReport> reports() const {
    MutexLock lock(&mu_);
    return reports_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  std::map<RequestId, Line> lines_ FEWBIT_GUARDED_BY(mu_);
  size_t num_finished_ FEWBIT_GUARDED_BY(mu_) = 0;
  std::vector<StepReport> reports_ FEWBIT_GUARDED_BY(mu_);
};

}  // namespace fewbit
