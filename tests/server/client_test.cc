// fewbit-client's parts against a small service of our own over loopback; tests/e2e runs the
// program against the real server.
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <functional>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>

#include "absl/flags/reflection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/client/client_flags.h"
#include "server/client/connection.h"
#include "server/client/generate.h"
#include "server/client/inspect.h"
#include "server/client/interrupt.h"
#include "server/client/load.h"
#include "server/client/load_report.h"

namespace fewbit::client {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Mode = ClientOptions::Mode;

// Before any thread exists, as in the program's main.
const bool kBlocked = (BlockInterrupts(), true);

// Streams "one two three " with one token per word, unless `behave` says otherwise.
class FakeService : public v1::GenerationService::Service {
 public:
  using Writer = grpc::ServerWriter<v1::GenerateResponse>;

  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              Writer* writer) override {
    {
      const std::lock_guard lock(mu_);
      requests_.push_back(*request);
    }
    if (behave) return behave(context, writer);
    v1::GenerateResponse message;
    message.mutable_prompt()->set_seed(7);
    message.mutable_prompt()->set_request_id("r1");
    int id = 0;
    for (const char* word : {"one ", "two ", "three "}) {
      message.set_text(word);
      message.add_token_ids(id++);
      writer->Write(message);
      message.Clear();
    }
    writer->Write(Last());
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest*,
                        v1::GenerateResponse* response) override {
    *response = Last();
    response->set_text("all at once");
    return grpc::Status::OK;
  }

  grpc::Status GetModelInfo(grpc::ServerContext*, const v1::GetModelInfoRequest*,
                            v1::GetModelInfoResponse* response) override {
    response->set_name("toy");
    response->set_vocab_size(1000);
    response->set_average_bits(2.5);
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    response->add_ids(17);
    response->add_pieces(request->text());
    return grpc::Status::OK;
  }

  grpc::Status Abort(grpc::ServerContext*, const v1::AbortRequest* request,
                     v1::AbortResponse* response) override {
    response->set_aborted(request->request_id() == "r1");
    return grpc::Status::OK;
  }

  std::vector<v1::GenerateRequest> requests() {
    const std::lock_guard lock(mu_);
    return requests_;
  }

  std::function<grpc::Status(grpc::ServerContext*, Writer*)> behave;

 private:
  static v1::GenerateResponse Last() {
    v1::GenerateResponse last;
    last.set_finish_reason(v1::FINISH_REASON_STOP_STRING);
    last.set_matched_stop_string("END\n");
    last.mutable_usage()->set_prompt_tokens(5);
    last.mutable_usage()->set_generated_tokens(3);
    return last;
  }

  std::mutex mu_;
  std::vector<v1::GenerateRequest> requests_;
};

class ClientTest : public ::testing::Test {
 protected:
  ClientTest() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    options_.address = "127.0.0.1:" + std::to_string(port);
    options_.request.set_text("prompt");
  }

  int Run() {
    const auto stub = v1::GenerationService::NewStub(Connect(options_));
    if (options_.mode == Mode::kLoad) return RunLoad(options_, out_, err_);
    if (options_.mode == Mode::kGenerate) return RunGenerate(options_, stub.get(), out_, err_);
    return RunInspect(options_, stub.get(), out_, err_);
  }

  FakeService service_;
  std::unique_ptr<grpc::Server> server_;
  ClientOptions options_;
  std::ostringstream out_, err_;
};

TEST_F(ClientTest, StreamsTextAndEndsWithUsage) {
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(out_.str(), "one two three \n");
  EXPECT_THAT(err_.str(),
              StartsWith("5 prompt tokens, 3 generated, ended by stop string \"END\\n\"\n"));
  EXPECT_THAT(err_.str(),
              AllOf(HasSubstr("first token after "), HasSubstr("seed 7, request r1\n")));
  EXPECT_EQ(service_.requests()[0].text(), "prompt");
}

TEST_F(ClientTest, QuietPrintsTheTextOnly) {
  options_.quiet = true;
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(err_.str(), "");
}

TEST_F(ClientTest, OneAnswerWithoutStreaming) {
  options_.stream = false;
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(out_.str(), "all at once\n");
}

TEST_F(ClientTest, JsonIsOneLinePerMessage) {
  options_.json = options_.quiet = true;
  EXPECT_EQ(Run(), 0);
  std::istringstream lines(out_.str());
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) all.push_back(line);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[1], R"({"text":"two ","token_ids":[1]})");
  EXPECT_THAT(all[3], HasSubstr(R"("finish_reason":"FINISH_REASON_STOP_STRING")"));
}

TEST_F(ClientTest, LogprobsAreATableBelowTheText) {
  service_.behave = [](grpc::ServerContext*, FakeService::Writer* writer) {
    v1::GenerateResponse message;
    message.set_text("a");
    v1::TokenDetail* detail = message.add_details();
    detail->set_token_id(12);
    detail->set_piece("\u2581a");
    detail->set_logprob(-0.5f);
    detail->set_rank(2);
    v1::TokenAlternative* top = detail->add_top();
    top->set_piece("b");
    top->set_logprob(-0.25f);
    writer->Write(message);
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(out_.str(), "a\n\n12 \"\u2581a\" logprob -0.5000 rank 2; likeliest: \"b\" -0.2500\n");
}

TEST_F(ClientTest, NoServerSaysWhereAndWhatToTry) {
  options_.address = "127.0.0.1:1";
  for (const Mode mode : {Mode::kGenerate, Mode::kInfo, Mode::kLoad}) {
    options_.mode = mode;
    options_.load.concurrency = 1;
    err_.str("");
    EXPECT_EQ(Run(), 1);
    EXPECT_THAT(err_.str(),
                AllOf(HasSubstr("no server answers at 127.0.0.1:1"),
                      HasSubstr("fewbit-server --model=DIR"), HasSubstr("--wait_ready")));
  }
}

TEST_F(ClientTest, ARefusalShowsCodeMessageAndPause) {
  service_.behave = [](grpc::ServerContext* context, FakeService::Writer*) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "250");
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "256 requests wait");
  };
  EXPECT_EQ(Run(), 1);
  EXPECT_THAT(err_.str(), AllOf(HasSubstr("RESOURCE_EXHAUSTED: 256 requests wait"),
                                HasSubstr("try again in 250 ms")));
  EXPECT_EQ(service_.requests().size(), 1u) << "a retry was hidden";
}

// Writes until the client is gone; a writer that nobody reads blocks, it does not spin.
grpc::Status WriteForever(grpc::ServerContext*, FakeService::Writer* writer) {
  v1::GenerateResponse message;
  message.set_text(std::string(1000, 'x'));
  while (writer->Write(message)) {
  }
  return grpc::Status::CANCELLED;
}

TEST_F(ClientTest, TheTimeoutEndsACall) {
  options_.timeout_seconds = 0.2;
  service_.behave = WriteForever;
  EXPECT_EQ(Run(), 1);
  EXPECT_THAT(err_.str(), HasSubstr("DEADLINE_EXCEEDED"));
}

TEST_F(ClientTest, CtrlCCancelsTheCall) {
  std::atomic<bool> server_saw_it = false;
  service_.behave = [&](grpc::ServerContext* context, FakeService::Writer* writer) {
    kill(getpid(), SIGINT);
    const grpc::Status status = WriteForever(context, writer);
    server_saw_it = context->IsCancelled();
    return status;
  };
  EXPECT_EQ(Run(), 130);
  EXPECT_THAT(err_.str(), HasSubstr("cancelled"));
  server_->Shutdown();  // waits for the handler
  EXPECT_TRUE(server_saw_it);
}

TEST_F(ClientTest, InspectionsPrintWhatTheServerSays) {
  options_.mode = Mode::kInfo;
  EXPECT_EQ(Run(), 0);
  EXPECT_THAT(out_.str(), AllOf(HasSubstr("model          toy\n"), HasSubstr("2.500 bits")));

  out_.str("");
  options_.mode = Mode::kTokenize;
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(out_.str(), "    17  prompt\n");

  out_.str("");
  options_.mode = Mode::kAbort;
  options_.abort_id = "r1";
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(out_.str(), "aborted r1\n");

  options_.mode = Mode::kDetokenize;  // which the fake does not serve
  EXPECT_EQ(Run(), 1);
  EXPECT_THAT(err_.str(), HasSubstr("UNIMPLEMENTED"));
}

TEST_F(ClientTest, AClosedLoopSendsEveryRequestOnceWithItsOwnPrompt) {
  options_.mode = Mode::kLoad;
  options_.load = {
      .concurrency = 4, .requests = 20, .warmup = 3, .prompt_tokens = 8, .connections = 2};
  options_.json = true;
  options_.request.clear_text();
  EXPECT_EQ(Run(), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("\"finished\": 20, \"rejected\": 0, \"failed\": {}"));
  std::set<std::string> prompts;
  for (const v1::GenerateRequest& request : service_.requests()) {
    EXPECT_TRUE(request.stopping().ignore_eos());
    EXPECT_EQ(request.token_ids().ids_size(), 8);
    prompts.insert(request.token_ids().SerializeAsString());
  }
  EXPECT_EQ(prompts.size(), 23u);
}

TEST_F(ClientTest, RejectionsAndFailuresAreCountedApart) {
  std::atomic<int> count = 0;
  service_.behave = [&](grpc::ServerContext*, FakeService::Writer*) {
    switch (count++ % 4) {
      case 0:
        return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
      case 1:
        return grpc::Status(grpc::StatusCode::INTERNAL, "oh");
      default:
        return grpc::Status::OK;
    }
  };
  options_.mode = Mode::kLoad;
  options_.load = {.concurrency = 3, .requests = 40, .warmup = 0};
  EXPECT_EQ(Run(), 1);
  EXPECT_THAT(out_.str(), HasSubstr("20 finished, 10 rejected, 10 INTERNAL in "));
  EXPECT_THAT(err_.str(), HasSubstr("the first failure was "));
}

TEST_F(ClientTest, PoissonArrivalsTakeAsLongAsTheRateSays) {
  options_.mode = Mode::kLoad;
  options_.load = {.concurrency = 8, .requests = 50, .warmup = 0, .rate = 500.0};
  options_.json = true;
  EXPECT_EQ(Run(), 0);
  EXPECT_THAT(out_.str(), HasSubstr("\"finished\": 50"));
  const size_t at = out_.str().find("\"seconds\": ");
  EXPECT_GT(std::stod(out_.str().substr(at + 11)), 0.02) << "50 arrivals at 500/s take about 0.1 s";
}

TEST_F(ClientTest, CtrlCEndsALoadWithTheNumbersSoFar) {
  std::atomic<int> count = 0;
  service_.behave = [&](grpc::ServerContext* context, FakeService::Writer* writer) {
    if (count++ < 5) return grpc::Status::OK;
    if (count == 6) kill(getpid(), SIGINT);
    return WriteForever(context, writer);
  };
  options_.mode = Mode::kLoad;
  options_.load = {.concurrency = 1, .requests = 100, .warmup = 0};
  EXPECT_EQ(Run(), 130);
  EXPECT_THAT(out_.str(), HasSubstr("5 finished, 0 rejected in "));
}

TEST_F(ClientTest, WaitReadyFollowsTheHealthService) {
  const std::string name = "fewbit.v1.GenerationService";
  auto* health = server_->GetHealthCheckService();
  ASSERT_NE(health, nullptr);
  {
    health->SetServingStatus(name, false);
    grpc::ClientContext context;
    const grpc::Status status = WaitReady(options_, 0.3, &context);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_THAT(status.error_message(), HasSubstr("is not ready"));
  }
  grpc::ClientContext context;
  std::thread ready([&] { health->SetServingStatus(name, true); });
  EXPECT_TRUE(WaitReady(options_, 30, &context).ok());
  ready.join();
}

TEST(WaitReadyTest, AServerThatIsNotThereIsWaitedFor) {
  grpc::ClientContext context;
  ClientOptions options;
  options.address = "127.0.0.1:1";
  const grpc::Status status = WaitReady(options, 0.3, &context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(status.error_message(), HasSubstr("127.0.0.1:1 did not answer after 0.3 seconds"));
}

absl::StatusOr<ClientOptions> Parse(std::vector<std::string> words, const std::string& input = "",
                                    bool terminal = false) {
  words.insert(words.begin(), "fewbit-client");
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  std::istringstream stream(input);
  const absl::FlagSaver saver;
  return ParseCommandLine(static_cast<int>(pointers.size()), pointers.data(), stream, terminal);
}

TEST(ClientFlagsTest, WhatIsNotGivenStaysUnset) {
  const auto options = Parse({"Once upon a time"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->mode, Mode::kGenerate);
  v1::GenerateRequest expected;
  expected.set_text("Once upon a time");
  expected.mutable_sampling();
  expected.mutable_stopping();
  expected.mutable_response();
  EXPECT_EQ(options->request.DebugString(), expected.DebugString());
}

TEST(ClientFlagsTest, EveryFieldHasAFlag) {
  const auto options = Parse({"--prompt_ids=1,415",
                              "--model=m",
                              "--request_id=r",
                              "--truncate_prompt_tokens=9",
                              "--temperature=0",
                              "--top_k=40",
                              "--top_p=0.9",
                              "--min_p=0.1",
                              "--repetition_penalty=1.1",
                              "--presence_penalty=0.2",
                              "--frequency_penalty=0.3",
                              "--seed=18446744073709551615",
                              "--logit_bias=5:-100,6:2.5",
                              "--max_new_tokens=10",
                              "--min_new_tokens=2",
                              "--stop=a",
                              "--stop_token_ids=7,8",
                              "--ignore_eos",
                              "--include_stop_string",
                              "--time_limit_ms=99",
                              "--echo",
                              "--logprobs",
                              "--top_logprobs=3",
                              "--prompt_logprobs"});
  ASSERT_TRUE(options.ok()) << options.status();
  // Every field of the request and of its parts is set: none can be forgotten when one is added to
  // the .proto.
  const std::function<void(const google::protobuf::Message&)> check =
      [&check](const google::protobuf::Message& message) {
        const auto* fields = message.GetDescriptor();
        for (int i = 0; i < fields->field_count(); ++i) {
          const auto* field = fields->field(i);
          if (field->name() == "text") continue;  // the other way to give a prompt
          const auto* reflection = message.GetReflection();
          if (field->is_repeated()) {
            EXPECT_GT(reflection->FieldSize(message, field), 0) << field->full_name();
          } else {
            EXPECT_TRUE(reflection->HasField(message, field)) << field->full_name();
            if (field->message_type() != nullptr) check(reflection->GetMessage(message, field));
          }
        }
      };
  check(options->request);
  EXPECT_EQ(options->request.sampling().seed(), UINT64_MAX);
  EXPECT_FLOAT_EQ(options->request.sampling().logit_bias().at(6), 2.5f);
}

TEST(ClientFlagsTest, ThePromptMayComeThroughAPipe) {
  EXPECT_EQ(Parse({}, "line one\nline two\n\n")->request.text(), "line one\nline two\n");
  EXPECT_EQ(Parse({"--tokenize"}, "x")->request.text(), "x");
  EXPECT_THAT(Parse({}, "", /*terminal=*/true).status().message(), HasSubstr("no prompt"));
  EXPECT_TRUE(Parse({"--info"}, "", /*terminal=*/true).ok());
}

TEST(ClientFlagsTest, NonsenseIsRefused) {
  for (const auto& [words, message] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"two", "prompts"}, "one prompt, not 2"},
           {{"--prompt_ids=1,x"}, "'x' is not a token id"},
           {{"--prompt_ids=1", "text"}, "exclude each other"},
           {{"--info", "--tokenize"}, "--info and --tokenize exclude each other"},
           {{"--info", "text"}, "unexpected argument 'text'"},
           {{"--logit_bias=5", "text"}, "'5' is not ID:BIAS"},
           {{"--concurrency=-1", "text"}, "--concurrency is -1"},
           {{"--timeout=-1", "text"}, "--timeout"}}) {
    const auto options = Parse(words);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(options.status().message(), HasSubstr(message));
  }
}

TEST(ClientFlagsTest, StopsMayBeRepeatedAndListed) {
  EXPECT_THAT(SplitStops(R"(one,two\,three,\n\n,back\\slash)"),
              ElementsAre("one", "two,three", "\n\n", "back\\slash"));
  EXPECT_THAT(SplitStops(""), ElementsAre());
  const auto options = Parse({"--stop=a,b", "--stop", "c d", "-stop=e", "--", "--stop=f"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->request.stopping().stop_strings(), ElementsAre("a", "b", "c d", "e"));
  EXPECT_EQ(options->request.text(), "--stop=f");
}

TEST(ClientFlagsTest, HelpNamesEveryFlagGroup) {
  EXPECT_THAT(HelpText(), AllOf(HasSubstr("--wait_ready "), HasSubstr("--top_logprobs "),
                                HasSubstr("(localhost:8033)"), HasSubstr("Exit status")));
}

TEST(LoadReportTest, PercentilesAreNearestRank) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Distribution d = Summarize(values);
  EXPECT_EQ(d.mean, 50.5);
  EXPECT_EQ(d.p50, 50);
  EXPECT_EQ(d.p90, 90);
  EXPECT_EQ(d.p99, 99);
  EXPECT_EQ(d.max, 100);
  EXPECT_EQ(Summarize({3.0}).p50, 3.0);
  EXPECT_EQ(Summarize({}).max, 0.0);
}

TEST(LoadReportTest, TimesFollowTheirDefinitions) {
  RequestRecord record;
  record.due = 1.0;
  record.sent = 1.5;
  record.token_times = {2.0, 2.5, 4.0};
  record.ended = 4.5;
  record.prompt_tokens = 10;
  record.generated_tokens = 5;
  RequestRecord rejected;
  rejected.due = rejected.sent = rejected.ended = 2.0;
  rejected.error = "RESOURCE_EXHAUSTED";
  const LoadReport report = MakeReport({record, rejected});
  EXPECT_EQ(report.ttft.p50, 1.0);
  EXPECT_EQ(report.itl.p50, 0.5);
  EXPECT_EQ(report.itl.max, 1.5);
  EXPECT_EQ(report.tpot.p50, 0.5);
  EXPECT_EQ(report.end_to_end.p50, 3.5);
  EXPECT_EQ(report.max_late, 0.5);
  EXPECT_EQ(report.seconds, 3.0);
  EXPECT_DOUBLE_EQ(report.output_tokens_per_second, 5 / 3.0);
  EXPECT_EQ(report.finished, 1);
  EXPECT_EQ(report.rejected, 1);
}

}  // namespace
}  // namespace fewbit::client
