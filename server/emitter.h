// Hand-off 2 of the line: the engine's events become responses on a thread of its own. It takes all
// events of a step (or of several, if it is behind) with one swap, lets each request's builder
// work, and offers each request's news to its sink once per swap.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "runtime/engine.h"
#include "scheduler/mutex.h"
#include "server/live_requests.h"
#include "server/metrics.h"
#include "server/response_builder.h"

namespace fewbit {

// Thread-safe: mu_; what has no lock belongs to the emitter's thread.
class Emitter : public EventSink {
 public:
  // `live` and `stats` outlive it.
  Emitter(LiveRequests* live, ServerStats* stats);
  ~Emitter() override;

  // Starts the thread. `engine` is the one whose events come here; it is asked to end requests that
  // need no more tokens. `on_error` is called on the emitter's thread when the engine has failed a
  // request.
  void Start(Engine* engine, std::function<void()> on_error);

  // Handles everything handed over so far and ends the thread. REQUIRES: the engine is drained.
  // Idempotent.
  void Stop();

  // Before Engine::Submit of the request.
  void Register(std::unique_ptr<ResponseBuilder> builder);

  // Instead of events: the engine refused the registered request.
  void Refuse(RequestId id, absl::Status status, Outcome outcome);

  void OnEvents(std::span<const TokenEvent> events) override;
  void OnStep(const StepReport& report) override;

 private:
  struct Refusal {
    RequestId id{};
    absl::Status status;
    Outcome outcome = Outcome::kInternal;
  };
  // What one swap moves.
  struct Batch {
    std::vector<std::unique_ptr<ResponseBuilder>> registered;
    std::vector<TokenEvent> events;
    std::vector<Refusal> refusals;

    bool empty() const { return registered.empty() && events.empty() && refusals.empty(); }
    void Clear();
  };

  void Run();
  void Process(Batch* batch);
  void Handle(const TokenEvent& event);
  void End(const TokenEvent& final_event);

  LiveRequests* const live_;
  ServerStats* const stats_;
  Engine* engine_ = nullptr;
  std::function<void()> on_error_;
  std::thread thread_;

  Mutex mu_;
  CondVar wake_;
  Batch incoming_ FEWBIT_GUARDED_BY(mu_);
  bool stopping_ FEWBIT_GUARDED_BY(mu_) = false;

  absl::flat_hash_map<RequestId, std::unique_ptr<ResponseBuilder>> builders_;
  std::vector<ResponseBuilder*> touched_;  // have something new in this batch
};

}  // namespace fewbit
