#include "runtime/thread_team.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "scheduler/check.h"

namespace fewbit {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than what ranks with equal shares differ by, and than the engine's work between two steps.
constexpr std::chrono::microseconds kSpin(50);
// After a spin in vain, so many waits block at once.
constexpr int kRest = 15;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waiting for a word to change: spins for a while, then blocks. Where others want the processors,
// whoever is waited for may not be running, perhaps because the waiter sits on its processor;
// spinning then only keeps it off. So a spin in vain is a reason not to spin for a while.
// Thread-safe.
class Waiter {
 public:
  explicit Waiter(bool spin) : spin_(spin) {}

  void Await(const std::atomic<uint32_t>& word, uint32_t seen) {
    if (spin_ && !Resting()) {
      if (Spin(word, seen)) return;
      rest_.store(kRest, std::memory_order_relaxed);
    }
    while (word.load(std::memory_order_acquire) == seen) {
      word.wait(seen, std::memory_order_acquire);
    }
  }

 private:
  // Counts imprecisely when several ranks wait at once, which does no harm.
  bool Resting() {
    const int rest = rest_.load(std::memory_order_relaxed);
    if (rest > 0) rest_.store(rest - 1, std::memory_order_relaxed);
    return rest > 0;
  }

  static bool Spin(const std::atomic<uint32_t>& word, uint32_t seen) {
    const Clock::time_point deadline = Clock::now() + kSpin;
    do {
      for (int i = 0; i < 16; ++i) {
        if (word.load(std::memory_order_acquire) != seen) return true;
        Pause();
      }
    } while (Clock::now() < deadline);
    return false;
  }

  const bool spin_;
  std::atomic<int> rest_{0};
};

// Processors by affinity alone; 1 if the system does not say.
int AffinityProcessors() {
  // The mask has as many bits as the kernel was built for: grow until it fits.
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 4) {
    cpu_set_t* set = CPU_ALLOC(capacity);
    if (set == nullptr) return 1;
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    const int error = sched_getaffinity(0, bytes, set);
    const int count = error == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (error == 0) return std::max(count, 1);
  }
  return 1;
}

// Quota of one cgroup directory in processors, 0 for none.
double DirectoryQuota(const std::string& directory) {
  std::string quota;
  double period = 0.0;
  if (std::ifstream v2(directory + "/cpu.max"); v2 >> quota >> period) {
    if (quota == "max" || period <= 0.0) return 0.0;
  } else {
    std::ifstream quota_file(directory + "/cpu.cfs_quota_us");
    std::ifstream period_file(directory + "/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period) || period <= 0.0) return 0.0;
  }
  const double micros = std::strtod(quota.c_str(), nullptr);
  return micros > 0.0 ? micros / period : 0.0;
}

// Whether a comma-separated controller list names the cpu controller.
bool NamesCpu(const std::string& controllers) {
  std::istringstream in(controllers);
  for (std::string name; std::getline(in, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

int CgroupProcessors(const std::string& proc_cgroup, const std::string& cgroup_root) {
  double tightest = 0.0;
  std::istringstream lines(proc_cgroup);
  for (std::string line; std::getline(lines, line);) {
    // hierarchy-id:controllers:path; version 2 has no controllers.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !NamesCpu(controllers)) continue;
    const std::string base = controllers.empty() ? cgroup_root : cgroup_root + "/" + controllers;
    std::string path = line.substr(second + 1);
    while (true) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      const double quota = DirectoryQuota(base + path);
      if (quota > 0.0 && (tightest == 0.0 || quota < tightest)) tightest = quota;
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return static_cast<int>(std::ceil(tightest));
}

int AvailableProcessors() {
  std::ifstream in("/proc/self/cgroup");
  std::ostringstream text;
  text << in.rdbuf();
  const int quota = CgroupProcessors(text.str(), "/sys/fs/cgroup");
  const int affinity = AffinityProcessors();
  return quota > 0 ? std::min(quota, affinity) : affinity;
}

Share ShareOf(int total, int unit, int rank, int size) {
  const int64_t units = (static_cast<int64_t>(total) + unit - 1) / unit;
  const int64_t begin = units * rank / size * unit;
  const int64_t end = units * (rank + 1) / size * unit;
  return {static_cast<int>(std::min<int64_t>(begin, total)),
          static_cast<int>(std::min<int64_t>(end, total))};
}

// Each word that ranks write sits on a cache line of its own.
struct ThreadTeam::Impl {
  explicit Impl(int threads)
      : size(threads), barrier_waiter(Spins(threads)), run_waiter(Spins(threads)) {}

  static bool Spins(int threads) { return threads > 1 && threads <= AvailableProcessors(); }

  void Barrier() {
    if (size == 1) return;
    const uint32_t seen = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived.store(0, std::memory_order_relaxed);
      phase.fetch_add(1, std::memory_order_seq_cst);
      phase.notify_all();
      return;
    }
    barrier_waiter.Await(phase, seen);
  }

  void Work(int rank) {
    uint32_t seen = 0;
    while (true) {
      run_waiter.Await(run, seen);
      seen = run.load(std::memory_order_acquire);
      if (function == nullptr) return;
      (*function)(rank);
      Barrier();
    }
  }

  const int size;
  alignas(64) std::atomic<uint32_t> run{0};            // counts Runs
  const std::function<void(int)>* function = nullptr;  // published by `run`; null ends the threads
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> phase{0};  // counts barriers
  alignas(64) Waiter barrier_waiter;
  alignas(64) Waiter run_waiter;
  alignas(64) std::vector<std::thread> threads;
};

ThreadTeam::ThreadTeam(int threads) {
  FEWBIT_CHECK(threads >= 0) << "negative number of threads";
  impl_ = std::make_unique<Impl>(threads == 0 ? AvailableProcessors() : threads);
  for (int rank = 1; rank < impl_->size; ++rank) {
    impl_->threads.emplace_back([impl = impl_.get(), rank] { impl->Work(rank); });
  }
}

ThreadTeam::~ThreadTeam() {
  impl_->function = nullptr;
  impl_->run.fetch_add(1, std::memory_order_seq_cst);
  impl_->run.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

int ThreadTeam::size() const { return impl_->size; }

void ThreadTeam::Run(const std::function<void(int rank)>& fn) {
  if (impl_->size == 1) {
    fn(0);
    return;
  }
  impl_->function = &fn;
  impl_->run.fetch_add(1, std::memory_order_seq_cst);
  impl_->run.notify_all();
  fn(0);
  Barrier();
}

void ThreadTeam::Barrier() { impl_->Barrier(); }

}  // namespace fewbit
