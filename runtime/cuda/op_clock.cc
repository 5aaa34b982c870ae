#include "runtime/cuda/op_clock.h"

namespace fewbit {

OpClock::~OpClock() {
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

void OpClock::Mark(const char* op) {
  if (ops_.size() == events_.size()) {
    cudaEvent_t event = nullptr;
    if (cudaEventCreate(&event) != cudaSuccess) return;
    events_.push_back(event);
  }
  cudaEventRecord(events_[ops_.size()], stream_);
  ops_.push_back(op);
}

void OpClock::Collect() {
  if (!ops_.empty()) cudaEventSynchronize(events_[ops_.size() - 1]);
  for (size_t i = 1; i < ops_.size(); ++i) {
    float milliseconds = 0.0f;
    cudaEventElapsedTime(&milliseconds, events_[i - 1], events_[i]);
    Total& total = totals_[ops_[i]];
    total.seconds += milliseconds * 1e-3;
    ++total.launches;
  }
  if (!ops_.empty()) ++steps_;
  ops_.clear();
}

void OpClock::Reset() {
  totals_.clear();
  steps_ = 0;
}

}  // namespace fewbit
