#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "absl/flags/reflection.h"
#include "server/config_flags.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;

Config Good() {
  Config config;
  config.model = "models/demo";
  return config;
}

std::string MessageOf(const Config& config) { return std::string(Validate(config).message()); }

TEST(ConfigTest, DefaultsWithAModelAreValid) { EXPECT_TRUE(Validate(Good()).ok()); }

TEST(ConfigTest, EveryRefusalNamesFlagValueAndLimit) {
  const struct {
    std::function<void(Config*)> spoil;
    std::vector<std::string> said;
  } cases[] = {
      {[](Config* c) { c->model.clear(); }, {"--model is missing"}},
      {[](Config* c) { c->host.clear(); }, {"--host"}},
      {[](Config* c) { c->port = 65536; }, {"--port=65536", "[0, 65535]"}},
      {[](Config* c) { c->port = -1; }, {"--port=-1"}},
      {[](Config* c) { c->metrics_port = -2; }, {"--metrics_port=-2", "[-1, 65535]"}},
      {[](Config* c) { c->metrics_port = c->port; }, {"--port and --metrics_port are both 8033"}},
      {[](Config* c) { c->health_port = c->port; }, {"--health_port=8033", "something else"}},
      {[](Config* c) { c->tls_key = "k"; }, {"--tls_key", "without --tls_cert"}},
      {[](Config* c) { c->tls_cert = "c"; }, {"--tls_cert", "without --tls_key"}},
      {[](Config* c) { c->tls_client_ca = "a"; }, {"--tls_client_ca", "without --tls_cert"}},
      {[](Config* c) { c->tls_refresh_seconds = 0; }, {"--tls_refresh_seconds=0"}},
      {[](Config* c) { c->host = "0.0.0.0"; }, {"--host=0.0.0.0", "--tls_cert", "--insecure_bind"}},
      {[](Config* c) { c->host = "[::]"; }, {"--host=[::]", "--insecure_bind"}},
      {[](Config* c) { c->host = "127.example.com"; }, {"--host=127.", "--insecure_bind"}},
      {[](Config* c) { c->threads = -1; }, {"--threads=-1", "[0, 1024]"}},
      {[](Config* c) { c->max_running = 0; }, {"--max_running=0", "[1, 4096]"}},
      {[](Config* c) { c->max_waiting = 0; }, {"--max_waiting=0"}},
      {[](Config* c) { c->max_waiting_tokens = 0; }, {"--max_waiting_tokens=0"}},
      {[](Config* c) { c->step_tokens = -1; }, {"--step_tokens=-1", "[0, 65536]"}},
      {[](Config* c) { c->step_tokens = 63; }, {"--step_tokens=63", "--max_running=64"}},
      {[](Config* c) { c->max_new_tokens = 0; }, {"--max_new_tokens=0"}},
      {[](Config* c) { c->max_streams = 0; }, {"--max_streams=0"}},
      {[](Config* c) { c->max_message_mb = 0; }, {"--max_message_mb=0"}},
      {[](Config* c) { c->max_metadata_kb = 0; }, {"--max_metadata_kb=0", "[1, 1024]"}},
      {[](Config* c) { c->stream_buffer_kb = 0; }, {"--stream_buffer_kb=0"}},
      {[](Config* c) { c->write_timeout_seconds = 0; }, {"--write_timeout_seconds=0"}},
      {[](Config* c) { c->keepalive_seconds = 0.5; }, {"--keepalive_seconds=0.5"}},
      {[](Config* c) { c->drain_seconds = -1; }, {"--drain_seconds=-1"}},
      {[](Config* c) { c->drain_seconds = std::nan(""); }, {"--drain_seconds=nan"}},
      {[](Config* c) { c->stall_seconds = 0; }, {"--stall_seconds=0"}},
      {[](Config* c) { c->gpu_hour_usd = -1; }, {"--gpu_hour_usd=-1"}},
      {[](Config* c) { c->max_tenants = 1001; }, {"--max_tenants=1001", "[0, 1000]"}},
      {[](Config* c) { c->slo_ttft_ms = -1; }, {"--slo_ttft_ms=-1"}},
      {[](Config* c) { c->slo_tpot_ms = std::nan(""); }, {"--slo_tpot_ms=nan"}},
      {[](Config* c) { c->kv_memory = -1; }, {"--kv_memory=-1"}},
      {[](Config* c) { c->device = "tpu"; }, {"--device=tpu", "auto, cpu"}},
      {[](Config* c) { c->device = "cuda:x"; }, {"--device=cuda:x"}},
      {[](Config* c) { c->device = "cuda:-1"; }, {"--device=cuda:-1", "cuda:N"}},
      {[](Config* c) { c->kv_type = "f8"; }, {"--kv_type=f8", "f16, f32, bf16, i8"}},
      {[](Config* c) { c->lm_head_bits = 3; }, {"--lm_head_bits=3", "0, 4, 8, 16"}},
      {[](Config* c) { c->max_context = -1; }, {"--max_context=-1"}},
      {[](Config* c) { c->canary_kl_limit = 0; }, {"--canary_kl_limit=0", "100"}},
      {[](Config* c) { c->gpu_memory_utilization = 1; }, {"--gpu_memory_utilization=1", "0.98"}},
      {[](Config* c) { c->log_level = "loud"; }, {"--log_level=loud", "debug, info"}},
  };
  for (const auto& test : cases) {
    Config config = Good();
    test.spoil(&config);
    EXPECT_EQ(Validate(config).code(), absl::StatusCode::kInvalidArgument);
    for (const std::string& text : test.said) EXPECT_THAT(MessageOf(config), HasSubstr(text));
  }
}

TEST(ConfigTest, PlainTextNeedsLoopbackOrTheFlag) {
  for (const char* host : {"127.0.0.1", "127.0.1.1", "localhost", "::1", "[::1]"}) {
    Config config = Good();
    config.host = host;
    EXPECT_TRUE(Validate(config).ok()) << host;
  }
  Config open = Good();
  open.host = "0.0.0.0";
  open.insecure_bind = true;
  EXPECT_TRUE(Validate(open).ok());
  open.insecure_bind = false;
  open.tls_cert = "c";
  open.tls_key = "k";
  EXPECT_TRUE(Validate(open).ok()) << "with TLS any address will do";
}

TEST(ConfigTest, DevicesAreNamed) {
  for (const char* device : {"auto", "cpu", "cuda", "cuda:0", "cuda:11"}) {
    Config config = Good();
    config.device = device;
    EXPECT_TRUE(Validate(config).ok()) << device;
  }
}

TEST(ConfigTest, ServedNameIsTheLastComponent) {
  Config config = Good();
  EXPECT_EQ(ServedName(config), "demo");
  config.model = "/data/models/demo/";
  EXPECT_EQ(ServedName(config), "demo");
  config.model = ".";
  EXPECT_EQ(ServedName(config), "model");
  config.model_name = "mine";
  EXPECT_EQ(ServedName(config), "mine");
}

// argv as main gets it; `arguments` keeps the characters alive.
absl::StatusOr<Config> Parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "fewbit-server");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  return ParseCommandLine(static_cast<int>(argv.size()) - 1, argv.data());
}

constexpr const char* kEveryFlag[] = {"--model=m",
                                      "--model_name=n",
                                      "--device=cpu",
                                      "--threads=3",
                                      "--kv_memory=1.5G",
                                      "--max_context=2048",
                                      "--kv_type=i8",
                                      "--gpu_memory_utilization=0.75",
                                      "--lm_head_bits=8",
                                      "--canary_kl_limit=0.5",
                                      "--check",
                                      "--host=::1",
                                      "--port=1",
                                      "--metrics_port=2",
                                      "--health_port=3",
                                      "--tls_cert=c",
                                      "--tls_key=k",
                                      "--tls_client_ca=a",
                                      "--tls_refresh_seconds=16",
                                      "--insecure_bind",
                                      "--api_keys_file=f",
                                      "--noreflection",
                                      "--max_metadata_kb=19",
                                      "--max_running=4",
                                      "--max_waiting=5",
                                      "--max_waiting_tokens=6",
                                      "--step_tokens=7",
                                      "--max_new_tokens=8",
                                      "--max_streams=9",
                                      "--max_message_mb=10",
                                      "--stream_buffer_kb=11",
                                      "--write_timeout_seconds=12",
                                      "--keepalive_seconds=13",
                                      "--drain_seconds=14.5",
                                      "--stall_seconds=15",
                                      "--gpu_hour_usd=16.5",
                                      "--slo_ttft_ms=17",
                                      "--slo_tpot_ms=18",
                                      "--max_tenants=19",
                                      "--log_level=debug"};

TEST(ConfigFlagsTest, EveryFlagReachesItsField) {
  absl::FlagSaver saver;
  const auto config = Parse({std::begin(kEveryFlag), std::end(kEveryFlag)});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model, "m");
  EXPECT_EQ(config->model_name, "n");
  EXPECT_EQ(config->device, "cpu");
  EXPECT_EQ(config->threads, 3);
  EXPECT_EQ(config->kv_memory, 3ll << 29);
  EXPECT_EQ(config->max_context, 2048);
  EXPECT_EQ(config->kv_type, "i8");
  EXPECT_EQ(config->gpu_memory_utilization, 0.75);
  EXPECT_EQ(config->lm_head_bits, 8);
  EXPECT_EQ(config->canary_kl_limit, 0.5);
  EXPECT_TRUE(config->check);
  EXPECT_EQ(config->host, "::1");
  EXPECT_EQ(config->port, 1);
  EXPECT_EQ(config->metrics_port, 2);
  EXPECT_EQ(config->health_port, 3);
  EXPECT_EQ(config->tls_cert, "c");
  EXPECT_EQ(config->tls_key, "k");
  EXPECT_EQ(config->tls_client_ca, "a");
  EXPECT_EQ(config->tls_refresh_seconds, 16);
  EXPECT_TRUE(config->insecure_bind);
  EXPECT_EQ(config->api_keys_file, "f");
  EXPECT_FALSE(config->reflection);
  EXPECT_EQ(config->max_metadata_kb, 19);
  EXPECT_EQ(config->max_running, 4);
  EXPECT_EQ(config->gpu_hour_usd, 16.5);
  EXPECT_EQ(config->slo_ttft_ms, 17);
  EXPECT_EQ(config->slo_tpot_ms, 18);
  EXPECT_EQ(config->max_tenants, 19);
  EXPECT_EQ(config->max_waiting, 5);
  EXPECT_EQ(config->max_waiting_tokens, 6);
  EXPECT_EQ(config->step_tokens, 7);
  EXPECT_EQ(config->max_new_tokens, 8);
  EXPECT_EQ(config->max_streams, 9);
  EXPECT_EQ(config->max_message_mb, 10);
  EXPECT_EQ(config->stream_buffer_kb, 11);
  EXPECT_EQ(config->write_timeout_seconds, 12);
  EXPECT_EQ(config->keepalive_seconds, 13);
  EXPECT_EQ(config->drain_seconds, 14.5);
  EXPECT_EQ(config->stall_seconds, 15);
  EXPECT_EQ(config->log_level, "debug");
}

TEST(ConfigFlagsTest, WithoutFlagsTheDefaultsHold) {
  absl::FlagSaver saver;
  const auto config = Parse({"--model=m"});
  ASSERT_TRUE(config.ok());
  const Config fallback;
  EXPECT_EQ(config->port, fallback.port);
  EXPECT_EQ(config->kv_memory, fallback.kv_memory);
  EXPECT_EQ(config->drain_seconds, fallback.drain_seconds);
  EXPECT_TRUE(Validate(*config).ok());
}

TEST(ConfigFlagsTest, MemoryTakesSuffixes) {
  absl::FlagSaver saver;
  const struct {
    const char* text;
    int64_t bytes;
  } cases[] = {{"0", 0},          {"4096", 4096},      {"64K", 64 << 10}, {"512M", 512 << 20},
               {"2G", 2ll << 30}, {"2GiB", 2ll << 30}, {"2GB", 2ll << 30}};
  for (const auto& test : cases) {
    const auto config = Parse({std::string("--kv_memory=") + test.text});
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->kv_memory, test.bytes) << test.text;
  }
}

TEST(ConfigFlagsTest, AnArgumentThatIsNoFlagIsRefused) {
  absl::FlagSaver saver;
  const auto config = Parse({"models/demo"});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("'models/demo'"));
}

TEST(ConfigFlagsDeathTest, HelpNamesEveryFlagOnceAndExitsWithZero) {
  EXPECT_EXIT(Parse({"--help"}), ::testing::ExitedWithCode(0), "");
  const std::string help = HelpText();
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (flag->Filename().find("config_flags.cc") == absl::string_view::npos) continue;
    const std::string line = "\n  --" + std::string(name) + " ";
    const size_t found = help.find(line);
    EXPECT_NE(found, std::string::npos) << std::string(name) << " is in no group";
    EXPECT_EQ(help.find(line, found + 1), std::string::npos) << std::string(name);
  }
}

TEST(ConfigFlagsDeathTest, MalformedFlagsEndTheProgram) {
  EXPECT_EXIT(Parse({"--kv_memory=lots"}), ::testing::ExitedWithCode(1), "kv_memory.*512M");
  EXPECT_EXIT(Parse({"--kv_memory=-1G"}), ::testing::ExitedWithCode(1), "kv_memory");
  EXPECT_EXIT(Parse({"--port=many"}), ::testing::ExitedWithCode(1), "port");
  EXPECT_EXIT(Parse({"--ports=1"}), ::testing::ExitedWithCode(1), "ports");
}

}  // namespace
}  // namespace fewbit
