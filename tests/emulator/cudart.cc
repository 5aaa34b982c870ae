// The functions of the CUDA runtime that the programs call, for memory, streams, events and graphs:
// linked instead of libcudart_static.a. What they do is in runtime.h and streams.h.
#include <cuda_runtime_api.h>

#include <memory>
#include <utility>

#include "tests/emulator/runtime.h"

using fewbit::emulator::LastError;
using fewbit::emulator::Operation;
using fewbit::emulator::Remember;
using fewbit::emulator::Runtime;
using fewbit::emulator::Streams;

namespace {

// Calls a member of Runtime or Streams with the lock held.
template <typename... Formal, typename... Actual>
cudaError_t Call(cudaError_t (Runtime::*function)(Formal...), Actual... arguments) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  return Remember((runtime.*function)(std::move(arguments)...));
}

template <typename... Formal, typename... Actual>
cudaError_t Call(cudaError_t (Streams::*function)(Formal...), Actual... arguments) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  return Remember((runtime.streams().*function)(std::move(arguments)...));
}

// The same for what waits on the host.
template <typename... Formal, typename... Actual>
cudaError_t CallAndWait(cudaError_t (Streams::*function)(Formal...), Actual... arguments) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  runtime.AllEnded();
  return Remember((runtime.streams().*function)(std::move(arguments)...));
}

// The same for what a capture forbids.
template <typename... Formal, typename... Actual>
cudaError_t CallOutsideCapture(cudaError_t (Runtime::*function)(Formal...), Actual... arguments) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  const cudaError_t error = runtime.streams().CheckNoCapture();
  return Remember(error != cudaSuccess ? error : (runtime.*function)(std::move(arguments)...));
}

}  // namespace

extern "C" {

// Of libcublas.so (cublas.cc): runs `run(state)` as work of `stream`, or records it, and calls
// `destroy(state)` when it is needed no more.
int fewbit_emulator_enqueue(cudaStream_t stream, void (*run)(void*), void* state,
                            void (*destroy)(void*)) {
  const std::shared_ptr<void> owned(state, destroy);
  return Call(&Streams::Enqueue, stream, Operation([owned, run] {
    Runtime::Get().AllEnded();
    run(owned.get());
    return cudaSuccess;
  }));
}

// Whether the bytes lie in one allocation. Only for what fewbit_emulator_enqueue runs: the lock is
// held then.
bool fewbit_emulator_contains(const void* address, size_t bytes) {
  return Runtime::Get().memory().Contains(reinterpret_cast<uint64_t>(address), bytes);
}

cudaError_t cudaGetLastError() { return std::exchange(LastError(), cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return LastError(); }

cudaError_t cudaMalloc(void** address, size_t bytes) {
  return CallOutsideCapture(&Runtime::Allocate, bytes, address);
}

cudaError_t cudaFree(void* address) { return CallOutsideCapture(&Runtime::Free, address); }

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  return CallOutsideCapture(&Runtime::AllocateHost, bytes, address);
}

cudaError_t cudaMallocHost(void** address, size_t bytes) {
  return CallOutsideCapture(&Runtime::AllocateHost, bytes, address);
}

cudaError_t cudaFreeHost(void* address) { return CallOutsideCapture(&Runtime::FreeHost, address); }

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return CallOutsideCapture(&Runtime::Copy, to, from, bytes, kind, cudaStream_t{nullptr});
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Call(&Runtime::Copy, to, from, bytes, kind, stream);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return CallOutsideCapture(&Runtime::Set, to, value, bytes, cudaStream_t{nullptr});
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Call(&Runtime::Set, to, value, bytes, stream);
}

cudaError_t cudaDeviceSynchronize() { return CallAndWait(&Streams::CheckNoCapture); }

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return Call(&Streams::Create, true, stream); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return Call(&Streams::Create, (flags & cudaStreamNonBlocking) == 0, stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) { return Call(&Streams::Destroy, stream); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return CallAndWait(&Streams::Synchronize, stream);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return Call(&Streams::Wait, stream, event);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return Call(&Streams::BeginCapture, stream, mode);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return Call(&Streams::EndCapture, stream, graph);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return Call(&Streams::CreateEvent, true, event); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return Call(&Streams::CreateEvent, (flags & cudaEventDisableTiming) == 0, event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return Call(&Streams::DestroyEvent, event); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Call(&Streams::Record, event, stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return CallAndWait(&Streams::SynchronizeEvent, event);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return Call(&Streams::Elapsed, begin, end, milliseconds);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return Call(&Streams::Instantiate, graph, exec);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return Call(&Streams::Launch, exec, stream);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return Call(&Streams::DestroyGraph, graph); }

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return Call(&Streams::DestroyExec, exec); }

}  // extern "C"
