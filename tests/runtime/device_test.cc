// From the text of --device to an executor, on a machine that may have a GPU or not.
#include "runtime/device.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/random_model.h"

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::RandomModel;
using testing::SmallSpec;
using ::testing::StartsWith;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(DeviceTest, NamesAreCheckedWithoutLookingAtTheMachine) {
  for (const char* name : {"auto", "cpu", "cuda", "cuda:0", "cuda:15"}) {
    EXPECT_TRUE(CheckDeviceName(name).ok()) << name;
  }
  for (const char* name : {"", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:1x", "cuda1", "CUDA"}) {
    EXPECT_EQ(CheckDeviceName(name).code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(ResolveDevice(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(Message(CheckDeviceName(name)), HasSubstr("'" + std::string(name) + "'"));
  }
}

TEST(DeviceTest, AutoIsWhatIsThere) {
  EXPECT_EQ(*ResolveDevice("cpu"), "cpu");
  const auto gpu = ResolveDevice("cuda");
  const auto any = ResolveDevice("auto");
  ASSERT_TRUE(any.ok()) << any.status();
  EXPECT_EQ(*any, gpu.ok() ? *gpu : "cpu");
  const absl::Status none = ResolveDevice("cuda:99").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(none), StartsWith("device cuda:99: "));
}

TEST(DeviceTest, TheCpuTakesWhatAServerSays) {
  const auto source = RandomModel(SmallSpec(), 1);
  DeviceOptions options;
  options.device = "cpu";
  options.max_sequences = 3;
  options.max_step_tokens = 48;
  options.max_context = 64;
  options.num_blocks = 9;
  options.threads = 1;
  const auto executor = CreateExecutor(&source->model, options);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const ExecutorInfo& info = (*executor)->info();
  EXPECT_THAT(info.device, AllOf(StartsWith("cpu: "), HasSubstr("1 thread")));
  EXPECT_EQ(info.max_sequences, 3);
  EXPECT_EQ(info.max_step_tokens, 48);
  EXPECT_EQ(info.max_context, 64);
  EXPECT_EQ(info.num_blocks, 9);
  EXPECT_EQ(info.max_steps_in_flight, 1);
}

TEST(DeviceTest, WhatADeviceCannotDoIsRefused) {
  const auto source = RandomModel(SmallSpec(), 1);
  const auto refusal = [&](const DeviceOptions& options) {
    const absl::Status status = CreateExecutor(&source->model, options).status();
    EXPECT_THAT(status.code(),
                AnyOf(absl::StatusCode::kInvalidArgument, absl::StatusCode::kUnavailable));
    return Message(status);
  };
  DeviceOptions options;
  options.device = "cpu";
  options.kv_type = "i8";
  EXPECT_THAT(refusal(options), AllOf(HasSubstr("kv_type is i8"), HasSubstr("f16, f32")));
  options.kv_type = "f16";
  options.lm_head_bits = 8;
  EXPECT_THAT(refusal(options), HasSubstr("lm_head_bits is 8"));
  options.lm_head_bits = 0;
  options.max_context = 1 << 20;
  EXPECT_THAT(refusal(options), HasSubstr("max_context is 1048576"));
  options.device = "cuda:99";
  EXPECT_THAT(refusal(options), StartsWith("device cuda:99: "));
}

}  // namespace
}  // namespace fewbit
