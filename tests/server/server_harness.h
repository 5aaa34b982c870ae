// A server over a real loopback channel whose executor says what the test wants: tokens by script,
// one step at a time if asked for.
#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fewbit/v1/generation.grpc.pb.h"
#include "scheduler/mutex.h"
#include "server/config.h"
#include "server/server.h"
#include "server/tokenizer.h"
#include "tests/runtime/fake_executor.h"

namespace fewbit::testing {

struct HarnessOptions {
  Config config = {};        // ports are any free ones, whatever it says
  bool metrics = false;      // listen for /metrics
  bool gate_closed = false;  // steps wait for AllowSteps or OpenGate
  int32_t max_context = 4096;
  int32_t num_blocks = 4096;
  absl::Duration step_time = absl::ZeroDuration();
  int32_t steps_in_flight = 1;
  SamplingParams default_sampling = {};  // as generation_config.json would give
  std::string pci_bus_id = {};           // of the GPU that the executor says it has
};

// The demo model's tokenizer: 8192 entries, byte fallback, BOS 1, EOS 2.
const Tokenizer& DemoTokenizer();

// Ids of `text` as it continues a sentence, without BOS.
std::vector<TokenId> Tokens(std::string_view text);

// Returns when `condition` holds; fails the test after half a minute. For conditions that another
// thread makes true.
void WaitFor(const std::function<bool()>& condition, const std::string& what);

class Harness {
 public:
  explicit Harness(HarnessOptions options = {});
  ~Harness();  // opens the gate

  // Requests with this seed generate these ids, then EOS for ever. Unscripted seeds get ids that
  // depend on seed and position.
  void Script(uint64_t seed, std::vector<TokenId> ids);
  // A request that generates `text`.
  v1::GenerateRequest Saying(std::string_view text);

  Server& server() { return *server_; }
  FakeExecutor& executor() { return *executor_; }
  v1::GenerationService::Stub& stub() { return *stub_; }
  std::shared_ptr<grpc::Channel> channel() { return channel_; }
  // A connection of its own.
  std::shared_ptr<grpc::Channel> NewChannel() const;
  std::string address() const;
  uint64_t Count(Outcome outcome) const;
  // No sequence, no block and no call is left.
  void ExpectIdle();

 private:
  TokenId Say(const SampleRow& row);

  Mutex mu_;
  std::map<uint64_t, std::vector<TokenId>> scripts_ FEWBIT_GUARDED_BY(mu_);
  std::atomic<uint64_t> next_seed_{1};
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

// All of a stream, as one message and in parts.
struct Collected {
  grpc::Status status;
  std::vector<v1::GenerateResponse> messages;
  std::string text;
  std::vector<int32_t> token_ids;
  v1::GenerateResponse last;  // the last message
};
Collected Collect(grpc::ClientReader<v1::GenerateResponse>* reader);
Collected Stream(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                 grpc::ClientContext* context = nullptr);

// Value of the line of the exposition format for `series` (name and labels); -1 if there is none.
double MetricValue(const std::string& exposition, const std::string& series);
// GET /metrics.
std::string Scrape(int32_t port);

}  // namespace fewbit::testing
