// What the device's time went into: the seconds of every step split between prefill and decode by
// their tokens, the rest idle. The source of the cost metrics; it knows seconds and tokens, not
// prices.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>

#include "runtime/engine.h"
#include "scheduler/mutex.h"

namespace fewbit {

// Device seconds since the start; they sum up to the time that has passed.
struct PhaseSeconds {
  double prefill = 0.0;
  double decode = 0.0;
  double idle = 0.0;  // no step was running: nothing to do, or the work between two steps
};

// The last minutes, at most DeviceMeter::kWindowSeconds.
struct RecentUse {
  double seconds = 0.0;       // how long it is
  double busy_seconds = 0.0;  // of it, inside steps
  uint64_t generated_tokens = 0;
};

// Times are seconds of one clock that never goes back (SteadySeconds outside tests). Thread-safe:
// mu_, held for a few additions, and an atomic.
class DeviceMeter {
 public:
  static constexpr double kWindowSeconds = 300.0;

  explicit DeviceMeter(double now);
  static double SteadySeconds();

  // A step ended at `now`.
  void AddStep(const StepReport& report, double now);
  // A generated token became part of a response.
  void AddGeneratedToken() { generated_.fetch_add(1, std::memory_order_relaxed); }

  // The device seconds of a request that has ended: of what its tokens' phases took since the last
  // requests ended, its tokens' share. What requests that give up before their first token used
  // stays with nobody, so the sum over requests is at most that over steps.
  double TakeShare(int64_t prefill_tokens, int64_t decode_tokens);

  // `until`: when the last step ended or, if none runs, the present. A step counts when it has
  // ended; no value ever falls.
  PhaseSeconds Phases(double until);
  RecentUse Recent(double now);

 private:
  static constexpr double kCheckpointSeconds = 10.0;
  // How things stood before a step.
  struct Checkpoint {
    double time, busy_seconds;
    uint64_t generated_tokens;
  };

  // Work that no request has taken yet.
  struct Pool {
    double seconds = 0.0;
    int64_t tokens = 0;

    void Add(double more_seconds, int64_t more_tokens);
    double Take(int64_t some_tokens);
  };

  const double start_;
  std::atomic<uint64_t> generated_{0};
  Mutex mu_;
  PhaseSeconds total_ FEWBIT_GUARDED_BY(mu_);
  Pool prefill_ FEWBIT_GUARDED_BY(mu_), decode_ FEWBIT_GUARDED_BY(mu_);
  std::deque<Checkpoint> checkpoints_ FEWBIT_GUARDED_BY(mu_);  // at most one per interval
};

}  // namespace fewbit
