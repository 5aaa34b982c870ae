// The standard services beside ours: health with its Watch, reflection, and /metrics.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/server/server_harness.h"
#include "tests/server/wire.pb.h"

namespace fewbit::testing {
namespace {

using grpc::internal::RpcMethod;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

HealthCheckResponse::ServingStatus CheckOn(const std::shared_ptr<grpc::Channel>& channel,
                                           const std::string& service,
                                           grpc::Status* status = nullptr) {
  HealthCheckRequest request;
  HealthCheckResponse response;
  request.set_service(service);
  grpc::ClientContext context;
  const RpcMethod method("/grpc.health.v1.Health/Check", RpcMethod::NORMAL_RPC, channel);
  const grpc::Status result =
      grpc::internal::BlockingUnaryCall(channel.get(), method, &context, request, &response);
  if (status != nullptr) *status = result;
  return response.status();
}

HealthCheckResponse::ServingStatus Check(Harness& harness, const std::string& service,
                                         grpc::Status* status = nullptr) {
  return CheckOn(harness.channel(), service, status);
}

class Watch {
 public:
  Watch(Harness* harness, const std::string& service) : Watch(harness->NewChannel(), service) {}
  Watch(std::shared_ptr<grpc::Channel> channel, const std::string& service)
      : channel_(std::move(channel)),
        method_("/grpc.health.v1.Health/Watch", RpcMethod::SERVER_STREAMING, channel_) {
    HealthCheckRequest request;
    request.set_service(service);
    reader_.reset(grpc::internal::ClientReaderFactory<HealthCheckResponse>::Create(
        channel_.get(), method_, &context_, request));
  }
  ~Watch() {
    context_.TryCancel();
    reader_->Finish().IgnoreError();
  }
  // Blocks until the next change.
  HealthCheckResponse::ServingStatus Next() {
    HealthCheckResponse response;
    EXPECT_TRUE(reader_->Read(&response));
    return response.status();
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  RpcMethod method_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader_;
};

TEST(HealthTest, ServingFromTheStart) {
  Harness harness;
  EXPECT_EQ(Check(harness, ""), HealthCheckResponse::SERVING);
  EXPECT_EQ(Check(harness, kGenerationServiceName), HealthCheckResponse::SERVING);
  grpc::Status status;
  Check(harness, "fewbit.v1.Nothing", &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(HealthTest, WatchStreamsTheDrainAndLivenessStays) {
  Harness harness({.gate_closed = true});
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(" the sun"));
  harness.executor().WaitUntilHeld();
  Watch ready(&harness, kGenerationServiceName);
  EXPECT_EQ(ready.Next(), HealthCheckResponse::SERVING);
  std::thread drain([&] { harness.server().Drain(absl::Now() + absl::Seconds(30)); });
  EXPECT_EQ(ready.Next(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Check(harness, ""), HealthCheckResponse::SERVING) << "a draining server is alive";
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(reader.get()).status.ok());
  drain.join();  // the open watch does not hold it up for long
}

TEST(HealthTest, AFailedEngineIsNeitherReadyNorAlive) {
  Harness harness;
  Watch ready(&harness, kGenerationServiceName);
  Watch live(&harness, "");
  EXPECT_EQ(ready.Next(), HealthCheckResponse::SERVING);
  EXPECT_EQ(live.Next(), HealthCheckResponse::SERVING);
  harness.executor().FailNextStep(absl::InternalError("device lost"));
  EXPECT_EQ(Stream(harness.stub(), harness.Saying(" x")).status.error_code(),
            grpc::StatusCode::INTERNAL);
  EXPECT_EQ(ready.Next(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(live.Next(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Stream(harness.stub(), harness.Saying(" x")).status.error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(harness.Count(Outcome::kEngineFailed), 1u);
}

TEST(HealthTest, AStalledEngineIsNoticedAndForgiven) {
  HarnessOptions options{.gate_closed = true};
  options.config.stall_seconds = 0.1;
  Harness harness(options);
  Watch ready(&harness, kGenerationServiceName);
  EXPECT_EQ(ready.Next(), HealthCheckResponse::SERVING);
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(" the sun"));
  EXPECT_EQ(ready.Next(), HealthCheckResponse::NOT_SERVING);
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(reader.get()).status.ok());
  EXPECT_EQ(ready.Next(), HealthCheckResponse::SERVING);
}

TEST(HealthPortTest, SaysTheSameAndServesNothingElse) {
  HarnessOptions options{.gate_closed = true};
  options.config.health_port = 0;
  Harness harness(options);
  const auto channel =
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", harness.server().health_port()),
                          grpc::InsecureChannelCredentials());
  EXPECT_EQ(CheckOn(channel, ""), HealthCheckResponse::SERVING);
  EXPECT_EQ(CheckOn(channel, kGenerationServiceName), HealthCheckResponse::SERVING);
  v1::GenerationService::Stub stub(channel);
  EXPECT_EQ(Stream(stub, harness.Saying(" x")).status.error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  grpc::ClientContext reflection;
  const RpcMethod list("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                       RpcMethod::NORMAL_RPC, channel);
  ReflectionResponse response;
  EXPECT_EQ(grpc::internal::BlockingUnaryCall(channel.get(), list, &reflection, ReflectionRequest(),
                                              &response)
                .error_code(),
            grpc::StatusCode::UNIMPLEMENTED);

  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(" the sun"));
  harness.executor().WaitUntilHeld();
  Watch ready(channel, kGenerationServiceName);
  EXPECT_EQ(ready.Next(), HealthCheckResponse::SERVING);
  std::thread drain([&] { harness.server().Drain(absl::Now() + absl::Seconds(30)); });
  EXPECT_EQ(ready.Next(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(CheckOn(channel, ""), HealthCheckResponse::SERVING) << "a draining server is alive";
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(reader.get()).status.ok());
  drain.join();
}

TEST(HealthPortTest, OffUnlessAskedFor) {
  Harness harness;
  EXPECT_EQ(harness.server().health_port(), -1);
}

ReflectionResponse Reflect(Harness& harness, const ReflectionRequest& request) {
  grpc::ClientContext context;
  const RpcMethod method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                         RpcMethod::BIDI_STREAMING, harness.channel());
  std::unique_ptr<grpc::ClientReaderWriter<ReflectionRequest, ReflectionResponse>> stream(
      grpc::internal::ClientReaderWriterFactory<ReflectionRequest, ReflectionResponse>::Create(
          harness.channel().get(), method, &context));
  EXPECT_TRUE(stream->Write(request));
  stream->WritesDone();
  ReflectionResponse response;
  EXPECT_TRUE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
  return response;
}

TEST(ReflectionTest, ListsServicesAndGivesTheProto) {
  Harness harness;
  ReflectionRequest list;
  list.set_list_services("*");
  std::vector<std::string> names;
  const ReflectionResponse services = Reflect(harness, list);
  for (const auto& service : services.list_services_response().service()) {
    names.push_back(service.name());
  }
  EXPECT_THAT(names,
              AllOf(Contains("fewbit.v1.GenerationService"), Contains("grpc.health.v1.Health"),
                    Contains("grpc.reflection.v1alpha.ServerReflection")));
  ReflectionRequest file;
  file.set_file_containing_symbol("fewbit.v1.GenerationService");
  const ReflectionResponse found = Reflect(harness, file);
  ASSERT_GT(found.file_descriptor_response().file_descriptor_proto_size(), 0);
  google::protobuf::FileDescriptorProto proto;
  ASSERT_TRUE(proto.ParseFromString(found.file_descriptor_response().file_descriptor_proto(0)));
  EXPECT_EQ(proto.package(), "fewbit.v1");
}

TEST(MetricsTest, FamiliesAreThereAndAddUp) {
  Harness harness({.metrics = true});
  uint64_t tokens = 0;
  for (int i = 0; i < 3; ++i) {
    tokens += Stream(harness.stub(), harness.Saying(" the sun was high")).token_ids.size();
  }
  v1::GenerateRequest bad = harness.Saying(" x");
  bad.mutable_sampling()->set_temperature(-1);
  EXPECT_FALSE(Stream(harness.stub(), bad).status.ok());
  harness.ExpectIdle();

  const std::string text = Scrape(harness.server().metrics_port());
  EXPECT_THAT(text, HasSubstr("200 OK"));
  for (const char* family : {"requests_total",
                             "requests_running",
                             "requests_waiting",
                             "queue_seconds",
                             "time_to_first_token_seconds",
                             "inter_token_seconds",
                             "time_per_output_token_seconds",
                             "request_seconds",
                             "request_prompt_tokens",
                             "request_generated_tokens",
                             "tokens_total",
                             "step_batch_size",
                             "step_tokens",
                             "step_seconds",
                             "kv_blocks",
                             "kv_blocks_used",
                             "kv_usage_ratio",
                             "build_info",
                             "quantization_info",
                             "weight_bits"}) {
    EXPECT_THAT(text, HasSubstr("# TYPE fewbit_" + std::string(family) + " ")) << family;
  }
  const auto value = [&](const std::string& series) {
    return MetricValue(text, "fewbit_" + series);
  };
  EXPECT_EQ(value("requests_total{code=\"OK\",reason=\"eos\",model=\"demo\"}"), 3);
  EXPECT_EQ(value("requests_total{code=\"INVALID_ARGUMENT\",reason=\"invalid\",model=\"demo\"}"),
            1);
  EXPECT_EQ(value("tokens_total{kind=\"generated\",outcome=\"delivered\",model=\"demo\"}"),
            static_cast<double>(tokens));
  EXPECT_EQ(value("request_generated_tokens_sum{model=\"demo\"}"), static_cast<double>(tokens));
  EXPECT_EQ(value("request_generated_tokens_count{model=\"demo\"}"), 3);
  EXPECT_EQ(value("time_to_first_token_seconds_count{model=\"demo\"}"), 3);
  EXPECT_EQ(value("inter_token_seconds_count{model=\"demo\"}"), static_cast<double>(tokens - 3));
  EXPECT_EQ(value("step_seconds_count{model=\"demo\"}"), value("steps_total{model=\"demo\"}"));
  EXPECT_EQ(value("step_tokens_sum{model=\"demo\"}"),
            value("step_tokens_total{phase=\"prefill\",model=\"demo\"}") +
                value("step_tokens_total{phase=\"decode\",model=\"demo\"}"));
  EXPECT_EQ(value("kv_blocks{model=\"demo\"}"), 4096);
  EXPECT_EQ(value("kv_blocks_used{model=\"demo\"}"), 0);
  EXPECT_EQ(value("requests_running{model=\"demo\"}"), 0);
}

TEST(MetricsTest, AScrapeDoesNotWaitForTheStep) {
  Harness harness({.metrics = true, .gate_closed = true});
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(" the sun"));
  harness.executor().WaitUntilHeld();
  const std::string text = Scrape(harness.server().metrics_port());  // would hang
  EXPECT_EQ(MetricValue(text, "fewbit_requests_running{model=\"demo\"}"), 1);
  EXPECT_GT(MetricValue(text, "fewbit_kv_blocks_used{model=\"demo\"}"), 0);
  EXPECT_GT(MetricValue(text, "fewbit_kv_usage_ratio{model=\"demo\"}"), 0);
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(reader.get()).status.ok());
}

absl::Status StartOn(int32_t port, int32_t metrics_port, int32_t health_port = -1) {
  FakeExecutor executor;
  ServedModel model;
  model.device = executor.info();
  Config config;
  config.port = port;
  config.metrics_port = metrics_port;
  config.health_port = health_port;
  return Server::Start(config, model, &DemoTokenizer(), &executor).status();
}

TEST(PortTest, InUseIsUnavailableAndNamesThePort) {
  Harness harness({.metrics = true});
  const absl::Status grpc_port = StartOn(harness.server().port(), -1);
  EXPECT_EQ(grpc_port.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(grpc_port.message()),
              AllOf(HasSubstr(std::to_string(harness.server().port())), HasSubstr("--port")));
  const absl::Status metrics_port = StartOn(0, harness.server().metrics_port());
  EXPECT_EQ(metrics_port.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(metrics_port.message()),
              AllOf(HasSubstr(std::to_string(harness.server().metrics_port())),
                    HasSubstr("--metrics_port")));
  const absl::Status health_port = StartOn(0, -1, harness.server().port());
  EXPECT_EQ(health_port.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      std::string(health_port.message()),
      AllOf(HasSubstr(std::to_string(harness.server().port())), HasSubstr("--health_port")));
  EXPECT_TRUE(Stream(harness.stub(), harness.Saying(" x")).status.ok()) << "the first one lives";
}

}  // namespace
}  // namespace fewbit::testing
