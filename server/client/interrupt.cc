#include "server/client/interrupt.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <utility>

namespace fewbit::client {
namespace {

constexpr int kStopWatching = SIGUSR1;  // sent to the watcher's own thread only

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, kStopWatching);
  return signals;
}

}  // namespace

void BlockInterrupts() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

InterruptWatcher::InterruptWatcher(std::function<void()> on_interrupt)
    : on_interrupt_(std::move(on_interrupt)) {
  BlockInterrupts();
  thread_ = std::thread([this] { Watch(); });
}

InterruptWatcher::~InterruptWatcher() {
  pthread_kill(thread_.native_handle(), kStopWatching);
  thread_.join();
}

void InterruptWatcher::Watch() {
  const sigset_t signals = Signals();
  int signal = 0;
  while (sigwait(&signals, &signal) == 0 && signal != kStopWatching) {
    if (interrupted_.exchange(true)) _exit(130);
    on_interrupt_();
  }
}

}  // namespace fewbit::client
