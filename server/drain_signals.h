// SIGTERM and SIGINT as calls on a thread of their own: the first one asks for a drain, the second
// one ends the process at once.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"

namespace fewbit {

// Thread-safe. Construct before any other thread is started: the two signals are blocked in the
// constructing thread and whatever it starts afterwards.
class DrainSignals {
 public:
  // INTERNAL: the kernel gave no descriptor.
  static absl::StatusOr<std::unique_ptr<DrainSignals>> Create();
  ~DrainSignals();
  DrainSignals(const DrainSignals&) = delete;
  DrainSignals& operator=(const DrainSignals&) = delete;

  // Waits for the first signal and returns its number. From then on a second one ends the process
  // with 128 + its number. Once.
  int Wait();

 private:
  DrainSignals(int signal_fd, int stop_fd) : signal_fd_(signal_fd), stop_fd_(stop_fd) {}
  // Returns the signal's number, or 0 once the destructor runs.
  int Next() const;

  const int signal_fd_;
  const int stop_fd_;
  std::thread second_;
};

}  // namespace fewbit
