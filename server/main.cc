// fewbit-server: flags -> Config -> Loaded -> Server -> signal -> drain. Exit code 0 after a clean
// drain or a --check that found nothing wrong, 1 with one line on stderr for whatever keeps it from
// starting.
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/config.h"
#include "server/config_flags.h"
#include "server/drain_signals.h"
#include "server/server.h"
#include "server/startup.h"

namespace fewbit {
namespace {

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

std::string Endpoints(const Config& config) {
  std::string text = absl::StrCat("gRPC on ", config.host, ":", config.port, Protection(config));
  if (!config.api_keys_file.empty()) absl::StrAppend(&text, " for holders of API keys");
  if (config.health_port >= 0) absl::StrAppend(&text, ", health on :", config.health_port);
  if (config.metrics_port >= 0) absl::StrAppend(&text, ", metrics on :", config.metrics_port);
  return text;
}

// --check: everything but the ports.
absl::Status Check(const Config& config) {
  spdlog::set_level(spdlog::level::warn);
  const absl::StatusOr<Loaded> loaded = Load(config);
  if (!loaded.ok()) return loaded.status();
  for (const std::string& fact : loaded->facts) std::printf("%s\n", fact.c_str());
  std::printf("would serve: %s\n", Endpoints(config).c_str());
  return absl::OkStatus();
}

// Runs until a signal. The status says why it could not start.
absl::Status Serve(const Config& config, DrainSignals* signals) {
  const absl::Time start = absl::Now();
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  absl::StatusOr<Loaded> loaded = Load(config);
  if (!loaded.ok()) return loaded.status();
  for (const std::string& fact : loaded->facts) spdlog::info("{}", fact);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(
      config, std::move(loaded->served), loaded->tokenizer.get(), loaded->executor.get());
  if (!server.ok()) return server.status();
  spdlog::info("gRPC on {}:{}{}, ready after {:.2f} s", config.host, (*server)->port(),
               Protection(config), absl::ToDoubleSeconds(absl::Now() - start));
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

absl::Status Run(const Config& config, DrainSignals* signals) {
  absl::Status status = Validate(config);
  if (!status.ok()) return status;
  QuietLibraries();
  return config.check ? Check(config) : Serve(config, signals);
}

int Main(int argc, char** argv) {
  absl::StatusOr<Config> config = ParseCommandLine(argc, argv);
  absl::Status status = config.status();
  if (status.ok()) {
    absl::StatusOr<std::unique_ptr<DrainSignals>> signals = DrainSignals::Create();
    status = signals.ok() ? Run(*config, signals->get()) : signals.status();
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "fewbit-server: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) { return fewbit::Main(argc, argv); }
