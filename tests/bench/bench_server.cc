// bench_server: what the server costs around an executor that costs nothing. Two processes: this
// one serves with the fake executor, its child streams over loopback. Two tables:
//   throughput   tokens per second that clients received at 1, 64 and 512 streams, against the same
//   engine with a sink that only counts
//                (the ratio is what gRPC, text and protobuf take), and the server's processor time
//                per token; then the same at a paced step, where every token is a message of its
//                own
//   memory       growth of the server's resident memory per open stream that waits in the queue
// Usage: bench_server [seconds per row, default 3]
#include <grpcpp/create_channel.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "fewbit/v1/generation.grpc.pb.h"
#include "runtime/engine.h"
#include "scheduler/check.h"
#include "server/server.h"
#include "tests/runtime/fake_executor.h"

namespace fewbit {
namespace {

constexpr int kMaxStreams = 512;
constexpr int kTokensPerRequest = 256;
constexpr int kIdleStreams = 4000;

// ---------------------------------------------------------------------------------------- client
// process

// A command from the server process, and its answer; plain structs through a pipe.
struct Command {
  enum class Kind { kLoad, kHold, kDrop, kQuit } kind = Kind::kQuit;
  int port = 0;
  int streams = 0;
  double seconds = 0.0;
};
struct Answer {
  uint64_t tokens = 0;
  uint64_t messages = 0;
  double seconds = 0.0;
};

template <class T>
bool Send(int fd, const T& value) {
  return write(fd, &value, sizeof(T)) == static_cast<ssize_t>(sizeof(T));
}
template <class T>
bool Receive(int fd, T* value) {
  return read(fd, value, sizeof(T)) == static_cast<ssize_t>(sizeof(T));
}

// Streams opened one after the other until told to stop; counts what arrives.
class Load;

class StreamReader : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  StreamReader(Load* load, int index) : load_(load), index_(index) {}
  void Open();
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void Cancel() { context_->TryCancel(); }

 private:
  Load* const load_;
  const int index_;
  std::unique_ptr<grpc::ClientContext> context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
};

class Load {
 public:
  Load(int port, int streams) {
    for (int i = 0; i < std::min(streams, 4); ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      stubs_.push_back(v1::GenerationService::NewStub(grpc::CreateCustomChannel(
          "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments)));
    }
    for (int i = 0; i < streams; ++i) {
      readers_.push_back(std::make_unique<StreamReader>(this, i));
      ++open_;
      readers_.back()->Open();
    }
  }
  void StopAndWait(bool cancel) {
    stopping_ = true;
    if (cancel) {
      for (auto& reader : readers_) reader->Cancel();
    }
    std::unique_lock<std::mutex> lock(mu_);
    all_done_.wait(lock, [this] { return open_ == 0; });
  }
  Answer Count() const { return {tokens.load(), messages.load(), 0.0}; }

  v1::GenerationService::Stub* stub(int index) { return stubs_[index % stubs_.size()].get(); }
  bool stopping() const { return stopping_; }
  void Done() {
    std::lock_guard<std::mutex> lock(mu_);
    if (--open_ == 0) all_done_.notify_all();
  }

  std::atomic<uint64_t> tokens{0}, messages{0};

 private:
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs_;
  std::vector<std::unique_ptr<StreamReader>> readers_;
  std::atomic<bool> stopping_{false};
  std::mutex mu_;
  std::condition_variable all_done_;
  int open_ = 0;
};

void StreamReader::Open() {
  context_ = std::make_unique<grpc::ClientContext>();
  request_.Clear();
  for (int i = 0; i < 16; ++i) request_.mutable_token_ids()->add_ids(100 + i);
  request_.mutable_stopping()->set_max_new_tokens(kTokensPerRequest);
  request_.mutable_stopping()->set_ignore_eos(true);
  load_->stub(index_)->async()->GenerateStream(context_.get(), &request_, this);
  StartRead(&response_);
  StartCall();
}

void StreamReader::OnReadDone(bool ok) {
  if (!ok) return;
  load_->tokens += static_cast<uint64_t>(response_.token_ids_size());
  ++load_->messages;
  StartRead(&response_);
}

void StreamReader::OnDone(const grpc::Status& status) {
  if (status.ok() && !load_->stopping()) {
    Open();  // a reactor may serve one call after the other
    return;
  }
  if (!status.ok() && !load_->stopping()) {
    std::fprintf(stderr, "bench_server: %s\n", status.error_message().c_str());
  }
  load_->Done();
}

int ClientMain(int in, int out) {
  std::unique_ptr<Load> held;
  Command command;
  while (Receive(in, &command)) {
    Answer answer;
    switch (command.kind) {
      case Command::Kind::kLoad: {
        Load load(command.port, command.streams);
        std::this_thread::sleep_for(std::chrono::duration<double>(command.seconds / 4));  // warm
        const Answer before = load.Count();
        const absl::Time start = absl::Now();
        std::this_thread::sleep_for(std::chrono::duration<double>(command.seconds));
        answer = load.Count();
        answer.tokens -= before.tokens;
        answer.messages -= before.messages;
        answer.seconds = absl::ToDoubleSeconds(absl::Now() - start);
        load.StopAndWait(/*cancel=*/true);
        break;
      }
      case Command::Kind::kHold:
        held = std::make_unique<Load>(command.port, command.streams);
        break;
      case Command::Kind::kDrop:
        held->StopAndWait(/*cancel=*/true);
        held.reset();
        break;
      case Command::Kind::kQuit:
        return 0;
    }
    if (!Send(out, answer)) return 1;
  }
  return 0;
}

// ---------------------------------------------------------------------------------------- server
// process

FakeExecutorOptions ExecutorOptions(absl::Duration step_time) {
  FakeExecutorOptions options;
  options.info.vocab_size = 8192;
  options.info.max_context = 2048;
  options.info.max_step_tokens = 4096;
  options.info.max_sequences = kMaxStreams;
  options.info.num_blocks = kMaxStreams * 20;
  options.verify_kv = false;
  options.step_time = step_time;
  return options;
}

// Real words only: tokens 300 to 8000 of the demo model's vocabulary.
TokenId Word(const SampleRow& row) {
  const uint64_t x = row.request->sampling.seed * 2654435761u + static_cast<uint64_t>(row.position);
  return TokenId{static_cast<int32_t>(300 + (x * 40503u) % 7700)};
}

class Bench {
 public:
  Bench(int to_client, int from_client)
      : to_client_(to_client), from_client_(from_client), tokenizer_(LoadTokenizer()) {}

  void Run(double seconds);

 private:
  static std::unique_ptr<Tokenizer> LoadTokenizer() {
    auto tokenizer = Tokenizer::Load(FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m", 8192);
    FEWBIT_CHECK(tokenizer.ok()) << std::string(tokenizer.status().message());
    return *std::move(tokenizer);
  }
  std::unique_ptr<Server> StartServer(Executor* executor, int max_running);
  Answer Ask(const Command& command);
  void Throughput(int streams, absl::Duration step_time, double seconds);
  void Memory();

  const int to_client_, from_client_;
  const std::unique_ptr<Tokenizer> tokenizer_;
};

double ProcessorSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

std::unique_ptr<Server> Bench::StartServer(Executor* executor, int max_running) {
  Config config;
  config.model = "fake";
  config.port = 0;
  config.metrics_port = -1;
  config.max_running = max_running;
  config.max_waiting = 2 * kIdleStreams;
  config.max_streams = 4 * kIdleStreams;
  config.step_tokens = 4096;
  ServedModel model;
  model.name = "fake";
  model.spec.vocab_size = 8192;
  model.device = executor->info();
  auto server = Server::Start(config, model, tokenizer_.get(), executor);
  FEWBIT_CHECK(server.ok()) << std::string(server.status().message());
  return *std::move(server);
}

Answer Bench::Ask(const Command& command) {
  Answer answer;
  FEWBIT_CHECK(Send(to_client_, command) && Receive(from_client_, &answer)) << "the client died";
  return answer;
}

// The engine alone: requests are submitted again as they end; nothing is said to anybody.
class CountingSink : public EventSink {
 public:
  void OnEvents(std::span<const TokenEvent> events) override {
    uint64_t tokens = 0;
    for (const TokenEvent& event : events) {
      if (event.kind == TokenEvent::Kind::kToken) ++tokens;
      if (event.kind == TokenEvent::Kind::kFinished) finished_.push_back(event.request);
    }
    tokens_ += tokens;
    for (RequestId id : finished_) Submit(id);
    finished_.clear();
  }
  void Submit(RequestId id) {
    auto request = std::make_unique<Request>();
    request->id = RequestId{ToInt(id) + kMaxStreams};
    request->prompt.assign(16, TokenId{100});
    request->max_new_tokens = kTokensPerRequest;
    request->sampling.seed = ToInt(id);
    request->arrival = absl::Now();
    engine_->Submit(std::move(request)).IgnoreError();  // refused at the end
  }
  void set_engine(Engine* engine) { engine_ = engine; }
  uint64_t tokens() const { return tokens_; }

 private:
  Engine* engine_ = nullptr;
  std::atomic<uint64_t> tokens_{0};
  std::vector<RequestId> finished_;
};

double EngineAlone(int streams, absl::Duration step_time, double seconds) {
  FakeExecutorOptions options = ExecutorOptions(step_time);
  options.script = Word;
  FakeExecutor executor(options);
  CountingSink sink;
  EngineOptions engine_options;
  engine_options.max_running = kMaxStreams;
  engine_options.max_waiting = 2 * kMaxStreams;
  engine_options.step_token_budget = 4096;
  Engine engine(engine_options, &executor, &sink);
  sink.set_engine(&engine);
  for (int i = 0; i < streams; ++i) sink.Submit(RequestId{static_cast<uint64_t>(i)});
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds / 4));
  const uint64_t before = sink.tokens();
  const absl::Time start = absl::Now();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  const double rate =
      static_cast<double>(sink.tokens() - before) / absl::ToDoubleSeconds(absl::Now() - start);
  engine.Drain(absl::Now());
  return rate;
}

void Bench::Throughput(int streams, absl::Duration step_time, double seconds) {
  const double alone = EngineAlone(streams, step_time, seconds / 2);
  FakeExecutorOptions options = ExecutorOptions(step_time);
  options.script = Word;
  FakeExecutor executor(options);
  const std::unique_ptr<Server> server = StartServer(&executor, kMaxStreams);
  const double processor = ProcessorSeconds();
  const Answer got = Ask({.kind = Command::Kind::kLoad,
                          .port = server->port(),
                          .streams = streams,
                          .seconds = seconds});
  const double spent = ProcessorSeconds() - processor;
  const double tokens = static_cast<double>(got.tokens);
  const double all = static_cast<double>(server->engine_stats().decode_tokens);
  server->Drain(absl::Now());
  const std::string step =
      step_time == absl::ZeroDuration() ? "0" : absl::FormatDuration(step_time);
  std::printf("%8d %8s %12.0f %14.0f %8.2f %14.1f %16.2f\n", streams, step.c_str(),
              tokens / got.seconds, alone, tokens / got.seconds / alone,
              tokens / static_cast<double>(got.messages), spent / all * 1e6);
  std::fflush(stdout);
}

void Bench::Memory() {
  FakeExecutorOptions options = ExecutorOptions(absl::ZeroDuration());
  options.gate_closed = true;
  FakeExecutor executor(options);
  const std::unique_ptr<Server> server = StartServer(&executor, 1);
  const auto hold = [&](int streams) {
    Ask({.kind = Command::Kind::kHold, .port = server->port(), .streams = streams, .seconds = 0.0});
    while (server->stats().open_streams.load() < streams) std::this_thread::yield();
  };
  hold(64);  // connections, arenas and tables exist
  Ask({.kind = Command::Kind::kDrop, .port = 0, .streams = 0, .seconds = 0.0});
  executor.OpenGate();
  while (server->stats().open_streams.load() > 0) std::this_thread::yield();
  executor.CloseGate();
  malloc_trim(0);
  const double before = ResidentBytes();
  hold(kIdleStreams);
  const double after = ResidentBytes();
  executor.OpenGate();
  Ask({.kind = Command::Kind::kDrop, .port = 0, .streams = 0, .seconds = 0.0});
  std::printf(
      "%d idle streams: resident memory of the server grew by %.1f MB: %.1f KB per stream\n",
      kIdleStreams, (after - before) / 1e6, (after - before) / kIdleStreams / 1e3);
  server->Drain(absl::Now());
}

void Bench::Run(double seconds) {
  std::printf(
      "Streaming over loopback, fake executor, %d tokens per request; alone: the same engine with "
      "a "
      "counting sink.\nCPU: processor time of the server process (engine included) per generated "
      "token.\n",
      kTokensPerRequest);
  std::printf("%8s %8s %12s %14s %8s %14s %16s\n", "streams", "step", "tokens/s", "alone tokens/s",
              "ratio", "tokens/message", "CPU us per token");
  for (int streams : {1, 64, 512}) Throughput(streams, absl::ZeroDuration(), seconds);
  Throughput(64, absl::Milliseconds(5), seconds);
  Throughput(512, absl::Milliseconds(20), seconds);
  Memory();
  Send(to_client_, Command{});
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 3.0;
  if (!(seconds > 0.0)) {
    std::fprintf(stderr, "usage: bench_server [seconds per row]\n");
    return 1;
  }
  int commands[2], answers[2];
  if (pipe(commands) != 0 || pipe(answers) != 0) return 1;
  const pid_t child = fork();  // before gRPC has started anything
  if (child == 0) {
    close(commands[1]);
    close(answers[0]);
    _exit(fewbit::ClientMain(commands[0], answers[1]));
  }
  close(commands[0]);
  close(answers[1]);
  fewbit::Bench(commands[1], answers[0]).Run(seconds);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? 0 : 1;
}
