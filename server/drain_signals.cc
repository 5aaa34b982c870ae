#include "server/drain_signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "scheduler/check.h"

namespace fewbit {

absl::StatusOr<std::unique_ptr<DrainSignals>> DrainSignals::Create() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  const int blocked = pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  if (blocked != 0) {
    return absl::InternalError(absl::StrCat("cannot block signals: ", std::strerror(blocked)));
  }
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
  const int stop_fd = eventfd(0, EFD_CLOEXEC);
  if (signal_fd < 0 || stop_fd < 0) {
    const int error = errno;
    if (signal_fd >= 0) close(signal_fd);
    if (stop_fd >= 0) close(stop_fd);
    return absl::InternalError(absl::StrCat("cannot watch signals: ", std::strerror(error)));
  }
  return std::unique_ptr<DrainSignals>(new DrainSignals(signal_fd, stop_fd));
}

DrainSignals::~DrainSignals() {
  const uint64_t one = 1;
  FEWBIT_CHECK_EQ(write(stop_fd_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  if (second_.joinable()) second_.join();
  close(signal_fd_);
  close(stop_fd_);
}

int DrainSignals::Next() const {
  while (true) {
    pollfd watched[] = {{.fd = signal_fd_, .events = POLLIN, .revents = 0},
                        {.fd = stop_fd_, .events = POLLIN, .revents = 0}};
    if (poll(watched, 2, -1) < 0) continue;  // EINTR
    if (watched[1].revents != 0) return 0;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      return static_cast<int>(info.ssi_signo);
    }
  }
}

int DrainSignals::Wait() {
  const int first = Next();
  second_ = std::thread([this] {
    const int second = Next();
    if (second != 0) std::_Exit(128 + second);
  });
  return first;
}

}  // namespace fewbit
