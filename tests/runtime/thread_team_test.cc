#include "runtime/thread_team.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace fewbit {
namespace {

class TeamSizes : public ::testing::TestWithParam<int> {};

TEST_P(TeamSizes, EveryRankRunsOnceAndRunWaitsForAll) {
  ThreadTeam team(GetParam());
  ASSERT_EQ(team.size(), GetParam());
  std::vector<int> calls(team.size(), 0);  // plain ints: Run must order them
  for (int i = 0; i < 300; ++i) {
    team.Run([&](int rank) { ++calls[rank]; });
    for (const int n : calls) ASSERT_EQ(n, i + 1);
  }
}

TEST_P(TeamSizes, BarrierSeparatesPhases) {
  ThreadTeam team(GetParam());
  const int size = team.size();
  std::vector<int> value(size, 0), seen(size, 0);
  team.Run([&](int rank) {
    for (int phase = 1; phase <= 200; ++phase) {
      value[rank] = phase;
      team.Barrier();
      seen[rank] += value[(rank + 1) % size] == phase;
      team.Barrier();
    }
  });
  for (const int n : seen) EXPECT_EQ(n, 200);
}

INSTANTIATE_TEST_SUITE_P(Threads, TeamSizes, ::testing::Values(1, 2, 3, 8));

TEST(ThreadTeam, WakesFromALongSleep) {
  ThreadTeam team(4);
  std::atomic<int> calls{0};
  for (int i = 0; i < 3; ++i) {
    // Longer than any spinning: the threads are blocked when Run comes.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    team.Run([&](int rank) {
      if (rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      team.Barrier();
      ++calls;
    });
  }
  EXPECT_EQ(calls, 12);
}

// Threads that wait long must block: a team that has nothing to do uses no processor time to speak
// of.
TEST(ThreadTeam, IdleThreadsBlock) {
  ThreadTeam team(4);
  team.Run([](int) {});
  const auto used = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double before = used();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  // Three spinning threads would have used at least one processor the whole time.
  EXPECT_LT(used() - before, 0.15);
}

TEST(ShareOf, CoversEverythingOnceInWholeUnits) {
  for (const int total : {0, 1, 15, 16, 17, 100, 512, 8193}) {
    for (const int unit : {1, 16}) {
      for (const int size : {1, 2, 3, 7, 64}) {
        int at = 0, largest = 0, smallest = total + unit;
        for (int rank = 0; rank < size; ++rank) {
          const Share share = ShareOf(total, unit, rank, size);
          EXPECT_EQ(share.begin, at);
          EXPECT_TRUE(share.begin % unit == 0 || share.begin == total);
          largest = std::max(largest, share.end - share.begin);
          smallest = std::min(smallest, share.end - share.begin);
          at = share.end;
        }
        EXPECT_EQ(at, total);
        EXPECT_LE(largest - smallest, 2 * unit);
      }
    }
  }
}

class Cgroup : public ::testing::Test {
 protected:
  Cgroup()
      : root_(std::filesystem::temp_directory_path() /
              ("fewbit_cgroup_" + std::to_string(getpid()))) {}
  ~Cgroup() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  int Processors(const std::string& proc) { return CgroupProcessors(proc, root_.string()); }

  const std::filesystem::path root_;
};

TEST_F(Cgroup, Version2TakesTheTightestQuotaOnThePath) {
  Write("a/cpu.max", "350000 100000\n");
  Write("a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(Processors("0::/a/b\n"), 4);
  Write("a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(Processors("0::/a/b\n"), 1);
  Write("cpu.max", "200000 100000\n");  // what a container sees as its root
  EXPECT_EQ(Processors("0::/\n"), 2);
  EXPECT_EQ(Processors("0::/gone\n"), 2);
}

TEST_F(Cgroup, Version1ReadsTheCpuController) {
  Write("cpu,cpuacct/box/cpu.cfs_quota_us", "150000\n");
  Write("cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Processors("4:memory:/box\n3:cpu,cpuacct:/box\n"), 2);
  Write("cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(Processors("3:cpu,cpuacct:/box\n"), 0);
}

TEST_F(Cgroup, NoQuotaAndNonsense) {
  EXPECT_EQ(Processors("0::/a\n"), 0);
  EXPECT_EQ(Processors(""), 0);
  EXPECT_EQ(Processors("nonsense\n:\n::\n"), 0);
  Write("a/cpu.max", "much 100000\n");
  EXPECT_EQ(Processors("0::/a\n"), 0);
  Write("a/cpu.max", "100000 0\n");
  EXPECT_EQ(Processors("0::/a\n"), 0);
}

TEST(AvailableProcessors, IsSane) {
  EXPECT_GE(AvailableProcessors(), 1);
  EXPECT_LE(AvailableProcessors(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace fewbit
