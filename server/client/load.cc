#include "server/client/load.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "fewbit/v1/generation.grpc.pb.h"
#include "server/client/connection.h"
#include "server/client/interrupt.h"
#include "server/client/load_report.h"

namespace fewbit::client {
namespace {

using Clock = std::chrono::steady_clock;

// All requests of a run. The workers take them in order. Thread-safe: mu_.
class LoadRun {
 public:
  LoadRun(const ClientOptions& options, int32_t vocab_size)
      : options_(options), vocab_size_(vocab_size) {
    for (int32_t i = 0; i < options.load.connections; ++i) {
      stubs_.push_back(v1::GenerationService::NewStub(Connect(options)));
    }
  }

  // Sends `count` requests, numbered from `first`, and returns what happened to those that were
  // sent.
  std::vector<RequestRecord> Run(int64_t first, int64_t count) {
    next_ = first;
    end_ = first + count;
    records_.clear();
    due_ = DueTimes(first, count);
    start_ = Clock::now();
    std::vector<std::thread> workers;
    for (int64_t i = 0; i < std::min<int64_t>(options_.load.concurrency, count); ++i) {
      workers.emplace_back([this, i] { Work(*stubs_[i % stubs_.size()]); });
    }
    for (std::thread& worker : workers) worker.join();
    return std::move(records_);
  }

  // Cancels what runs and sends no more.
  void Stop() {
    const std::lock_guard lock(mu_);
    stopped_ = true;
    for (grpc::ClientContext* context : running_) context->TryCancel();
    changed_.notify_all();
  }

  std::string first_error() const { return first_error_; }  // after Run

 private:
  // Seconds after the start, exponential gaps; none for a closed loop.
  std::vector<double> DueTimes(int64_t first, int64_t count) const {
    std::vector<double> due;
    if (options_.load.rate <= 0) return due;
    std::mt19937_64 random(first);
    std::exponential_distribution<double> gap(options_.load.rate);
    double time = 0.0;
    for (int64_t i = 0; i < count; ++i) due.push_back(time += gap(random));
    return due;
  }

  double Now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  v1::GenerateRequest MakeRequest(int64_t index) const {
    v1::GenerateRequest request = options_.request;
    request.mutable_stopping()->set_ignore_eos(true);
    if (request.sampling().has_seed()) {
      request.mutable_sampling()->set_seed(request.sampling().seed() + index);
    }
    if (!request.request_id().empty()) {
      request.set_request_id(absl::StrCat(request.request_id(), "-", index));
    }
    if (options_.load.prompt_tokens > 0) {
      std::mt19937 random(static_cast<uint32_t>(index));
      auto* ids = request.mutable_token_ids();
      for (int32_t i = 0; i < options_.load.prompt_tokens; ++i) {
        // The low ids are control tokens and bytes; words are a fairer prompt.
        const auto low = std::min(vocab_size_ - 1, 300);
        ids->add_ids(low + static_cast<int32_t>(random() % (vocab_size_ - low)));
      }
    }
    return request;
  }

  void Work(v1::GenerationService::Stub& stub) {
    std::unique_lock lock(mu_);
    while (next_ < end_ && !stopped_) {
      const int64_t index = next_++;
      const int64_t order = index - (end_ - static_cast<int64_t>(due_.size()));
      const double due = due_.empty() ? 0.0 : due_[order];
      if (!due_.empty()) {
        const auto time = start_ + std::chrono::duration_cast<Clock::duration>(
                                       std::chrono::duration<double>(due));
        if (changed_.wait_until(lock, time, [this] { return stopped_; })) return;
      }
      grpc::ClientContext context;
      PrepareCall(options_, &context);
      running_.insert(&context);
      lock.unlock();
      RequestRecord record = Send(stub, MakeRequest(index), &context);
      if (!due_.empty()) record.due = due;
      lock.lock();
      running_.erase(&context);
      if (!stopped_) records_.push_back(std::move(record));
    }
  }

  RequestRecord Send(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                     grpc::ClientContext* context) {
    RequestRecord record;
    record.due = record.sent = Now();
    const auto reader = stub.GenerateStream(context, request);
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      if (message.token_ids_size() > 0) record.token_times.push_back(Now());
      if (!message.has_usage()) continue;
      record.prompt_tokens = message.usage().prompt_tokens();
      record.generated_tokens = message.usage().generated_tokens();
    }
    const grpc::Status status = reader->Finish();
    record.ended = Now();
    if (!status.ok()) {
      record.error = CodeName(status.error_code());
      const std::lock_guard lock(mu_);
      if (first_error_.empty() && !stopped_) {
        first_error_ = DescribeFailure(status, options_.address, *context);
      }
    }
    return record;
  }

  const ClientOptions& options_;
  const int32_t vocab_size_;
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs_;
  std::vector<double> due_;  // empty: closed loop
  Clock::time_point start_;

  std::mutex mu_;
  std::condition_variable changed_;  // stopped_
  bool stopped_ = false;
  int64_t next_ = 0;
  int64_t end_ = 0;
  std::set<grpc::ClientContext*> running_;
  std::vector<RequestRecord> records_;
  std::string first_error_;
};

std::string Describe(const LoadOptions& load, int64_t measured) {
  std::string text = absl::StrCat(measured, " requests, ");
  if (load.rate > 0) {
    absl::StrAppend(&text, "Poisson arrivals at ", load.rate, "/s, at most ", load.concurrency,
                    " at a time");
  } else {
    absl::StrAppend(&text, "closed loop, ", load.concurrency, " at a time");
  }
  absl::StrAppend(&text, ", ", load.connections,
                  load.connections == 1 ? " connection" : " connections", ", after ", load.warmup,
                  " for warm-up\nprompts: ");
  absl::StrAppend(&text, load.prompt_tokens > 0
                             ? absl::StrCat(load.prompt_tokens, " random tokens, all different")
                             : std::string("the same for all"));
  return text + "; end-of-text ignored\n";
}

}  // namespace

int RunLoad(const ClientOptions& options, std::ostream& out, std::ostream& err) {
  int32_t vocab_size = 0;
  {
    grpc::ClientContext context;
    PrepareCall(options, &context);
    if (options.timeout_seconds <= 0) SetTimeout(10.0, &context);
    v1::GetModelInfoResponse info;
    const grpc::Status status =
        v1::GenerationService::NewStub(Connect(options))->GetModelInfo(&context, {}, &info);
    if (!status.ok()) {
      err << "fewbit-client: " << DescribeFailure(status, options.address, context) << std::endl;
      return 1;
    }
    vocab_size = static_cast<int32_t>(info.vocab_size());
  }
  LoadRun run(options, std::max(vocab_size, 1));
  InterruptWatcher watcher([&run] { run.Stop(); });
  run.Run(0, options.load.warmup);
  const std::vector<RequestRecord> records = run.Run(options.load.warmup, options.load.requests);
  const LoadReport report = MakeReport(records);
  if (options.json) {
    out << ReportJson(report) << std::endl;
  } else {
    out << Describe(options.load, static_cast<int64_t>(records.size())) << ReportText(report)
        << std::flush;
  }
  if (watcher.interrupted()) {
    err << "interrupted: the numbers are of the requests that had ended" << std::endl;
    return 130;
  }
  if (!run.first_error().empty()) {
    err << "fewbit-client: the first failure was " << run.first_error() << std::endl;
  }
  return report.finished > 0 && report.failed.empty() ? 0 : 1;
}

}  // namespace fewbit::client
