// A fixed team of threads that runs one function at a time, all ranks together (the caller is rank
// 0), with a barrier for the phases inside. A step of the model is one Run with a few barriers per
// layer. Who waits, for the next Run or inside one, spins for some microseconds before it blocks:
// phases are tens of microseconds long and a wake-up costs as much. After a spin in vain, which is
// what a machine busy with other work gives, the next waits block at once, and so do all waits of a
// team larger than the number of processors.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace fewbit {

// Thread rule: Run from one thread at a time, Barrier from the ranks of a Run.
class ThreadTeam {
 public:
  // `threads` >= 1; 0 means AvailableProcessors().
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

// Processors this process may use: those of its affinity mask, but no more than its cgroup's CPU
// quota rounded up. At least 1.
int AvailableProcessors();

// The tightest CPU quota, in processors rounded up, of the cgroups (version 1 or 2) named in
// `proc_cgroup`, the text of /proc/self/cgroup, and of their ancestors, read below `cgroup_root`.
// 0: no quota.
int CgroupProcessors(const std::string& proc_cgroup, const std::string& cgroup_root);

}  // namespace fewbit
