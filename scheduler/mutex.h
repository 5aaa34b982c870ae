// A mutex, a scoped lock and a condition variable over the standard ones, with clang's
// thread-safety annotations
// (-Wthread-safety checks them). We do not use absl::Mutex: ThreadSanitizer reports false races on
// Debian's build of it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

#if defined(__clang__)
#define FEWBIT_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define FEWBIT_THREAD_ANNOTATION(x)
#endif

#define FEWBIT_CAPABILITY(x) FEWBIT_THREAD_ANNOTATION(capability(x))
#define FEWBIT_SCOPED_CAPABILITY FEWBIT_THREAD_ANNOTATION(scoped_lockable)
#define FEWBIT_GUARDED_BY(x) FEWBIT_THREAD_ANNOTATION(guarded_by(x))
#define FEWBIT_PT_GUARDED_BY(x) FEWBIT_THREAD_ANNOTATION(pt_guarded_by(x))
#define FEWBIT_REQUIRES(...) FEWBIT_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define FEWBIT_EXCLUDES(...) FEWBIT_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define FEWBIT_ACQUIRE(...) FEWBIT_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define FEWBIT_RELEASE(...) FEWBIT_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define FEWBIT_NO_THREAD_SAFETY_ANALYSIS FEWBIT_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace fewbit {

// Not recursive. Thread-safe.
class FEWBIT_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() FEWBIT_ACQUIRE() { mu_.lock(); }
  void Unlock() FEWBIT_RELEASE() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

// Holds the mutex for a scope. One thread only.
class FEWBIT_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex* mu) FEWBIT_ACQUIRE(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() FEWBIT_RELEASE() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// Wake-ups may be spurious: wait in a loop over the condition. Thread-safe.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  void Wait(Mutex* mu) FEWBIT_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }

  // Returns at `deadline` at the latest (wall clock); false when it passed without a wake-up.
  bool WaitUntil(Mutex* mu, absl::Time deadline) FEWBIT_REQUIRES(mu) {
    if (deadline == absl::InfiniteFuture()) {
      Wait(mu);
      return true;
    }
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    const std::cv_status status = cv_.wait_until(lock, absl::ToChronoTime(deadline));
    lock.release();
    return status == std::cv_status::no_timeout;
  }

  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace fewbit
