// One GenerateStream call on the wire: at most one write in flight, later deltas merge into the
// pending message, the last one goes out with the status. A slow reader costs its own pending bytes
// up to a limit; then the call is cancelled. Likewise a reader that leaves the end unread for too
// long.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "scheduler/mutex.h"
#include "server/admission.h"
#include "server/response_sink.h"

namespace fewbit {

struct StreamLimits {
  size_t buffer_bytes = 1 << 20;                     // pending behind a write in flight
  absl::Duration write_timeout = absl::Seconds(60);  // for what is unread at the end
};

// Deletes itself when the call is done. Thread-safe: mu_; gRPC's reactions come from its threads,
// Write and Finish from the emitter's.
class StreamWriter final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public ResponseSink {
 public:
  // `on_cancel` is called when the client has left, perhaps after Finish. `place` is held until the
  // call is done.
  StreamWriter(grpc::CallbackServerContext* context, const StreamLimits& limits,
               std::function<void()> on_cancel);

  void Hold(Admission::Ticket place) { place_ = std::move(place); }

  // The call ends without a response. Instead of Write and Finish, on any thread.
  void Reject(const absl::Status& status);

  bool Write(v1::GenerateResponse* delta) override;
  void Finish(v1::GenerateResponse* last, const absl::Status& status) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  ~StreamWriter() override = default;
  void Unref();
  void StartTimeout();
  void Send(v1::GenerateResponse* message, bool last, grpc::Status status);

  grpc::CallbackServerContext* const context_;
  const StreamLimits limits_;
  const std::function<void()> on_cancel_;
  Admission::Ticket place_;
  grpc::Alarm timeout_;
  std::atomic<int> references_{1};  // the call's, and the alarm's while it is set
  Mutex timeout_mu_;                // keeps the call alive while the alarm cancels it
  bool done_ FEWBIT_GUARDED_BY(timeout_mu_) = false;

  // Whoever sets in_flight_ owns wire_ and sending_ until the write is done.
  grpc::ByteBuffer wire_;
  v1::GenerateResponse sending_;

  Mutex mu_;
  bool in_flight_ FEWBIT_GUARDED_BY(mu_) = false;
  bool broken_ FEWBIT_GUARDED_BY(mu_) =
      false;  // a write failed or the reader was cut off: nothing more goes out
  bool finishing_ FEWBIT_GUARDED_BY(mu_) = false;
  bool has_pending_ FEWBIT_GUARDED_BY(mu_) = false;
  size_t pending_bytes_ FEWBIT_GUARDED_BY(mu_) = 0;
  v1::GenerateResponse pending_ FEWBIT_GUARDED_BY(mu_);
  grpc::Status status_ FEWBIT_GUARDED_BY(mu_);
};

}  // namespace fewbit
