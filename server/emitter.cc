#include "server/emitter.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "scheduler/check.h"

namespace fewbit {
namespace {

void Log(const ResponseBuilder& builder, const Ending& ending, const RequestTiming& timing) {
  const OutcomeLabels labels = LabelsOf(ending.outcome);
  const auto level =
      ending.outcome == Outcome::kInternal ? spdlog::level::err : spdlog::level::debug;
  spdlog::log(level,
              "request {} ended: {} {}; prompt {} generated {} tokens; queue {:.1f} prefill {:.1f} "
              "decode {:.1f} ms",
              builder.name(), labels.code, labels.reason, timing.prompt_tokens,
              timing.generated_tokens, timing.queue_wait_ms, timing.prefill_ms, timing.decode_ms);
}

}  // namespace

void Emitter::Batch::Clear() {
  registered.clear();
  events.clear();
  refusals.clear();
}

Emitter::Emitter(LiveRequests* live, ServerStats* stats) : live_(live), stats_(stats) {}

Emitter::~Emitter() { Stop(); }

void Emitter::Start(Engine* engine, std::function<void()> on_error) {
  FEWBIT_CHECK(engine_ == nullptr) << "started twice";
  engine_ = engine;
  on_error_ = std::move(on_error);
  thread_ = std::thread([this] { Run(); });
}

void Emitter::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  wake_.NotifyOne();
  if (thread_.joinable()) thread_.join();
}

void Emitter::Register(std::unique_ptr<ResponseBuilder> builder) {
  MutexLock lock(&mu_);  // no wake-up: its events bring one
  incoming_.registered.push_back(std::move(builder));
}

void Emitter::Refuse(RequestId id, absl::Status status, Outcome outcome) {
  {
    MutexLock lock(&mu_);
    incoming_.refusals.push_back({id, std::move(status), outcome});
  }
  wake_.NotifyOne();
}

void Emitter::OnEvents(std::span<const TokenEvent> events) {
  {
    MutexLock lock(&mu_);
    incoming_.events.insert(incoming_.events.end(), events.begin(), events.end());
  }
  wake_.NotifyOne();
}

void Emitter::OnStep(const StepReport& report) {
  stats_->step_sequences.Observe(report.sequences);
  stats_->step_tokens.Observe(report.tokens);
  stats_->step_seconds.Observe(report.seconds);
  stats_->device.AddStep(report, DeviceMeter::SteadySeconds());
}

void Emitter::Run() {
  Batch batch;
  while (true) {
    {
      MutexLock lock(&mu_);
      while (incoming_.events.empty() && incoming_.refusals.empty() && !stopping_) {
        wake_.Wait(&mu_);
      }
      if (incoming_.empty()) return;
      std::swap(batch, incoming_);
    }
    Process(&batch);
    batch.Clear();
  }
}

void Emitter::Process(Batch* batch) {
  for (std::unique_ptr<ResponseBuilder>& builder : batch->registered) {
    const RequestId id = builder->id();
    builders_.emplace(id, std::move(builder));
  }
  for (Refusal& refusal : batch->refusals) {
    auto node = builders_.extract(refusal.id);
    FEWBIT_CHECK(!node.empty()) << ToInt(refusal.id);
    ResponseBuilder& builder = *node.mapped();
    live_->Remove(builder.name());
    Log(builder, builder.Refuse(std::move(refusal.status), refusal.outcome), RequestTiming());
  }
  for (const TokenEvent& event : batch->events) Handle(event);
  for (ResponseBuilder* builder : touched_) {
    builder->touched = false;
    if (!builder->Flush()) engine_->Cancel(builder->id());
  }
  touched_.clear();
}

void Emitter::Handle(const TokenEvent& event) {
  if (event.kind == TokenEvent::Kind::kFinished) {
    End(event);
    return;
  }
  const auto found = builders_.find(event.request);
  FEWBIT_CHECK(found != builders_.end()) << "event of unknown request " << ToInt(event.request);
  ResponseBuilder* builder = found->second.get();
  if (event.kind == TokenEvent::Kind::kPromptLogprob) {
    builder->AddPromptLogprob(event.token);
  } else if (builder->AddToken(event.token, event.time)) {
    engine_->Cancel(event.request);
  }
  if (!builder->touched) {
    builder->touched = true;
    touched_.push_back(builder);
  }
}

void Emitter::End(const TokenEvent& event) {
  auto node = builders_.extract(event.request);
  FEWBIT_CHECK(!node.empty()) << "end of unknown request " << ToInt(event.request);
  ResponseBuilder& builder = *node.mapped();
  if (builder.touched) {
    touched_.erase(std::find(touched_.begin(), touched_.end(), &builder));
  }
  const bool aborted = live_->Remove(builder.name());
  const Ending ending = builder.Finish(event, aborted);
  Log(builder, ending, event.timing);
  if (ending.outcome == Outcome::kInternal) on_error_();
}

}  // namespace fewbit
