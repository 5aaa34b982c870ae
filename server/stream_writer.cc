#include "server/stream_writer.h"

#include <chrono>

#include "server/request_codec.h"
#include "server/status_codec.h"

namespace fewbit {

StreamWriter::StreamWriter(grpc::CallbackServerContext* context, const StreamLimits& limits,
                           std::function<void()> on_cancel)
    : context_(context), limits_(limits), on_cancel_(std::move(on_cancel)) {}

void StreamWriter::Reject(const absl::Status& status) {
  grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(ToGrpcStatus(status, context_));
}

bool StreamWriter::Write(v1::GenerateResponse* delta) {
  bool too_slow = false;
  {
    MutexLock lock(&mu_);
    if (broken_) {
      delta->Clear();
      return true;  // OnCancel asks for the end
    }
    if (in_flight_) {
      pending_bytes_ += delta->ByteSizeLong();
      too_slow = pending_bytes_ > limits_.buffer_bytes;
      if (!too_slow) {
        AppendResponse(delta, &pending_);
        has_pending_ = true;
        return true;
      }
      broken_ = true;
      pending_ = v1::GenerateResponse();
    }
    in_flight_ = true;
  }
  if (too_slow) {
    delta->Clear();
    context_->TryCancel();  // the write in flight fails, so the status can go out
    return false;
  }
  Send(delta, false, grpc::Status::OK);
  return true;
}

void StreamWriter::Finish(v1::GenerateResponse* last, const absl::Status& status) {
  grpc::Status final_status = ToGrpcStatus(status, context_);
  StartTimeout();
  bool broken = false;
  {
    MutexLock lock(&mu_);
    if (in_flight_) {  // OnWriteDone ends the call
      if (!broken_) AppendResponse(last, &pending_);
      has_pending_ = true;
      finishing_ = true;
      status_ = std::move(final_status);
      return;
    }
    in_flight_ = true;
    broken = broken_;
  }
  if (broken || last->ByteSizeLong() == 0) {
    grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(std::move(final_status));
  } else {
    Send(last, true, std::move(final_status));
  }
}

void StreamWriter::OnWriteDone(bool ok) {
  bool broken = false;
  bool last = false;
  grpc::Status status;
  {
    MutexLock lock(&mu_);
    if (!ok) broken_ = true;
    broken = broken_;
    if (finishing_) {
      last = true;
      status = std::move(status_);
    } else if (broken_ || !has_pending_) {
      in_flight_ = false;
      return;
    }
    sending_.Swap(&pending_);
    has_pending_ = false;
    pending_bytes_ = 0;
  }
  if (broken) {
    grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(std::move(status));
  } else {
    Send(&sending_, last, std::move(status));
  }
}

// Serializes and clears `message`, so its memory serves the next one. With `last` this object may
// be gone on return.
void StreamWriter::Send(v1::GenerateResponse* message, bool last, grpc::Status status) {
  SerializeMessage(*message, &wire_);
  message->Clear();
  if (last) {
    StartWriteAndFinish(&wire_, grpc::WriteOptions(), std::move(status));
  } else {
    StartWrite(&wire_);
  }
}

void StreamWriter::StartTimeout() {
  references_.fetch_add(1, std::memory_order_relaxed);
  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoMicroseconds(limits_.write_timeout);
  timeout_.Set(deadline, [this](bool expired) {
    if (expired) {
      MutexLock lock(&timeout_mu_);
      if (!done_) context_->TryCancel();
    }
    Unref();
  });
}

void StreamWriter::OnCancel() { on_cancel_(); }

void StreamWriter::OnDone() {
  {
    MutexLock lock(&timeout_mu_);
    done_ = true;
  }
  place_.Release();
  timeout_.Cancel();
  Unref();
}

void StreamWriter::Unref() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

}  // namespace fewbit
