// Timing of work captured into a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/cuda/device_buffer.h"

namespace fewbit::bench {

// Median microseconds of one replay of what `enqueue` puts on the stream it is given.
inline double MedianReplayMicros(const std::function<void(cudaStream_t)>& enqueue, int repeats) {
  using cuda::CheckCuda;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaEvent_t begin, end;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  CheckCuda(cudaEventCreate(&begin), "event");
  CheckCuda(cudaEventCreate(&end), "event");
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  enqueue(stream);
  CheckCuda(cudaStreamEndCapture(stream, &graph), "capture");
  CheckCuda(cudaGraphInstantiate(&replay, graph, 0), "graph");
  std::vector<double> micros;
  constexpr int kWarmUp = 3;
  for (int i = 0; i < kWarmUp + repeats; ++i) {
    CheckCuda(cudaEventRecord(begin, stream), "event");
    CheckCuda(cudaGraphLaunch(replay, stream), "graph launch");
    CheckCuda(cudaEventRecord(end, stream), "event");
    CheckCuda(cudaEventSynchronize(end), "graph replay");
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end), "event time");
    if (i >= kWarmUp) micros.push_back(ms * 1e3);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  std::nth_element(micros.begin(), micros.begin() + micros.size() / 2, micros.end());
  return micros[micros.size() / 2];
}

}  // namespace fewbit::bench
