// A fixed team of threads that runs one function at a time, all ranks together (the caller is rank 0), with a barrier for the phases
// inside. A step of the model is one Run with a few barriers per layer; between Runs the threads block. Inside a Run a barrier spins for
// some microseconds before it blocks: phases are tens of microseconds long and a wake-up costs as much.
#pragma once

#include <functional>
#include <memory>

namespace fewbit {

class ThreadTeam {
 public:
  // `threads` >= 1; 0 means one per processor this process may run on.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const;

  // Calls fn(rank) on every rank and returns when all have returned. One caller at a time.
  void Run(const std::function<void(int rank)>& fn);

  // Inside Run, on every rank: waits for all ranks.
  void Barrier();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// [begin, end) of `total` items for `rank`, cut at multiples of `unit`.
struct Share {
  int begin = 0;
  int end = 0;
};
Share ShareOf(int total, int unit, int rank, int size);

}  // namespace fewbit
