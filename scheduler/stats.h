// What the scheduler counts. Plain numbers: the engine publishes them, the server turns them into
// metrics.
#pragma once

#include <cstdint>

namespace fewbit {

// Gauges describe the moment of the call, counters only grow.
struct SchedulerStats {
  int32_t requests_running = 0;  // hold a slot, those leaving included
  int32_t requests_waiting = 0;
  int64_t waiting_tokens = 0;  // prompt tokens of the waiting
  int32_t blocks_total = 0;
  int32_t blocks_used = 0;
  uint64_t steps = 0;  // applied
  uint64_t prefill_tokens = 0;
  uint64_t decode_tokens = 0;
  // Of these, what was run for requests that had ended before the step was applied.
  uint64_t dropped_prefill_tokens = 0;
  uint64_t dropped_decode_tokens = 0;
};

}  // namespace fewbit
