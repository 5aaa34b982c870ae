// fewbit-client: flags -> options -> one of five things to do.
#include <unistd.h>

#include <iostream>

#include "google/protobuf/stubs/logging.h"
#include "server/client/client_flags.h"
#include "server/client/connection.h"
#include "server/client/generate.h"
#include "server/client/inspect.h"
#include "server/client/interrupt.h"
#include "server/client/load.h"

namespace fewbit::client {
namespace {

int Main(int argc, char** argv) {
  BlockInterrupts();
  // Text that is not UTF-8 is the server's to refuse: it names the field and the byte.
  google::protobuf::SetLogHandler(nullptr);
  const absl::StatusOr<ClientOptions> options =
      ParseCommandLine(argc, argv, std::cin, isatty(STDIN_FILENO) != 0);
  if (!options.ok()) {
    std::cerr << "fewbit-client: " << options.status().message() << std::endl;
    return 2;
  }
  if (options->wait_ready_seconds > 0) {
    grpc::ClientContext context;
    InterruptWatcher watcher([&context] { context.TryCancel(); });
    const grpc::Status status = WaitReady(*options, options->wait_ready_seconds, &context);
    if (watcher.interrupted()) return 130;
    if (!status.ok()) {
      std::cerr << "fewbit-client: " << DescribeFailure(status, options->address, context)
                << std::endl;
      return 1;
    }
  }
  if (options->mode == ClientOptions::Mode::kHealth) return 0;
  if (options->mode == ClientOptions::Mode::kLoad) return RunLoad(*options, std::cout, std::cerr);
  const auto stub = v1::GenerationService::NewStub(Connect(*options));
  if (options->mode == ClientOptions::Mode::kGenerate) {
    return RunGenerate(*options, stub.get(), std::cout, std::cerr);
  }
  return RunInspect(*options, stub.get(), std::cout, std::cerr);
}

}  // namespace
}  // namespace fewbit::client

int main(int argc, char** argv) { return fewbit::client::Main(argc, argv); }
