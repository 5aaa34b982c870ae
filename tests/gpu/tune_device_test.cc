// Which operators of tuning a --device text gives, on any machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/device.h"
#include "runtime/tune/create_ops.h"

namespace fewbit::tune {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(CreateOps, CpuWithSoManyThreads) {
  const auto ops = CreateOps("cpu", 1);
  ASSERT_TRUE(ops.ok()) << ops.status();
  EXPECT_THAT((*ops)->device(), StartsWith("cpu: 1 thread"));
}

TEST(CreateOps, AutoIsWhatTheDeviceTableSays) {
  const auto resolved = ResolveDevice("auto");
  ASSERT_TRUE(resolved.ok());
  const auto ops = CreateOps("auto", 1);
  ASSERT_TRUE(ops.ok()) << ops.status();
  EXPECT_THAT((*ops)->device(), StartsWith(*resolved));
}

TEST(CreateOps, RefusesWhatIsNoDevice) {
  const auto ops = CreateOps("tpu", 1);
  ASSERT_EQ(ops.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ops.status().message(), HasSubstr("tpu"));
}

TEST(CreateOps, SaysWhyThereIsNoSuchGpu) {
  const auto ops = CreateOps("cuda:4096", 1);
  ASSERT_EQ(ops.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(ops.status().message(), HasSubstr("cuda:4096"));
}

}  // namespace
}  // namespace fewbit::tune
