#include "tests/emulator/streams.h"

#include <utility>

namespace fewbit::emulator {

namespace {

// The address of an object is its handle.
template <typename Handle, typename Object>
Handle Keep(std::map<Handle, std::unique_ptr<Object>>* objects, Object object) {
  auto owned = std::make_unique<Object>(std::move(object));
  const auto handle = reinterpret_cast<Handle>(owned.get());
  (*objects)[handle] = std::move(owned);
  return handle;
}

template <typename Handle, typename Object>
Object* FindIn(const std::map<Handle, std::unique_ptr<Object>>& objects, Handle handle) {
  const auto found = objects.find(handle);
  return found == objects.end() ? nullptr : found->second.get();
}

template <typename Objects, typename Handle>
cudaError_t Erase(Objects* objects, Handle handle) {
  return objects->erase(handle) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

bool IsDefault(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }

}  // namespace

Streams::Stream* Streams::FindStream(cudaStream_t stream) {
  return IsDefault(stream) ? &default_ : FindIn(streams_, stream);
}

cudaError_t Streams::Create(bool blocking, cudaStream_t* stream) {
  *stream = Keep(&streams_, Stream{blocking, nullptr});
  return cudaSuccess;
}

cudaError_t Streams::Destroy(cudaStream_t stream) { return Erase(&streams_, stream); }

cudaError_t Streams::Enqueue(cudaStream_t stream, Operation operation) {
  Stream* found = FindStream(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found == &default_) {
    // The default stream waits for all blocking ones, which a capture cannot express.
    for (const auto& [handle, other] : streams_) {
      if (!other->blocking || other->capture == nullptr) continue;
      other->capture->broken = true;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  if (found->capture == nullptr) return operation();
  if (found->capture->broken) return cudaErrorStreamCaptureInvalidated;
  found->capture->operations.push_back(std::move(operation));
  return cudaSuccess;
}

cudaError_t Streams::Synchronize(cudaStream_t stream) {
  Stream* found = FindStream(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found->capture == nullptr) return cudaSuccess;
  found->capture->broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t Streams::BeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Stream* found = FindStream(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found == &default_) return cudaErrorStreamCaptureUnsupported;
  if (found->capture != nullptr) return cudaErrorIllegalState;
  found->capture = std::make_shared<Capture>();
  found->capture->origin = stream;
  found->capture->mode = mode;
  found->capture->thread = std::this_thread::get_id();
  return cudaSuccess;
}

cudaError_t Streams::EndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  Stream* found = FindStream(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  const std::shared_ptr<Capture> capture = found->capture;
  if (capture == nullptr) return cudaErrorIllegalState;
  if (capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  for (const auto& [handle, other] : streams_) {
    if (other->capture == capture) other->capture = nullptr;
  }
  if (capture->broken) return cudaErrorStreamCaptureInvalidated;
  *graph = Keep(&graphs_, Graph{std::move(capture->operations)});
  return cudaSuccess;
}

cudaError_t Streams::CheckNoCapture() {
  cudaError_t error = cudaSuccess;
  for (const auto& [handle, stream] : streams_) {
    Capture* capture = stream->capture.get();
    if (capture == nullptr || capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal &&
        capture->thread != std::this_thread::get_id()) {
      continue;
    }
    capture->broken = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

cudaError_t Streams::CreateEvent(bool timing, cudaEvent_t* event) {
  *event = Keep(&events_, Event{timing, false, {}, nullptr});
  return cudaSuccess;
}

cudaError_t Streams::DestroyEvent(cudaEvent_t event) { return Erase(&events_, event); }

cudaError_t Streams::Record(cudaEvent_t event, cudaStream_t stream) {
  Event* found = FindIn(events_, event);
  Stream* where = FindStream(stream);
  if (found == nullptr || where == nullptr) return cudaErrorInvalidResourceHandle;
  found->capture = where->capture;
  if (where->capture != nullptr) return cudaSuccess;
  found->recorded = true;
  found->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t Streams::Wait(cudaStream_t stream, cudaEvent_t event) {
  Event* found = FindIn(events_, event);
  Stream* where = FindStream(stream);
  if (found == nullptr || where == nullptr) return cudaErrorInvalidResourceHandle;
  if (where->capture != nullptr && found->capture != where->capture) {
    where->capture->broken = true;
    return found->capture == nullptr ? cudaErrorStreamCaptureIsolation
                                     : cudaErrorStreamCaptureMerge;
  }
  if (found->capture == nullptr) return cudaSuccess;
  if (where == &default_) return cudaErrorStreamCaptureImplicit;
  where->capture = found->capture;
  return cudaSuccess;
}

cudaError_t Streams::SynchronizeEvent(cudaEvent_t event) {
  Event* found = FindIn(events_, event);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  return found->capture == nullptr ? cudaSuccess : cudaErrorCapturedEvent;
}

cudaError_t Streams::Elapsed(cudaEvent_t begin, cudaEvent_t end, float* milliseconds) {
  const Event* first = FindIn(events_, begin);
  const Event* last = FindIn(events_, end);
  if (first == nullptr || last == nullptr) return cudaErrorInvalidResourceHandle;
  if (!first->timing || !last->timing || !first->recorded || !last->recorded) {
    return cudaErrorInvalidResourceHandle;
  }
  *milliseconds = std::chrono::duration<float, std::milli>(last->time - first->time).count();
  return cudaSuccess;
}

cudaError_t Streams::Instantiate(cudaGraph_t graph, cudaGraphExec_t* exec) {
  const Graph* found = FindIn(graphs_, graph);
  if (found == nullptr) return cudaErrorInvalidValue;
  *exec = Keep(&execs_, Graph{found->operations});
  return cudaSuccess;
}

cudaError_t Streams::Launch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Graph* found = FindIn(execs_, exec);
  if (found == nullptr) return cudaErrorInvalidValue;
  for (const Operation& operation : found->operations) {
    const cudaError_t error = Enqueue(stream, operation);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t Streams::DestroyGraph(cudaGraph_t graph) {
  return graphs_.erase(graph) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t Streams::DestroyExec(cudaGraphExec_t exec) {
  return execs_.erase(exec) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace fewbit::emulator
