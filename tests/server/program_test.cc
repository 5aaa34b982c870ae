// fewbit-server as a process, on the bundled demo model: what it prints, how it refuses to start,
// how it stops.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "fewbit/v1/generation.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "tests/server/certificates.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kModel = FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m";

// A started program; stdout and stderr in one text.
class Program {
 public:
  explicit Program(std::vector<std::string> arguments, bool obey_permissions = false) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
    arguments.insert(arguments.begin(), FEWBIT_SERVER_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], 1);
      dup2(ends[1], 2);
      if (obey_permissions && getuid() == 0) {  // what lets root read everything is lost at exec
        prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
        prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0);
      }
      execv(argv[0], argv.data());
      _exit(98);
    }
    close(ends[1]);
    output_fd_ = ends[0];
  }
  ~Program() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    close(output_fd_);
  }

  // Reads until the output has `text`, or ends.
  bool WaitForOutput(const std::string& text) {
    while (output_.find(text) == std::string::npos) {
      if (!ReadMore()) return false;
    }
    return true;
  }
  void Signal(int number) { kill(pid_, number); }
  // Exit code, or 128 + the signal that ended it.
  int Wait() {
    while (ReadMore()) {
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  const std::string& output() const { return output_; }
  // The number behind `text`.
  int NumberAfter(const std::string& text) {
    if (!WaitForOutput(text)) return -1;
    while (output_.find('\n', output_.find(text)) == std::string::npos && ReadMore()) {
    }
    return std::atoi(output_.c_str() + output_.find(text) + text.size());
  }

 private:
  bool ReadMore() {
    char buffer[4096];
    const ssize_t n = read(output_fd_, buffer, sizeof(buffer));
    if (n > 0) output_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }

  pid_t pid_ = -1;
  int output_fd_ = -1;
  std::string output_;
};

std::vector<std::string> Serve() {
  return {"--model=" + kModel, "--device=cpu", "--port=0",
          "--metrics_port=0",  "--threads=1",  "--kv_memory=64M"};
}

TEST(ProgramTest, ServesDrainsOnSigtermAndExitsWithZero) {
  Program program(Serve());
  const int port = program.NumberAfter("gRPC on 127.0.0.1:");
  ASSERT_GT(port, 0) << program.output();
  const int metrics_port = program.NumberAfter("metrics on http://127.0.0.1:");
  const std::string metrics = Scrape(metrics_port);
  EXPECT_THAT(metrics, HasSubstr("fewbit_build_info"));
  double started = 0.0;
  for (const char* phase : {"model", "tokenizer", "executor", "warm_up"}) {
    const double seconds = MetricValue(
        metrics,
        absl::StrCat("fewbit_startup_seconds{phase=\"", phase, "\",model=\"fewbit-demo-29m\"}"));
    EXPECT_GE(seconds, 0.0) << phase;
    started += seconds;
  }
  EXPECT_GT(started, 0.0);
  EXPECT_EQ(MetricValue(metrics, "fewbit_steps_total{model=\"fewbit-demo-29m\"}"), 0)
      << "the warm-up is nobody's";
  EXPECT_THAT(program.output(), HasSubstr("device "));
  const auto channel =
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials());
  const auto stub = v1::GenerationService::NewStub(channel);
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.set_model("fewbit-demo-29m");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_new_tokens(4);
  const Collected stream = Stream(*stub, request);
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.token_ids.size(), 4u);
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0);
  EXPECT_THAT(program.output(), AllOf(HasSubstr("draining"), HasSubstr("drained in")));
  EXPECT_THAT(program.output(), Not(HasSubstr("Once upon"))) << "no prompt in the log";
}

TEST(ProgramTest, CheckSaysWhatItWouldServeAndOpensNoPort) {
  Program first(Serve());
  const int port = first.NumberAfter("gRPC on 127.0.0.1:");
  ASSERT_GT(port, 0) << first.output();
  Program check({"--model=" + kModel, "--port=" + std::to_string(port), "--metrics_port=-1",
                 "--kv_memory=64M", "--max_context=512", "--device=cpu", "--check"});
  EXPECT_EQ(check.Wait(), 0) << check.output();
  EXPECT_THAT(
      check.output(),
      AllOf(HasSubstr("model fewbit-demo-29m (llama, 8 layers"),
            HasSubstr("device cpu, for --device=cpu"), HasSubstr("context 512 tokens"),
            HasSubstr("warmed up: the canary's answers are 0.00"), HasSubstr("from the original's"),
            HasSubstr("would serve: gRPC on 127.0.0.1:" + std::to_string(port)),
            Not(HasSubstr("metrics"))));
}

TEST(ProgramTest, ASecondSignalEndsAtOnce) {
  std::vector<std::string> arguments = Serve();
  arguments.push_back("--drain_seconds=600");
  Program program(arguments);
  const int port = program.NumberAfter("gRPC on 127.0.0.1:");
  ASSERT_GT(port, 0) << program.output();
  const auto stub = v1::GenerationService::NewStub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  // A call that never reads more than the beginning keeps the drain waiting.
  v1::GenerateRequest request;
  request.set_text("Once");
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->set_max_new_tokens(2000);
  request.mutable_response()->set_top_logprobs(20);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  program.Signal(SIGINT);
  ASSERT_TRUE(program.WaitForOutput("draining"));
  program.Signal(SIGINT);
  EXPECT_EQ(program.Wait(), 128 + SIGINT);
  context.TryCancel();
  EXPECT_FALSE(reader->Finish().ok());
}

// Starts, fails, and says one line with all of `said`.
void ExpectRefusal(const std::vector<std::string>& arguments, const std::vector<std::string>& said,
                   bool obey_permissions = false) {
  Program program(arguments, obey_permissions);
  EXPECT_EQ(program.Wait(), 1) << program.output();
  const size_t line = program.output().find("fewbit-server: ");
  ASSERT_NE(line, std::string::npos) << program.output();
  const std::string message = program.output().substr(line);
  EXPECT_EQ(message.find('\n'), message.size() - 1) << "one line: " << message;
  for (const std::string& text : said) EXPECT_THAT(message, HasSubstr(text));
}

TEST(ProgramTest, PortsInUse) {
  Program first(Serve());
  const int port = first.NumberAfter("gRPC on 127.0.0.1:");
  const int metrics_port = first.NumberAfter("metrics on http://127.0.0.1:");
  ASSERT_GT(port, 0) << first.output();
  const std::string model = "--model=" + kModel;
  ExpectRefusal({model, "--port=" + std::to_string(port), "--metrics_port=-1", "--kv_memory=64M"},
                {"cannot listen on 127.0.0.1:" + std::to_string(port), "--port"});
  ExpectRefusal(
      {model, "--port=0", "--metrics_port=" + std::to_string(metrics_port), "--kv_memory=64M"},
      {"cannot listen on 127.0.0.1:" + std::to_string(metrics_port), "--metrics_port"});
}

TEST(ProgramTest, RefusesABadCommandLine) {
  ExpectRefusal({}, {"--model is missing"});
  ExpectRefusal({"--model=" + kModel, "--device=cuda:99"}, {"--device=cuda:99: "});
  ExpectRefusal({"--model=" + kModel, "--device=cpu", "--lm_head_bits=8"},
                {"--lm_head_bits=8", "is for GPUs", "--device=cpu"});
  ExpectRefusal({"--model=" + kModel, "--device=cpu", "--kv_type=i8"}, {"kv_type is i8", "f16"});
  ExpectRefusal({"--model=" + kModel, "--port=70000"}, {"--port=70000", "[0, 65535]"});
  ExpectRefusal({kModel}, {"unexpected argument", kModel});
}

TEST(ProgramTest, RefusesToBeLessSecureThanItWasTold) {
  const std::string model = "--model=" + kModel;
  ExpectRefusal({model, "--host=0.0.0.0"}, {"--host=0.0.0.0", "--tls_cert", "--insecure_bind"});
  ExpectRefusal({model, "--tls_cert=/nowhere/tls.crt"}, {"--tls_cert", "without --tls_key"});
  ExpectRefusal({model, "--tls_cert=/nowhere/tls.crt", "--tls_key=/nowhere/tls.key"},
                {"--tls_cert=/nowhere/tls.crt", "No such file"});
  ExpectRefusal({model, "--api_keys_file=/nowhere/keys"}, {"--api_keys_file=/nowhere/keys"});
  ExpectRefusal({model, "--api_keys_file=/nowhere/keys", "--check"}, {"--api_keys_file=/nowhere"});
}

TEST(ProgramTest, TheLogWarnsOfACertificateThatCannotBeTakenUp) {
  std::string directory = ::testing::TempDir() + "/fewbit_program_XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const TestCa ca("our CA");
  const Pem pem = ca.Issue("server");
  ReplaceFile(directory + "/tls.crt", pem.certificate);
  ReplaceFile(directory + "/tls.key", pem.key);
  std::vector<std::string> arguments = Serve();
  for (const std::string& flag :
       {"--tls_cert=" + directory + "/tls.crt", "--tls_key=" + directory + "/tls.key",
        std::string("--tls_refresh_seconds=1")}) {
    arguments.push_back(flag);
  }
  Program program(arguments);
  ASSERT_TRUE(program.WaitForOutput("with TLS, ready after")) << program.output();
  ReplaceFile(directory + "/tls.key", ca.Issue("server").key);
  EXPECT_TRUE(program.WaitForOutput("[warning] grpc: ")) << program.output();
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0);
  std::filesystem::remove_all(directory);
}

// A directory of links to the demo model's files, to take away from.
class ModelDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/fewbit_program_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    for (const auto& file : std::filesystem::directory_iterator(kModel)) {
      std::filesystem::create_symlink(file.path(), directory_ / file.path().filename());
    }
  }
  void TearDown() override {
    std::filesystem::permissions(directory_, std::filesystem::perms::owner_all);
    std::filesystem::remove_all(directory_);
  }
  std::vector<std::string> Arguments() const {
    return {"--model=" + directory_.string(), "--device=cpu", "--port=0", "--metrics_port=-1",
            "--kv_memory=64M"};
  }

  std::filesystem::path directory_;
};

TEST_F(ModelDirectoryTest, Missing) {
  std::filesystem::remove_all(directory_);
  std::filesystem::create_directory(directory_);
  ExpectRefusal(Arguments(), {directory_.string(), "config.json"});
}

TEST_F(ModelDirectoryTest, WithoutReadPermission) {
  std::filesystem::permissions(directory_, std::filesystem::perms::none);
  ExpectRefusal(Arguments(), {directory_.string(), "ermission denied"}, /*obey_permissions=*/true);
}

TEST_F(ModelDirectoryTest, WithoutTokenizer) {
  std::filesystem::remove(directory_ / "tokenizer.model");
  ExpectRefusal(Arguments(), {"tokenizer.model"});
  std::vector<std::string> arguments = Arguments();
  arguments.push_back("--check");
  ExpectRefusal(arguments, {"tokenizer.model"});
}

TEST_F(ModelDirectoryTest, WithAnUnknownArchitecture) {
  std::ifstream in(directory_ / "config.json");
  std::string config((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t at = config.find("LlamaForCausalLM");
  ASSERT_NE(at, std::string::npos);
  config.replace(at, 16, "MysteryForCausal");
  std::filesystem::remove(directory_ / "config.json");
  std::ofstream(directory_ / "config.json") << config;
  ExpectRefusal(Arguments(), {"config.json", "MysteryForCausal"});
}

// A canary that somebody made elsewhere.
TEST_F(ModelDirectoryTest, WhoseCanarySaysThatItIsBroken) {
  std::filesystem::remove(directory_ / "canary.json");
  std::ofstream(directory_ / "canary.json")
      << R"({"version": 2, "prompts": [{"token_ids": [1, 353, 7893, 8163],)"
      << R"( "expected": {"ids": [5, 6], "logprobs": [-0.5, -1.5]}}]})";
  ExpectRefusal(Arguments(), {"canary.json", "--canary_kl_limit is 0.05"});
  std::vector<std::string> lenient = Arguments();
  lenient.insert(lenient.end(), {"--canary_kl_limit=100", "--check"});
  Program program(lenient);
  EXPECT_EQ(program.Wait(), 0) << program.output();
  std::ofstream(directory_ / "canary.json") << R"({"token_ids": [1, 8192], "mean_logprob": -1})";
  ExpectRefusal(Arguments(), {directory_.string() + "/canary.json: version: missing"});
}

// Changes the bytes of a tensor in a file of its own.
void Damage(const std::filesystem::path& file, const std::string& tensor,
            const std::function<void(std::span<char> bytes)>& change) {
  std::ifstream in(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  in.close();
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, text.data(), sizeof(header_bytes));
  const size_t data = sizeof(header_bytes) + header_bytes;
  const auto header = nlohmann::json::parse(text.substr(sizeof(header_bytes), header_bytes));
  const auto offsets = header[tensor]["data_offsets"].get<std::vector<size_t>>();
  change(std::span(text).subspan(data + offsets[0], offsets[1] - offsets[0]));
  std::filesystem::remove(file);  // the link, not the model
  std::ofstream(file, std::ios::binary) << text;
}

TEST_F(ModelDirectoryTest, WhoseWeightsAreDamaged) {
  const auto zeros = [](std::span<char> bytes) { std::fill(bytes.begin(), bytes.end(), '\0'); };
  const auto every16th = [](std::span<char> bytes) {
    for (size_t i = 0; i < bytes.size(); i += 16) bytes[i] = static_cast<char>(~bytes[i]);
  };
  const auto a_page = [](std::span<char> bytes) {
    for (char& byte : bytes.subspan(bytes.size() / 2, 4096)) byte = static_cast<char>(byte ^ 0x55);
  };
  const struct {
    const char* file;
    const char* tensor;
    std::function<void(std::span<char>)> change;
  } cases[] = {
      {"model-00002-of-00009.safetensors", "model.layers.0.self_attn.v_proj.packed", zeros},
      {"model-00006-of-00009.safetensors", "model.layers.4.mlp.down_proj.packed", zeros},
      {"model-00007-of-00009.safetensors", "model.layers.5.mlp.gate_proj.packed", zeros},
      {"model-00009-of-00009.safetensors", "model.layers.7.self_attn.o_proj.packed", zeros},
      {"model-00002-of-00009.safetensors", "model.layers.0.mlp.down_proj.packed", every16th},
      {"model-00005-of-00009.safetensors", "model.layers.3.self_attn.o_proj.packed", a_page},
      {"model-00001-of-00009.safetensors", "model.embed_tokens.scales", zeros},
  };
  for (const auto& test : cases) {
    SCOPED_TRACE(test.tensor);
    Damage(directory_ / test.file, test.tensor, test.change);
    std::vector<std::string> arguments = Arguments();
    arguments.push_back("--check");
    ExpectRefusal(arguments, {"answers to the checkpoint's canary.json", "--canary_kl_limit",
                              "the weights or what is computed from them are wrong"});
    std::filesystem::remove(directory_ / test.file);
    std::filesystem::create_symlink(kModel + "/" + test.file, directory_ / test.file);
  }
}

TEST_F(ModelDirectoryTest, WithAKvCacheTooSmallForOneContext) {
  std::vector<std::string> arguments = Arguments();
  arguments.back() = "--kv_memory=64K";
  ExpectRefusal(arguments, {"KV cache"});
}

}  // namespace
}  // namespace fewbit::testing
