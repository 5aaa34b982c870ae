// Ctrl-C as a function call: the first one cancels, the second one ends the program. Signals stay
// blocked in every thread; one thread waits for them, so that the reaction may take locks and call
// gRPC.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace fewbit::client {

// Call first in main, before any other thread exists.
void BlockInterrupts();

// Calls `on_interrupt` on its own thread at the first SIGINT or SIGTERM; at the second, ends the
// process with status 130. One at a time; the callback is not running any more when the destructor
// returns.
class InterruptWatcher {
 public:
  explicit InterruptWatcher(std::function<void()> on_interrupt);
  ~InterruptWatcher();
  InterruptWatcher(const InterruptWatcher&) = delete;
  InterruptWatcher& operator=(const InterruptWatcher&) = delete;

  bool interrupted() const { return interrupted_.load(); }  // thread-safe

 private:
  void Watch();

  std::function<void()> on_interrupt_;
  std::atomic<bool> interrupted_ = false;
  std::thread thread_;
};

}  // namespace fewbit::client
