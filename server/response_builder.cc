#include "server/response_builder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fewbit {
namespace {

bool Contains(std::span<const TokenId> ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

DetokenizerOptions DetokenizerOptionsOf(const OutputOptions& output) {
  DetokenizerOptions options;
  options.stop_strings = output.stop_strings;
  options.include_stop_string = output.include_stop_string;
  options.min_tokens = output.min_new_tokens;
  return options;
}

v1::FinishReason FinishReasonOf(Outcome outcome) {
  switch (outcome) {
    case Outcome::kLength:
      return v1::FINISH_REASON_LENGTH;
    case Outcome::kEos:
      return v1::FINISH_REASON_EOS;
    case Outcome::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case Outcome::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case Outcome::kTimeLimit:
      return v1::FINISH_REASON_TIME_LIMIT;
    case Outcome::kAborted:
      return v1::FINISH_REASON_ABORTED;
    case Outcome::kDrained:
      return v1::FINISH_REASON_DRAINED;
    default:  // ended by its status
      return v1::FINISH_REASON_UNSPECIFIED;
  }
}

// Of an end that delivers nothing.
Waste WasteOf(Outcome outcome) {
  switch (outcome) {
    case Outcome::kClientLeft:
      return Waste::kClientLeft;
    case Outcome::kDeadline:
      return Waste::kDeadline;
    case Outcome::kSlowReader:
      return Waste::kSlowReader;
    default:
      return Waste::kInternal;
  }
}

}  // namespace

void AppendResponse(v1::GenerateResponse* from, v1::GenerateResponse* to) {
  to->mutable_text()->append(from->text());
  to->mutable_token_ids()->MergeFrom(from->token_ids());
  for (v1::TokenDetail& detail : *from->mutable_details()) *to->add_details() = std::move(detail);
  for (v1::TokenDetail& detail : *from->mutable_prompt_details()) {
    *to->add_prompt_details() = std::move(detail);
  }
  if (from->has_prompt()) *to->mutable_prompt() = std::move(*from->mutable_prompt());
  if (from->finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    to->set_finish_reason(from->finish_reason());
    to->set_matched_stop_string(from->matched_stop_string());
    if (from->has_matched_stop_token_id()) {
      to->set_matched_stop_token_id(from->matched_stop_token_id());
    }
  }
  if (from->has_usage()) *to->mutable_usage() = std::move(*from->mutable_usage());
  from->Clear();
}

ResponseBuilder::ResponseBuilder(StartedRequest started, std::span<const TokenId> prompt,
                                 const ServedModel* model, const Tokenizer* tokenizer,
                                 ServerStats* stats)
    : started_(std::move(started)),
      model_(model),
      tokenizer_(tokenizer),
      stats_(stats),
      detokenizer_(tokenizer, prompt, DetokenizerOptionsOf(started_.output)) {}

void ResponseBuilder::AddDetail(const SampledToken& token, v1::TokenDetail* detail) const {
  detail->set_token_id(ToInt(token.token));
  detail->set_piece(tokenizer_->Piece(token.token));
  detail->set_logprob(token.logprob);
  detail->set_rank(static_cast<uint32_t>(token.rank));
  for (int32_t i = 0; i < token.num_top; ++i) {
    v1::TokenAlternative* top = detail->add_top();
    top->set_token_id(ToInt(token.top[i].token));
    top->set_piece(tokenizer_->Piece(token.top[i].token));
    top->set_logprob(token.top[i].logprob);
  }
}

void ResponseBuilder::AddPromptInfo() {
  if (introduced_) return;
  introduced_ = true;
  v1::PromptInfo* prompt = delta_.mutable_prompt();
  prompt->set_prompt_tokens(started_.prompt_tokens);
  prompt->set_truncated_tokens(started_.truncated_tokens);
  prompt->set_seed(started_.seed);
  prompt->set_request_id(started_.name);
  delta_.mutable_text()->append(started_.echo);
  std::string().swap(started_.echo);
}

void ResponseBuilder::AddPromptLogprob(const SampledToken& token) {
  AddPromptInfo();
  AddDetail(token, delta_.add_prompt_details());
}

bool ResponseBuilder::AddToken(const SampledToken& token, absl::Time time) {
  if (detokenizer_.stopped()) return true;  // made before the engine heard of the stop
  AddPromptInfo();
  if (generated_ == 0) {
    first_token_time_ = time;
    stats_->time_to_first_token_seconds.Observe(absl::ToDoubleSeconds(time - started_.arrival));
  } else {
    stats_->inter_token_seconds.Observe(absl::ToDoubleSeconds(time - last_token_time_));
  }
  last_token_time_ = time;
  last_token_ = token.token;
  ++generated_;
  stats_->device.AddGeneratedToken();
  delta_.add_token_ids(ToInt(token.token));
  if (started_.output.logprobs) AddDetail(token, delta_.add_details());
  // A client's stop id ends the text without being part of it.
  if (Contains(started_.output.stop_token_ids, token.token)) return false;
  return detokenizer_.Push(token.token, delta_.mutable_text());
}

bool ResponseBuilder::Flush() {
  if (slow_reader_) return false;
  slow_reader_ = !started_.sink->Write(&delta_);
  return !slow_reader_;
}

Ending ResponseBuilder::EndingOf(const TokenEvent& event, bool aborted) {
  // A client that gives up at its deadline does so before ours: by the time that its call took to
  // arrive.
  constexpr absl::Duration kArrival = absl::Milliseconds(100);
  const bool late = event.time + kArrival >= started_.deadline;
  if (detokenizer_.stopped() && event.finish_reason != FinishReason::kError) {
    return {Outcome::kStopString, absl::OkStatus()};
  }
  switch (event.finish_reason) {
    case FinishReason::kLength:
      return {Outcome::kLength, absl::OkStatus()};
    case FinishReason::kStopToken:
      return {Contains(started_.output.stop_token_ids, last_token_) ? Outcome::kStopToken
                                                                    : Outcome::kEos,
              absl::OkStatus()};
    case FinishReason::kTimeLimit:
      return {Outcome::kTimeLimit, absl::OkStatus()};
    case FinishReason::kDrained:
      return {Outcome::kDrained, absl::OkStatus()};
    case FinishReason::kCancelled:
      if (aborted) return {Outcome::kAborted, absl::OkStatus()};
      if (slow_reader_) {
        return {Outcome::kSlowReader,
                absl::CancelledError("the client did not read its responses in time")};
      }
      if (!late) return {Outcome::kClientLeft, absl::CancelledError("cancelled by the client")};
      [[fallthrough]];
    case FinishReason::kDeadline:
      return {Outcome::kDeadline, absl::DeadlineExceededError(absl::StrCat(
                                      "the deadline passed after ", generated_, " tokens"))};
    case FinishReason::kError:
    case FinishReason::kNone:
      break;
  }
  return {Outcome::kInternal,
          absl::InternalError(absl::StrCat("the engine failed request ", started_.name,
                                           "; the server's log has the reason"))};
}

void ResponseBuilder::CountTokens(const TokenEvent& event, const Ending& ending) {
  const RequestTiming& timing = event.timing;
  const auto add = [](std::atomic<uint64_t>& counter, int64_t value) {
    counter.fetch_add(static_cast<uint64_t>(value), std::memory_order_relaxed);
  };
  stats_->Count(ending.outcome);
  stats_->queue_seconds.Observe(timing.queue_wait_ms / 1e3);
  stats_->prompt_tokens.Observe(started_.prompt_tokens);
  stats_->generated_tokens.Observe(timing.generated_tokens);
  const int32_t surplus = std::max(0, timing.generated_tokens - generated_);
  if (!ending.status.ok()) {
    stats_->wasted.Add(WasteOf(ending.outcome), started_.prompt_tokens, generated_ + surplus);
    return;
  }
  add(stats_->prompt_tokens_delivered, started_.prompt_tokens);
  add(stats_->generated_tokens_delivered, generated_);
  stats_->wasted.Add(Waste::kAfterStop, 0, surplus);
  if (generated_ == 0) return;
  stats_->request_seconds.Observe(absl::ToDoubleSeconds(last_token_time_ - started_.arrival));
  if (generated_ > 1) {
    stats_->time_per_output_token_seconds.Observe(
        absl::ToDoubleSeconds(last_token_time_ - first_token_time_) / (generated_ - 1));
  }
}

double ResponseBuilder::TakeDeviceSeconds(const TokenEvent& event) {
  if (event.timing.generated_tokens == 0) return 0.0;  // its prompt may not have run to the end
  return stats_->device.TakeShare(started_.prompt_tokens, event.timing.generated_tokens - 1);
}

void ResponseBuilder::CountForTenant(const TokenEvent& event, const Ending& ending,
                                     double device_seconds) {
  const uint64_t generated = static_cast<uint64_t>(generated_);
  const uint64_t surplus =
      static_cast<uint64_t>(std::max(0, event.timing.generated_tokens - generated_));
  TenantUsage usage;
  if (ending.status.ok()) {
    usage.prompt_delivered = static_cast<uint64_t>(started_.prompt_tokens);
    usage.generated_delivered = generated;
    usage.generated_aborted = surplus;
  } else {
    usage.prompt_aborted = static_cast<uint64_t>(started_.prompt_tokens);
    usage.generated_aborted = generated + surplus;
  }
  usage.device_seconds = device_seconds;
  stats_->tenants.Add(started_.tenant, usage);
}

// A request that was ended before a first token has missed its target if it had the time for it, or
// if the end was the server's doing.
void ResponseBuilder::CountSlo(const TokenEvent& event, Outcome outcome) {
  const AccountingOptions& targets = stats_->accounting;
  if (targets.slo_ttft_ms > 0) {
    const absl::Duration target = absl::Milliseconds(targets.slo_ttft_ms);
    if (generated_ > 0) {
      stats_->slo_ttft.Add(first_token_time_ - started_.arrival <= target);
    } else if (outcome == Outcome::kInternal || event.time - started_.arrival > target) {
      stats_->slo_ttft.Add(false);
    }
  }
  if (targets.slo_tpot_ms > 0 && generated_ > 1) {
    const absl::Duration mean = (last_token_time_ - first_token_time_) / (generated_ - 1);
    stats_->slo_tpot.Add(mean <= absl::Milliseconds(targets.slo_tpot_ms));
  }
}

Ending ResponseBuilder::Finish(const TokenEvent& event, bool aborted) {
  AddPromptInfo();
  detokenizer_.Finish(delta_.mutable_text());
  const Ending ending = EndingOf(event, aborted);
  delta_.set_finish_reason(FinishReasonOf(ending.outcome));
  if (ending.outcome == Outcome::kStopString) {
    delta_.set_matched_stop_string(std::string(detokenizer_.matched_stop_string()));
  }
  if (ending.outcome == Outcome::kEos || ending.outcome == Outcome::kStopToken) {
    delta_.set_matched_stop_token_id(ToInt(last_token_));
  }
  v1::Usage* usage = delta_.mutable_usage();
  usage->set_prompt_tokens(started_.prompt_tokens);
  usage->set_generated_tokens(generated_);
  usage->set_queue_wait_ms(event.timing.queue_wait_ms);
  usage->set_prefill_ms(event.timing.prefill_ms);
  usage->set_decode_ms(event.timing.decode_ms);
  const double device_seconds = TakeDeviceSeconds(event);
  usage->set_device_seconds(device_seconds);
  if (stats_->accounting.gpu_hour_usd > 0.0) {
    usage->set_cost_usd(device_seconds * stats_->accounting.gpu_hour_usd / 3600.0);
  }
  CountTokens(event, ending);
  CountForTenant(event, ending, device_seconds);
  CountSlo(event, ending.outcome);
  started_.ticket.Release();
  started_.sink->Finish(&delta_, ending.status);
  return ending;
}

Ending ResponseBuilder::Refuse(absl::Status status, Outcome outcome) {
  stats_->Count(outcome);
  started_.ticket.Release();
  delta_.Clear();
  started_.sink->Finish(&delta_, status);
  return {outcome, std::move(status)};
}

}  // namespace fewbit
