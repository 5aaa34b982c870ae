// What one request says, from its events: text through the detokenizer, token details, finish
// reason, usage, status. It refuses to know about writing (ResponseSink) and scheduling (the
// engine).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fewbit/v1/generation.pb.h"
#include "scheduler/step.h"
#include "server/admission.h"
#include "server/detokenizer.h"
#include "server/metrics.h"
#include "server/request_codec.h"
#include "server/response_sink.h"
#include "server/served_model.h"
#include "server/tenants.h"
#include "server/tokenizer.h"

namespace fewbit {

// A request on its way to the engine, as far as its responses are concerned.
struct StartedRequest {
  RequestId id{};
  std::string name;  // the request_id, the client's or ours
  OutputOptions output;
  std::string echo;  // text to stand in front, if asked for
  TenantId tenant = Tenants::kNone;
  int32_t prompt_tokens = 0;
  int32_t truncated_tokens = 0;
  uint64_t seed = 0;
  absl::Time arrival;
  absl::Time deadline = absl::InfiniteFuture();  // the call's
  ResponseSink* sink = nullptr;                  // lives until its Finish
  Admission::Ticket ticket;                      // given back with the final event
};

// How a request ended, for status, counters and log.
struct Ending {
  Outcome outcome = Outcome::kInternal;
  absl::Status status;
};

// Thread rule: the emitter's thread, after construction. `model`, `tokenizer` and `stats` outlive
// it.
class ResponseBuilder {
 public:
  // `prompt`: the tokens that run.
  ResponseBuilder(StartedRequest started, std::span<const TokenId> prompt, const ServedModel* model,
                  const Tokenizer* tokenizer, ServerStats* stats);

  void AddPromptLogprob(const SampledToken& token);

  // Returns true if nothing behind this token is wanted: a stop string has ended the text.
  bool AddToken(const SampledToken& token, absl::Time time);

  // Offers what there is to the sink. False: the reader is too slow.
  bool Flush();

  // Completes the response from the final event, counts it, gives the ticket back and finishes the
  // sink. Returns how it went.
  Ending Finish(const TokenEvent& final_event, bool aborted);

  // The engine did not take the request.
  Ending Refuse(absl::Status status, Outcome outcome);

  RequestId id() const { return started_.id; }
  const std::string& name() const { return started_.name; }
  // Set by the emitter's loop: in the list of those with something new.
  bool touched = false;

 private:
  void AddDetail(const SampledToken& token, v1::TokenDetail* detail) const;
  void AddPromptInfo();
  Ending EndingOf(const TokenEvent& final_event, bool aborted);
  void CountTokens(const TokenEvent& final_event, const Ending& ending);
  // The device seconds of the request.
  double TakeDeviceSeconds(const TokenEvent& final_event);
  void CountForTenant(const TokenEvent& final_event, const Ending& ending, double device_seconds);
  void CountSlo(const TokenEvent& final_event, Outcome outcome);

  StartedRequest started_;
  const ServedModel* const model_;
  const Tokenizer* const tokenizer_;
  ServerStats* const stats_;
  Detokenizer detokenizer_;
  v1::GenerateResponse delta_;  // not yet taken by the sink
  bool introduced_ = false;     // the prompt's counts have been put into delta_
  bool slow_reader_ = false;
  int32_t generated_ = 0;  // delivered tokens
  TokenId last_token_{-1};
  absl::Time first_token_time_, last_token_time_;
};

}  // namespace fewbit
