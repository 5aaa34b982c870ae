#include "server/client/generate.h"

#include <google/protobuf/util/json_util.h>

#include <chrono>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/client/connection.h"
#include "server/client/interrupt.h"

namespace fewbit::client {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string Quoted(const std::string& text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text), "\"");
}

// Prints the messages of one request and remembers what the last line says. Main thread only.
class Printer {
 public:
  Printer(const ClientOptions& options, std::ostream& out) : options_(options), out_(out) {}

  void Print(const v1::GenerateResponse& message) {
    const Clock::time_point now = Clock::now();
    if (message.token_ids_size() > 0) {
      if (!first_token_) first_token_ = now;
      last_token_ = now;
      num_tokens_ += message.token_ids_size();
    }
    if (message.has_prompt()) prompt_ = message.prompt();
    if (message.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) last_ = message;
    if (options_.json) {
      out_ << ToJson(message) << std::endl;
      return;
    }
    for (const v1::TokenDetail& detail : message.prompt_details()) Keep(detail, "prompt ");
    for (const v1::TokenDetail& detail : message.details()) Keep(detail, "");
    if (message.text().empty()) return;
    ends_line_ = message.text().back() == '\n';
    out_ << message.text() << std::flush;
  }

  // Ends the line, and prints the table of --logprobs below it.
  void EndText() {
    if (!ends_line_) out_ << std::endl;
    if (!details_.empty()) out_ << "\n" << details_ << std::flush;
  }

  std::string Summary(Clock::time_point sent) const {
    const v1::Usage& usage = last_.usage();
    std::string text =
        absl::StrFormat("%d prompt tokens, %d generated, ended by %s", usage.prompt_tokens(),
                        usage.generated_tokens(), DescribeFinish(last_));
    if (prompt_.truncated_tokens() > 0) {
      absl::StrAppendFormat(&text, " (%d prompt tokens cut off)", prompt_.truncated_tokens());
    }
    absl::StrAppend(&text, "\n");
    if (options_.stream && first_token_) {
      absl::StrAppendFormat(&text, "first token after %.1f ms",
                            1e3 * Seconds(*first_token_ - sent));
      const double decode = Seconds(last_token_ - *first_token_);
      if (num_tokens_ > 1 && decode > 0) {
        absl::StrAppendFormat(&text, ", then %.1f tokens/s", (num_tokens_ - 1) / decode);
      }
      absl::StrAppend(&text, ", ");
    }
    absl::StrAppendFormat(&text, "%.3f s in all", Seconds(Clock::now() - sent));
    absl::StrAppendFormat(&text,
                          " (server: queue %.1f ms, prefill %.1f ms, decode %.1f ms; %.3g device "
                          "seconds",
                          usage.queue_wait_ms(), usage.prefill_ms(), usage.decode_ms(),
                          usage.device_seconds());
    if (usage.has_cost_usd()) absl::StrAppendFormat(&text, ", %.3g dollars", usage.cost_usd());
    absl::StrAppend(&text, ")");
    absl::StrAppend(&text, "\nseed ", prompt_.seed(), ", request ", prompt_.request_id(), "\n");
    return text;
  }

 private:
  void Keep(const v1::TokenDetail& detail, const char* prefix) {
    absl::StrAppendFormat(&details_, "%s%d %s logprob %.4f rank %d", prefix, detail.token_id(),
                          Quoted(detail.piece()), detail.logprob(), detail.rank());
    const char* separator = "; likeliest: ";
    for (const v1::TokenAlternative& top : detail.top()) {
      absl::StrAppendFormat(&details_, "%s%s %.4f", separator, Quoted(top.piece()), top.logprob());
      separator = ", ";
    }
    absl::StrAppend(&details_, "\n");
  }

  const ClientOptions& options_;
  std::ostream& out_;
  bool ends_line_ = true;
  std::string details_;
  int64_t num_tokens_ = 0;
  std::optional<Clock::time_point> first_token_;
  Clock::time_point last_token_;
  v1::PromptInfo prompt_;
  v1::GenerateResponse last_;
};

}  // namespace

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : absl::StrCat("{\"error\": ", Quoted(status.ToString()), "}");
}

std::string DescribeFinish(const v1::GenerateResponse& last) {
  switch (last.finish_reason()) {
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_EOS:
      return "the model's end of text";
    case v1::FINISH_REASON_STOP_TOKEN:
      return absl::StrCat("stop token ", last.matched_stop_token_id());
    case v1::FINISH_REASON_STOP_STRING:
      return absl::StrCat("stop string ", Quoted(last.matched_stop_string()));
    case v1::FINISH_REASON_TIME_LIMIT:
      return "the time limit";
    case v1::FINISH_REASON_ABORTED:
      return "an abort";
    case v1::FINISH_REASON_DRAINED:
      return "the server's shutdown";
    default:
      return "no known reason";
  }
}

int RunGenerate(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
                std::ostream& out, std::ostream& err) {
  grpc::ClientContext context;
  PrepareCall(options, &context);
  InterruptWatcher watcher([&context] { context.TryCancel(); });
  Printer printer(options, out);
  const Clock::time_point sent = Clock::now();
  v1::GenerateResponse message;
  grpc::Status status;
  if (options.stream) {
    const auto reader = stub->GenerateStream(&context, options.request);
    while (reader->Read(&message)) printer.Print(message);
    status = reader->Finish();
  } else {
    status = stub->Generate(&context, options.request, &message);
    if (status.ok()) printer.Print(message);
  }
  if (!options.json) printer.EndText();
  if (watcher.interrupted()) {
    err << "cancelled" << std::endl;
    return 130;
  }
  if (!status.ok()) {
    err << "fewbit-client: " << DescribeFailure(status, options.address, context) << std::endl;
    return 1;
  }
  if (!options.quiet) err << printer.Summary(sent) << std::flush;
  return 0;
}

}  // namespace fewbit::client
