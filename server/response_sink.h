// Where the responses of one request go: a stream (stream_writer.h) or one message
// (unary_writer.h).
#pragma once

#include "absl/status/status.h"
#include "fewbit/v1/generation.pb.h"

namespace fewbit {

// Thread rule: Write and Finish on the emitter's thread.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;

  // There is something new in `delta`. What the sink takes it removes; what it leaves comes again,
  // with more, in the next call. False: the reader is too slow, end the request. Never blocks.
  virtual bool Write(v1::GenerateResponse* delta) = 0;

  // The end: `last` is sent before the status (if that is OK, or there is text). The sink may be
  // gone when this returns.
  virtual void Finish(v1::GenerateResponse* last, const absl::Status& status) = 0;
};

// Moves `from` behind what `to` holds, as if one message had been sent instead of two; `from` is
// empty afterwards.
void AppendResponse(v1::GenerateResponse* from, v1::GenerateResponse* to);

}  // namespace fewbit
