// Where a step's time goes: an event behind every launch, for profiles. Launches then run one after
// the other, so the sum is more than a step takes.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <string>
#include <vector>

namespace fewbit {

// Thread rule: engine thread only.
class OpClock {
 public:
  struct Total {
    double seconds = 0.0;
    int launches = 0;
  };

  explicit OpClock(cudaStream_t stream) : stream_(stream) {}
  ~OpClock();
  OpClock(const OpClock&) = delete;
  OpClock& operator=(const OpClock&) = delete;

  // The stream has been given all launches of `op` since the last Mark. The first one of a step
  // starts the clock.
  void Mark(const char* op);

  // Waits for the step's last Mark and adds its times.
  void Collect();

  // By op, of the steps collected since the last Reset.
  const std::map<std::string, Total>& totals() const { return totals_; }
  int steps() const { return steps_; }
  void Reset();

 private:
  const cudaStream_t stream_;
  std::vector<cudaEvent_t> events_;  // reused from step to step
  std::vector<const char*> ops_;     // of the step
  std::map<std::string, Total> totals_;
  int steps_ = 0;
};

}  // namespace fewbit
