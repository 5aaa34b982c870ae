// Streams, events and graphs of the emulated CUDA runtime. Work runs to its end when it is given to
// a stream (one legal order of all streams); on a stream that is being captured it is recorded
// instead. Not thread-safe: Runtime (runtime.h) holds a lock.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

namespace fewbit::emulator {

// Called once per run; copies of what it needs lie in it.
using Operation = std::function<cudaError_t()>;

class Streams {
 public:
  cudaError_t Create(bool blocking, cudaStream_t* stream);
  cudaError_t Destroy(cudaStream_t stream);
  // Runs `operation` now, or records it.
  cudaError_t Enqueue(cudaStream_t stream, Operation operation);
  cudaError_t Synchronize(cudaStream_t stream);

  cudaError_t BeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
  cudaError_t EndCapture(cudaStream_t stream, cudaGraph_t* graph);
  // For calls that a capture by this thread, or a global one by any, forbids: they break it.
  cudaError_t CheckNoCapture();

  cudaError_t CreateEvent(bool timing, cudaEvent_t* event);
  cudaError_t DestroyEvent(cudaEvent_t event);
  cudaError_t Record(cudaEvent_t event, cudaStream_t stream);
  // A stream that waits for an event of a capture joins it.
  cudaError_t Wait(cudaStream_t stream, cudaEvent_t event);
  cudaError_t SynchronizeEvent(cudaEvent_t event);
  // Wall clock of this process between two records.
  cudaError_t Elapsed(cudaEvent_t begin, cudaEvent_t end, float* milliseconds);

  cudaError_t Instantiate(cudaGraph_t graph, cudaGraphExec_t* exec);
  cudaError_t Launch(cudaGraphExec_t exec, cudaStream_t stream);
  cudaError_t DestroyGraph(cudaGraph_t graph);
  cudaError_t DestroyExec(cudaGraphExec_t exec);

 private:
  struct Capture {
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool broken = false;
    std::vector<Operation> operations;
  };
  struct Stream {
    bool blocking;
    std::shared_ptr<Capture> capture;  // null: none
  };
  struct Event {
    bool timing;
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
    std::shared_ptr<Capture> capture;  // in which it was recorded last, null: none
  };
  struct Graph {
    std::vector<Operation> operations;
  };
  template <typename Handle, typename Object>
  using Objects = std::map<Handle, std::unique_ptr<Object>>;

  // Null if there is no such stream.
  Stream* FindStream(cudaStream_t stream);

  Stream default_{true, nullptr};  // the legacy default stream
  Objects<cudaStream_t, Stream> streams_;
  Objects<cudaEvent_t, Event> events_;
  Objects<cudaGraph_t, Graph> graphs_;
  Objects<cudaGraphExec_t, Graph> execs_;
};

}  // namespace fewbit::emulator
