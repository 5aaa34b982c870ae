// fewbit-server: flags -> Config -> model -> tokenizer -> executor -> Server -> signal -> drain.
// Exit code 0 after a clean drain, 1 with one line on stderr for whatever keeps it from starting.
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/cpu_executor.h"
#include "runtime/models/model.h"
#include "server/config.h"
#include "server/config_flags.h"
#include "server/drain_signals.h"
#include "server/server.h"
#include "server/tokenizer.h"

namespace fewbit {
namespace {

// KV memory if the flag leaves it open: the executor takes less if max_running full contexts need
// less.
int64_t KvBudget(const Config& config) {
  if (config.kv_memory > 0) return config.kv_memory;
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 4;
}

absl::StatusOr<std::unique_ptr<CpuExecutor>> MakeExecutor(const Config& config,
                                                          const Model& model) {
  CpuExecutorOptions options;
  options.threads = config.threads;
  options.max_sequences = config.max_running;
  options.max_step_tokens = config.step_tokens;
  options.kv_bytes = KvBudget(config);
  return CpuExecutor::Create(&model, options);
}

// What generation_config.json leaves open is as the proto says: temperature 1, nothing cut off.
SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  SamplingParams sampling;
  sampling.temperature = defaults.temperature.value_or(1.0f);
  if (!defaults.do_sample.value_or(true)) sampling.temperature = 0.0f;
  sampling.top_k = defaults.top_k.value_or(sampling.top_k);
  sampling.top_p = defaults.top_p.value_or(sampling.top_p);
  sampling.repetition_penalty = defaults.repetition_penalty.value_or(sampling.repetition_penalty);
  return sampling;
}

ServedModel Describe(const Config& config, const Model& model, const ExecutorInfo& device) {
  ServedModel served;
  served.name = ServedName(config);
  served.spec = model.spec;
  served.device = device;
  served.default_sampling = DefaultSampling(model.generation);
  served.default_max_new_tokens = config.max_new_tokens;
  served.embedding_bits = model.quantization.embedding_bits;
  if (model.quantization.quantized) {
    served.quantization_method = model.quantization.method;
    served.average_bits = model.quantization.average_bits;
  }
  return served;
}

// Times the phases of the start.
class Stopwatch {
 public:
  // Ends a phase; the next one begins.
  void Lap(const char* phase) {
    const absl::Time now = absl::Now();
    laps_.push_back({phase, absl::ToDoubleSeconds(now - lap_start_)});
    lap_start_ = now;
  }
  double seconds() const { return absl::ToDoubleSeconds(absl::Now() - start_); }
  const std::vector<StartupPhase>& laps() const { return laps_; }

 private:
  const absl::Time start_ = absl::Now();
  absl::Time lap_start_ = start_;
  std::vector<StartupPhase> laps_;
};

// gRPC and protobuf write to stderr what our own messages say better.
void QuietLibraries() {
  gpr_set_log_function([](gpr_log_func_args* args) {
    // A rotated certificate that cannot be taken up is the operator's business.
    const bool certificates = absl::StrContains(args->file, "/tls/");
    spdlog::log(certificates ? spdlog::level::warn : spdlog::level::debug, "grpc: {}:{} {}",
                args->file, args->line, args->message);
  });
  google::protobuf::SetLogHandler(
      [](google::protobuf::LogLevel, const char*, int, const std::string& message) {
        spdlog::debug("protobuf: {}", message);
      });
}

// What stands before a request, for the log.
const char* Protection(const Config& config) {
  if (config.tls_cert.empty()) return " in plain text";
  return config.tls_client_ca.empty() ? " with TLS" : " with TLS for certified clients";
}

// Runs until a signal. The status says why it could not start.
absl::Status Serve(const Config& config, DrainSignals* signals) {
  absl::Status status = Validate(config);
  if (!status.ok()) return status;
  status = Server::CheckFiles(config);  // before the model, which may take long
  if (!status.ok()) return status;
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  QuietLibraries();
  Stopwatch watch;
  absl::StatusOr<std::unique_ptr<Model>> model = LoadModel(config.model);
  if (!model.ok()) return model.status();
  watch.Lap("model");
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load(config.model, (*model)->spec.vocab_size);
  if (!tokenizer.ok()) return tokenizer.status();
  watch.Lap("tokenizer");
  absl::StatusOr<std::unique_ptr<CpuExecutor>> executor = MakeExecutor(config, **model);
  if (!executor.ok()) return executor.status();
  watch.Lap("executor");
  const ExecutorInfo& info = (*executor)->info();
  ServedModel served = Describe(config, **model, info);
  served.startup_phases = watch.laps();
  spdlog::info("model {} ({}, {} layers, {:.1f} MB of weights, {:.2f} bits in linears) on {}",
               served.name, served.spec.family, served.spec.num_layers, info.weight_bytes / 1e6,
               served.average_bits, info.device);
  spdlog::info("context {} tokens; KV cache {:.1f} MB, {} blocks of {} tokens", info.max_context,
               info.kv_bytes / 1e6, info.num_blocks, info.block_tokens);
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(config, std::move(served), tokenizer->get(), executor->get());
  if (!server.ok()) return server.status();
  spdlog::info("gRPC on {}:{}{}, ready after {:.2f} s", config.host, (*server)->port(),
               Protection(config), watch.seconds());
  if ((*server)->health_port() >= 0) {
    spdlog::info("health alone, in plain text, on {}:{}", config.host, (*server)->health_port());
  }
  if ((*server)->metrics_port() >= 0) {
    spdlog::info("metrics on http://{}:{}/metrics", config.host, (*server)->metrics_port());
  }

  const int signal = signals->Wait();
  spdlog::info("{}: draining for at most {} s; a second signal ends at once",
               signal == SIGINT ? "interrupted" : "terminated", config.drain_seconds);
  const absl::Time stop = absl::Now();
  (*server)->Drain(stop + absl::Seconds(config.drain_seconds));
  spdlog::info("drained in {:.1f} s", absl::ToDoubleSeconds(absl::Now() - stop));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  absl::StatusOr<Config> config = ParseCommandLine(argc, argv);
  absl::Status status = config.status();
  if (status.ok()) {
    absl::StatusOr<std::unique_ptr<DrainSignals>> signals = DrainSignals::Create();
    status = signals.ok() ? Serve(*config, signals->get()) : signals.status();
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "fewbit-server: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) { return fewbit::Main(argc, argv); }
