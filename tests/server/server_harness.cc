#include "tests/server/server_harness.h"

#include <arpa/inet.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "scheduler/check.h"

namespace fewbit::testing {

const Tokenizer& DemoTokenizer() {
  static const Tokenizer* const tokenizer = [] {
    auto loaded = Tokenizer::Load(FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m", 8192);
    FEWBIT_CHECK(loaded.ok()) << std::string(loaded.status().message());
    return loaded->release();
  }();
  return *tokenizer;
}

std::vector<TokenId> Tokens(std::string_view text) {
  if (text.starts_with(' ')) text.remove_prefix(1);  // the tokenizer puts one there
  auto ids = DemoTokenizer().Encode(text, /*add_bos=*/false);
  FEWBIT_CHECK(ids.ok());
  return *ids;
}

void WaitFor(const std::function<bool()>& condition, const std::string& what) {
  const absl::Time give_up = absl::Now() + absl::Seconds(30);
  while (!condition()) {
    if (absl::Now() > give_up) {
      ADD_FAILURE() << "waited in vain: " << what;
      return;
    }
    std::this_thread::yield();
  }
}

Harness::Harness(HarnessOptions options) {
  FakeExecutorOptions fake;
  fake.info.vocab_size = 8192;
  fake.info.max_context = options.max_context;
  if (options.config.step_tokens > 0) fake.info.max_step_tokens = options.config.step_tokens;
  fake.info.max_sequences = options.config.max_running;
  fake.info.num_blocks = options.num_blocks;
  fake.info.pci_bus_id = options.pci_bus_id;
  fake.info.max_steps_in_flight = options.steps_in_flight;
  fake.script = [this](const SampleRow& row) { return Say(row); };
  fake.step_time = options.step_time;
  fake.gate_closed = options.gate_closed;
  executor_ = std::make_unique<FakeExecutor>(fake);

  ServedModel model;
  model.name = "demo";
  model.spec.family = "llama";
  model.spec.num_layers = 8;
  model.spec.hidden_size = 512;
  model.spec.vocab_size = 8192;
  model.spec.max_context = options.max_context;
  model.spec.bos = TokenId{1};
  model.spec.eos = {TokenId{2}};
  model.device = executor_->info();
  model.default_sampling = options.default_sampling;
  model.default_max_new_tokens = options.config.max_new_tokens;
  model.startup_phases = {{"model", 0.5}};
  model.canary = {.original_expected = 0.25, .original_served = 0.26, .expected_served = 0.001};

  Config config = options.config;
  config.model = "unused";
  config.port = 0;
  config.metrics_port = options.metrics ? 0 : -1;
  auto server = Server::Start(config, std::move(model), &DemoTokenizer(), executor_.get());
  FEWBIT_CHECK(server.ok()) << std::string(server.status().message());
  server_ = *std::move(server);
  channel_ = NewChannel();
  stub_ = v1::GenerationService::NewStub(channel_);
}

Harness::~Harness() {
  executor_->OpenGate();
  server_.reset();
}

TokenId Harness::Say(const SampleRow& row) {
  const uint64_t seed = row.request->sampling.seed;
  const int32_t index = row.position - row.num_prompt_tokens;
  MutexLock lock(&mu_);
  const auto script = scripts_.find(seed);
  if (script == scripts_.end()) {
    return TokenId{static_cast<int32_t>(3 + (seed * 31 + static_cast<uint64_t>(index)) % 8000)};
  }
  const std::vector<TokenId>& ids = script->second;
  return index < static_cast<int32_t>(ids.size()) ? ids[index] : TokenId{2};
}

void Harness::Script(uint64_t seed, std::vector<TokenId> ids) {
  MutexLock lock(&mu_);
  scripts_[seed] = std::move(ids);
}

v1::GenerateRequest Harness::Saying(std::string_view text) {
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  const uint64_t seed = next_seed_++;
  request.mutable_sampling()->set_seed(seed);
  Script(seed, Tokens(text));
  return request;
}

std::string Harness::address() const { return absl::StrCat("127.0.0.1:", server_->port()); }

std::shared_ptr<grpc::Channel> Harness::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // not shared with other channels
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // 64 KiB windows, however fast the loopback is
  return grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), arguments);
}

uint64_t Harness::Count(Outcome outcome) const {
  return server_->stats().requests[static_cast<size_t>(outcome)].load();
}

void Harness::ExpectIdle() {
  WaitFor(
      [this] {
        const EngineStats stats = server_->engine_stats();
        return stats.requests_running == 0 && stats.requests_waiting == 0 &&
               stats.blocks_used == 0 && server_->stats().open_streams.load() == 0;
      },
      "an idle server");
}

Collected Collect(grpc::ClientReader<v1::GenerateResponse>* reader) {
  Collected all;
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    all.text += message.text();
    all.token_ids.insert(all.token_ids.end(), message.token_ids().begin(),
                         message.token_ids().end());
    all.messages.push_back(message);
  }
  all.status = reader->Finish();
  if (!all.messages.empty()) all.last = all.messages.back();
  return all;
}

Collected Stream(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                 grpc::ClientContext* context) {
  grpc::ClientContext own;
  auto reader = stub.GenerateStream(context != nullptr ? context : &own, request);
  return Collect(reader.get());
}

double MetricValue(const std::string& exposition, const std::string& series) {
  const size_t start = exposition.find("\n" + series + " ");
  if (start == std::string::npos) return -1;
  return std::strtod(exposition.c_str() + start + series.size() + 2, nullptr);
}

std::string Scrape(int32_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string get = "GET /metrics HTTP/1.0\r\n\r\n";
    if (write(fd, get.data(), get.size()) == static_cast<ssize_t>(get.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
    }
  }
  close(fd);
  return answer;
}

}  // namespace fewbit::testing
