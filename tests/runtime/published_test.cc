#include "runtime/published.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace fewbit {
namespace {

// Its fields are all functions of the first: a torn copy shows.
struct Numbers {
  uint64_t value = 0;
  int32_t low = 0;
  double half = 0.0;
  uint64_t square = 0;
  bool odd = false;

  static Numbers Of(uint64_t value) {
    return {value, static_cast<int32_t>(value & 0xffff), static_cast<double>(value) / 2,
            value * value, value % 2 == 1};
  }
  bool Whole() const {
    const Numbers expected = Of(value);
    return low == expected.low && half == expected.half && square == expected.square &&
           odd == expected.odd;
  }
};

TEST(PublishedTest, ReadsWhatWasWritten) {
  Published<Numbers> published(Numbers::Of(3));
  EXPECT_EQ(published.Read().value, 3u);
  published.Write(Numbers::Of(70001));
  EXPECT_EQ(published.Read().value, 70001u);
  EXPECT_TRUE(published.Read().Whole());
}

TEST(PublishedTest, CopiesAreNeverTornAndNeverGoBack) {
  Published<Numbers> published(Numbers::Of(0));
  std::atomic<int> ready{0};
  std::atomic<bool> done{false};
  const auto read = [&] {
    uint64_t last = 0;
    ++ready;
    while (!done) {
      const Numbers numbers = published.Read();
      ASSERT_TRUE(numbers.Whole());
      ASSERT_GE(numbers.value, last);
      last = numbers.value;
    }
  };
  std::thread first(read);
  std::thread second(read);
  while (ready < 2) std::this_thread::yield();
  for (uint64_t value = 1; value <= 300000; ++value) published.Write(Numbers::Of(value));
  done = true;
  first.join();
  second.join();
  EXPECT_EQ(published.Read().value, 300000u);
}

}  // namespace
}  // namespace fewbit
