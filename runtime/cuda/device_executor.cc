#include "runtime/cuda/device_executor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/cuda/device_decoder.h"
#include "runtime/cuda/sample_input.h"
#include "runtime/cuda/step_layout.h"
#include "runtime/cuda/upload.h"
#include "runtime/executor_limits.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int kStepsInFlight = 2;

absl::Status CheckOptions(const ModelSpec& spec, const CudaOptions& o) {
  absl::Status status =
      CheckExecutorLimits(spec, o.max_sequences, o.max_step_tokens, o.max_context, o.num_blocks);
  if (!status.ok()) return status;
  if (o.kv_bytes < 0) return InvalidOption("kv_bytes", o.kv_bytes, "0 (what is left) or more");
  if (!(o.memory_utilization > 0.0) || o.memory_utilization > 1.0) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory_utilization is ", o.memory_utilization, ": must be in (0, 1]"));
  }
  if (o.kv_type == kv::KvType::kF32) {
    return absl::InvalidArgumentError("kv_type is f32: on a GPU it must be f16, bf16 or i8");
  }
  return absl::OkStatus();
}

// What a step in flight has for itself: pinned memory on both ways and when it was where.
struct Flight {
  uint8_t* input = nullptr;               // pinned, of StepLayout
  int32_t* lists = nullptr;               // pinned
  int32_t* context = nullptr;             // pinned [max_context]
  cuda::SampleResult* results = nullptr;  // pinned
  cudaEvent_t begin = nullptr, end = nullptr;
  StepPlace place;
  int32_t rows = 0;
};

}  // namespace

struct CudaExecutor::Impl {
  explicit Impl(std::unique_ptr<DeviceModel> device_model) : model(std::move(device_model)) {}
  ~Impl();

  absl::Status Start(const CudaOptions& options);
  absl::Status AllocateBuffers(const MemoryRequest& request);
  absl::Status AllocatePinned();
  void PlaceBuffers(Carver* carver);
  void PlacePinned(Carver* carver);
  void CheckBatch(const ForwardBatch& batch) const;
  void StartCounts(const ForwardBatch& batch, Flight* flight);
  void CopyIn(const ForwardBatch& batch, const StepLayout& layout, Flight* flight);
  void Capture(DeviceStep step, size_t bucket, StepPlace* place);
  void RunDecode(const DeviceStep& step, int bucket, StepPlace* place);

  const std::unique_ptr<DeviceModel> model;
  std::unique_ptr<DeviceDecoder> decoder;
  ExecutorInfo info;
  DeviceMemoryUse use;
  int device = 0;
  bool graphs = true;
  std::vector<DecodeBucket> buckets;

  DeviceMemory buffers, kv;
  PinnedMemory pinned;
  cudaStream_t stream = nullptr;
  std::vector<cudaGraphExec_t> replays;  // [buckets], null until first used

  // Of the step that the stream works on.
  size_t input_bytes = 0, list_words = 0;
  uint8_t* input = nullptr;
  int32_t* lists = nullptr;
  int32_t* context = nullptr;             // [max_context]
  int32_t* last_ids = nullptr;            // [slots]
  uint32_t* counts = nullptr;             // [slots, V]
  cuda::SampleResult* results = nullptr;  // [max_step_tokens]

  std::unique_ptr<OpClock> clock;  // null: no profile
  std::array<Flight, kStepsInFlight> flights;
  uint64_t launched = 0, collected = 0;
  std::atomic<double> device_seconds{0.0};
};

CudaExecutor::Impl::~Impl() {
  if (stream != nullptr) cudaStreamSynchronize(stream);
  for (cudaGraphExec_t replay : replays) {
    if (replay != nullptr) cudaGraphExecDestroy(replay);
  }
  for (Flight& flight : flights) {
    if (flight.begin != nullptr) cudaEventDestroy(flight.begin);
    if (flight.end != nullptr) cudaEventDestroy(flight.end);
  }
  if (stream != nullptr) cudaStreamDestroy(stream);
}

void CudaExecutor::Impl::PlaceBuffers(Carver* carver) {
  const size_t vocab = info.vocab_size;
  input = carver->Take<uint8_t>(input_bytes);
  lists = carver->Take<int32_t>(list_words);
  context = carver->Take<int32_t>(info.max_context);
  last_ids = carver->Take<int32_t>(info.max_sequences);
  counts = carver->Take<uint32_t>(info.max_sequences * vocab);
  results = carver->Take<cuda::SampleResult>(info.max_step_tokens);
  decoder->Place(carver);
}

void CudaExecutor::Impl::PlacePinned(Carver* carver) {
  for (Flight& flight : flights) {
    flight.input = carver->Take<uint8_t>(input_bytes);
    flight.lists = carver->Take<int32_t>(list_words);
    flight.context = carver->Take<int32_t>(info.max_context);
    flight.results = carver->Take<cuda::SampleResult>(info.max_step_tokens);
  }
}

absl::Status CudaExecutor::Impl::Start(const CudaOptions& options) {
  const ModelSpec& spec = model->spec;
  if (absl::Status status = CheckOptions(spec, options); !status.ok()) return status;
  cuda::DeviceProps props;
  absl::Status status = FromCuda(cuda::ReadDeviceProps(options.device, &props), "ReadDeviceProps");
  if (!status.ok()) return status;
  device = options.device;
  graphs = options.graphs && !options.profile;
  info.vocab_size = spec.vocab_size;
  info.max_context = options.max_context > 0 ? options.max_context : spec.max_context;
  info.max_step_tokens = options.max_step_tokens;
  info.max_sequences = options.max_sequences;
  info.block_tokens = kv::kBlockTokens;
  info.max_steps_in_flight = options.profile ? 1 : kStepsInFlight;
  info.weight_bytes = model->bytes;
  const int32_t per_sequence = kv::BlocksFor(info.max_context);
  input_bytes = MostStepBytes(info.max_step_tokens, info.max_sequences, per_sequence);
  list_words = static_cast<size_t>(info.max_sequences) * kMaxRowListWords;

  auto made = DeviceDecoder::Create(
      model.get(), {info.max_step_tokens, info.max_sequences, info.max_context, options.kv_type},
      props);
  if (!made.ok()) return made.status();
  decoder = *std::move(made);

  MemoryRequest request;
  request.utilization = options.memory_utilization;
  request.block = static_cast<int64_t>(decoder->block_bytes()) * spec.num_layers;
  request.blocks_per_sequence = per_sequence;
  request.max_sequences = info.max_sequences;
  request.kv = options.kv_bytes;
  request.num_blocks = options.num_blocks;
  if (status = AllocateBuffers(request); !status.ok()) return status;
  if (status = AllocatePinned(); !status.ok()) return status;
  buckets = DecodeBuckets(info.max_sequences, info.max_context,
                          [&](int32_t sequences) { return decoder->ShortContext(sequences); });
  replays.resize(buckets.size(), nullptr);
  status = decoder->Start(kv.get(), info.num_blocks);
  // Memory is cleared on the default stream, which ours does not wait for.
  if (status.ok()) status = FromCuda(cudaDeviceSynchronize(), "clearing memory");
  if (!status.ok()) return status;
  status = FromCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  if (options.profile) clock = std::make_unique<OpClock>(stream);
  for (Flight& flight : flights) {
    if (status.ok()) status = FromCuda(cudaEventCreate(&flight.begin), "cudaEventCreate");
    if (!status.ok()) return status;
    status =
        FromCuda(cudaEventCreateWithFlags(&flight.end, cudaEventBlockingSync), "cudaEventCreate");
  }
  return status;
}

absl::Status CudaExecutor::Impl::AllocateBuffers(const MemoryRequest& wanted) {
  Carver count(nullptr);
  PlaceBuffers(&count);
  size_t free = 0, total = 0;
  absl::Status status = FromCuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  if (!status.ok()) return status;
  MemoryRequest request = wanted;
  request.total = static_cast<int64_t>(total);
  request.weights = model->bytes;
  request.free = static_cast<int64_t>(free) + model->bytes;  // the weights are there already
  request.buffers = static_cast<int64_t>(count.used());
  const auto blocks = PlanKvBlocks(request);
  if (!blocks.ok()) return blocks.status();
  info.num_blocks = *blocks;
  info.kv_bytes = request.block * *blocks;
  use = {model->bytes, request.buffers, info.kv_bytes};

  auto memory = DeviceMemory::Allocate(count.used(), "buffers");
  if (!memory.ok()) return memory.status();
  buffers = *std::move(memory);
  Carver place(buffers.get());
  PlaceBuffers(&place);
  status = FromCuda(cudaMemset(buffers.get(), 0, buffers.bytes()), "clearing the buffers");
  if (!status.ok()) return status;
  auto cache = DeviceMemory::Allocate(info.kv_bytes, "the KV cache");
  if (!cache.ok()) return cache.status();
  kv = *std::move(cache);
  return absl::OkStatus();
}

absl::Status CudaExecutor::Impl::AllocatePinned() {
  Carver count(nullptr);
  PlacePinned(&count);
  auto memory = PinnedMemory::Allocate(count.used(), "steps' inputs and results (pinned)");
  if (!memory.ok()) return memory.status();
  pinned = *std::move(memory);
  Carver place(pinned.get());
  PlacePinned(&place);
  return absl::OkStatus();
}

void CudaExecutor::Impl::CheckBatch(const ForwardBatch& batch) const {
  FEWBIT_CHECK(static_cast<int32_t>(batch.kv_len.size()) <= info.max_sequences)
      << batch.kv_len.size() << " sequences for at most " << info.max_sequences;
  FEWBIT_CHECK(static_cast<int32_t>(batch.token_ids.size()) <= info.max_step_tokens)
      << batch.token_ids.size() << " tokens for at most " << info.max_step_tokens;
  for (const int32_t length : batch.kv_len) {
    FEWBIT_CHECK(length <= info.max_context)
        << "a sequence of " << length << " tokens for at most " << info.max_context;
  }
  for (const TokenId id : batch.token_ids) {
    FEWBIT_CHECK(id == kLastSampled || (ToInt(id) >= 0 && ToInt(id) < info.vocab_size))
        << "token " << ToInt(id) << " of a vocabulary of " << info.vocab_size;
  }
}

// Requests with penalties that draw their first token: their prompts are counted on the device.
void CudaExecutor::Impl::StartCounts(const ForwardBatch& batch, Flight* flight) {
  size_t used = 0;
  for (const SampleRow& row : batch.samples) {
    if (!row.starts_request() || !HasPenalties(row.request->sampling)) continue;
    const size_t length = row.context.size();
    if (used + length > static_cast<size_t>(info.max_context)) {
      // More prompts than the pinned memory takes: the first ones must be on the device first.
      flight->place.Check(cudaStreamSynchronize(stream), "copying prompts for penalties");
      used = 0;
    }
    std::memcpy(flight->context + used, row.context.data(), length * sizeof(int32_t));
    flight->place.Check(cudaMemcpyAsync(context, flight->context + used, length * sizeof(int32_t),
                                        cudaMemcpyHostToDevice, stream),
                        "copying a prompt for penalties");
    flight->place.Check(cuda::ResetCounts(counts, info.vocab_size, row.slot, context,
                                          row.num_prompt_tokens, static_cast<int>(length), stream),
                        "ResetCounts");
    used += length;
  }
}

void CudaExecutor::Impl::CopyIn(const ForwardBatch& batch, const StepLayout& layout,
                                Flight* flight) {
  layout.Fill(batch, flight->input);
  auto* params = reinterpret_cast<cuda::SampleParams*>(flight->input + layout.row_params);
  const int32_t words = FillSampleParams(batch.samples, params, {flight->lists, list_words});
  flight->place.Check(cudaMemcpyAsync(input, flight->input, layout.bytes(batch.block_table_stride),
                                      cudaMemcpyHostToDevice, stream),
                      "copying the step's input");
  if (words > 0) {
    flight->place.Check(cudaMemcpyAsync(lists, flight->lists, words * sizeof(int32_t),
                                        cudaMemcpyHostToDevice, stream),
                        "copying biases and masks");
  }
}

void CudaExecutor::Impl::Capture(DeviceStep step, size_t bucket, StepPlace* place) {
  step.view.max_kv_len = buckets[bucket].max_kv_len;
  cudaGraph_t graph = nullptr;
  place->Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
  decoder->Run(step, place, stream);
  place->Check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  place->Check(cudaGraphInstantiate(&replays[bucket], graph, 0), "cudaGraphInstantiate");
  place->Check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

// Replays the bucket's graph, which the first step of as many sequences captures, together with
// those for other contexts: no pause where sequences grow out of their bucket.
void CudaExecutor::Impl::RunDecode(const DeviceStep& step, int bucket, StepPlace* place) {
  if (replays[bucket] == nullptr) {
    for (size_t b = 0; b < buckets.size(); ++b) {
      if (buckets[b].sequences == buckets[bucket].sequences) Capture(step, b, place);
    }
  }
  place->Check(cudaGraphLaunch(replays[bucket], stream), "cudaGraphLaunch");
}

CudaExecutor::CudaExecutor() = default;
CudaExecutor::~CudaExecutor() = default;

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::Create(
    std::unique_ptr<DeviceModel> model, const CudaOptions& options) {
  std::unique_ptr<CudaExecutor> executor(new CudaExecutor());
  executor->impl_ = std::make_unique<Impl>(std::move(model));
  if (absl::Status status = executor->impl_->Start(options); !status.ok()) return status;
  ExecutorInfo& info = executor->impl_->info;
  cudaDeviceProp prop;
  char bus[32] = "";
  if (cudaGetDeviceProperties(&prop, options.device) == cudaSuccess) {
    info.device = absl::StrCat("cuda:", options.device, ": ", prop.name);
  }
  if (cudaDeviceGetPCIBusId(bus, sizeof(bus), options.device) == cudaSuccess) {
    info.pci_bus_id = bus;
  }
  return executor;
}

const ExecutorInfo& CudaExecutor::info() const { return impl_->info; }
const DeviceMemoryUse& CudaExecutor::memory() const { return impl_->use; }
OpClock* CudaExecutor::clock() const { return impl_->clock.get(); }
double CudaExecutor::device_seconds() const {
  return impl_->device_seconds.load(std::memory_order_relaxed);
}

StepHandle CudaExecutor::Launch(const ForwardBatch& batch) {
  Impl& impl = *impl_;
  FEWBIT_CHECK(impl.launched - impl.collected < kStepsInFlight)
      << "a third step before the first was collected";
  impl.CheckBatch(batch);
  const StepLayout layout(ChooseLaunch(batch, impl.buckets));
  Flight& flight = impl.flights[impl.launched++ % kStepsInFlight];
  flight.rows = static_cast<int32_t>(batch.samples.size());
  flight.place.step = impl.launched;
  flight.place.layer = -1;
  flight.place.clock = impl.clock.get();
  flight.place.view = layout.View(impl.input, impl.last_ids);
  StepPlace* const place = &flight.place;
  place->Check(cudaSetDevice(impl.device), "cudaSetDevice");
  place->Check(cudaEventRecord(flight.begin, impl.stream), "cudaEventRecord");
  impl.StartCounts(batch, &flight);
  impl.CopyIn(batch, layout, &flight);

  DeviceStep step;
  step.view = place->view;
  step.params = reinterpret_cast<const cuda::SampleParams*>(impl.input + layout.row_params);
  step.lists = impl.lists;
  step.counts = impl.counts;
  step.results = impl.results;
  if (layout.launch.bucket >= 0 && impl.graphs) {
    impl.RunDecode(step, layout.launch.bucket, place);
  } else {
    impl.decoder->Run(step, place, impl.stream);
  }
  if (flight.rows > 0) {
    place->Check(
        cudaMemcpyAsync(flight.results, impl.results, flight.rows * sizeof(cuda::SampleResult),
                        cudaMemcpyDeviceToHost, impl.stream),
        "copying the step's results");
  }
  place->Check(cudaEventRecord(flight.end, impl.stream), "cudaEventRecord");
  return StepHandle(impl.launched);
}

absl::Status CudaExecutor::Collect(StepHandle handle, StepResult* result) {
  Impl& impl = *impl_;
  FEWBIT_CHECK(impl.collected < impl.launched && handle == StepHandle(impl.collected + 1))
      << "no such step is running";
  Flight& flight = impl.flights[impl.collected++ % kStepsInFlight];
  flight.place.layer = -1;
  flight.place.clock = nullptr;
  flight.place.Check(cudaEventSynchronize(flight.end), "one of the kernels");
  if (impl.clock != nullptr) impl.clock->Collect();
  float milliseconds = 0.0f;
  flight.place.Check(cudaEventElapsedTime(&milliseconds, flight.begin, flight.end),
                     "cudaEventElapsedTime");
  impl.device_seconds.store(device_seconds() + milliseconds * 1e-3, std::memory_order_relaxed);
  result->tokens.resize(flight.rows);
  std::memcpy(static_cast<void*>(result->tokens.data()), flight.results,
              flight.rows * sizeof(cuda::SampleResult));
  return absl::OkStatus();
}

std::vector<float> CudaExecutor::Logits(int32_t rows) const {
  const Impl& impl = *impl_;
  FEWBIT_CHECK(impl.launched == impl.collected && rows <= kDeviceLogitRows)
      << rows << " rows of logits were asked for";
  std::vector<float> logits(static_cast<size_t>(rows) * impl.info.vocab_size);
  impl.flights[0].place.Check(cudaMemcpy(logits.data(), impl.decoder->logits(),
                                         logits.size() * sizeof(float), cudaMemcpyDeviceToHost),
                              "copying logits");
  return logits;
}

absl::Status CheckCudaDevice(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::UnavailableError(absl::StrCat("CUDA finds no GPU: ", cudaGetErrorString(error)));
  }
  if (device < 0 || device >= count) {
    return absl::UnavailableError(absl::StrCat("there is no GPU ", device, ": this machine has ",
                                               count, count == 1 ? " GPU" : " GPUs"));
  }
  cuda::DeviceProps props;
  absl::Status status = FromCuda(cuda::ReadDeviceProps(device, &props), "ReadDeviceProps");
  if (!status.ok()) return absl::UnavailableError(status.message());
  if (props.major < 8) {
    return absl::UnavailableError(absl::StrCat("GPU ", device, " has compute capability ",
                                               props.major, ".", props.minor,
                                               ": the kernels need 8.0 or later"));
  }
  cudaError_t loaded = cudaSetDevice(device);
  if (loaded == cudaSuccess) loaded = cuda::PrepareLinearKernels(props);
  if (loaded == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  return absl::UnavailableError(
      absl::StrCat("GPU ", device, " of compute capability ", props.major, ".", props.minor,
                   " cannot run this build's kernels (FEWBIT_CUDA_ARCHITECTURES): ",
                   cudaGetErrorString(loaded)));
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCudaExecutor(const Model* model,
                                                             const CudaOptions& options) {
  absl::Status status = CheckCudaDevice(options.device);
  if (!status.ok()) return status;
  if (status = CheckOptions(model->spec, options); !status.ok()) return status;
  status = FromCuda(cudaSetDevice(options.device), "cudaSetDevice");
  if (!status.ok()) return status;
  cuda::DeviceProps props;
  status = FromCuda(cuda::ReadDeviceProps(options.device, &props), "ReadDeviceProps");
  if (!status.ok()) return status;
  const auto plan = PlanModel(*model, options.lm_head_bits, props);
  if (!plan.ok()) return plan.status();
  auto uploaded = UploadModel(*model, *plan);
  if (!uploaded.ok()) return uploaded.status();
  auto executor = CudaExecutor::Create(*std::move(uploaded), options);
  if (!executor.ok()) return executor.status();
  return std::unique_ptr<Executor>(*std::move(executor));
}

}  // namespace fewbit
