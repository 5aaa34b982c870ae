// A libnvidia-ml.so.1 of the tests' own, with one GPU whose sensors say what the test wants.
#pragma once

#include <atomic>

namespace fewbit::testing {

struct FakeGpu {
  std::atomic<int> init_result{0};            // of nvmlInit
  std::atomic<bool> only_memory{false};       // everything else is not supported
  std::atomic<bool> hang{false};              // reading the memory waits until this is false again
  std::atomic<int> waiting{0};                // readers that hang
  std::atomic<int> open{0};                   // nvmlInit less nvmlShutdown
  std::atomic<unsigned> utilization{0};       // percent; of the memory half of it
  std::atomic<unsigned> power{0};             // mW
  std::atomic<unsigned> temperature{0};       // degrees Celsius
  std::atomic<unsigned> clock{0};             // MHz
  std::atomic<unsigned long long> energy{0};  // mJ
  std::atomic<unsigned long long> memory_used{0};
  std::atomic<unsigned long long> ecc_errors{0};
  std::atomic<unsigned long long> throttle_reasons{0};
};

inline constexpr char kFakePciBusId[] = "0000:18:00.0";
inline constexpr unsigned long long kFakeMemory = 80ull << 30;
inline constexpr unsigned kFakePowerLimit = 700'000;  // mW

// The GPU of the library that a program links or opens.
FakeGpu& TheFakeGpu();

}  // namespace fewbit::testing
