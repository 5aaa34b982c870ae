#include "runtime/cuda/device_decoder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fewbit {
namespace {

constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

cuda::AttentionDesc AttentionOf(const ModelSpec& spec, kv::KvType kv_type) {
  cuda::AttentionDesc desc;
  desc.num_heads = spec.num_heads;
  desc.num_kv_heads = spec.num_kv_heads;
  desc.head_dim = spec.head_dim;
  desc.kv_type = kv_type;
  desc.window = spec.sliding_window;
  desc.rotary_dim = spec.rope.rotary_dim;
  desc.interleaved = spec.rope.interleaved;
  desc.rms_eps = spec.rms_eps;
  return desc;
}

// Element `column` of the first row of a linear group's result.
const void* AtColumn(const float* y, DType type, int64_t column) {
  return type == DType::kF32 ? static_cast<const void*>(y + column)
                             : reinterpret_cast<const uint16_t*>(y) + column;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Create(
    const DeviceModel* model, const DeviceDecoderLimits& limits, const cuda::DeviceProps& props) {
  std::unique_ptr<DeviceDecoder> decoder(new DeviceDecoder(model, limits, props));
  const ModelSpec& spec = model->spec;
  if (spec.hidden_size > cuda::kMaxRowElements || spec.hidden_size % 16 != 0 ||
      spec.ffn_size % 16 != 0) {
    return absl::UnimplementedError(
        absl::StrCat("hidden_size ", spec.hidden_size, ", ffn_size ", spec.ffn_size,
                     ": on the GPU both must be multiples of 16, and hidden_size at most ",
                     cuda::kMaxRowElements));
  }
  decoder->attention_ =
      cuda::SelectAttention(AttentionOf(spec, limits.kv_type),
                            {limits.max_tokens, limits.max_sequences, limits.max_context}, props);
  if (!decoder->attention_.error.empty()) {
    return absl::UnimplementedError(absl::StrCat("attention: ", decoder->attention_.error));
  }
  if (absl::Status status = decoder->MakeGroups(); !status.ok()) return status;
  if (absl::Status status = decoder->MeasureGroups(); !status.ok()) return status;
  return decoder;
}

absl::Status DeviceDecoder::MakeGroups() {
  const cuda::DeviceProps& props = memory_.props;
  using Input = LinearGroup::Input;
  using Output = LinearGroup::Output;
  const auto make = [&](const std::string& name, std::initializer_list<const PlacedMatrix*> parts,
                        LinearGroup* to, Output output = Output::kWide,
                        Input input = Input::kWide) {
    auto group = LinearGroup::Create(name, parts, input, output, props);
    if (group.ok()) *to = *std::move(group);
    return group.status();
  };
  for (size_t l = 0; l < model_->layers.size(); ++l) {
    const DeviceLayer& w = model_->layers[l];
    const std::string prefix = absl::StrCat("layer ", l, ", ");
    Layer& layer = layers_.emplace_back();
    absl::Status status = make(absl::StrCat(prefix, "q, k and v"),
                               {&w[LinearRole::kQ], &w[LinearRole::kK], &w[LinearRole::kV]},
                               &layer.qkv, Output::kHalf);
    if (!status.ok()) return status;
    status = make(absl::StrCat(prefix, "o"), {&w[LinearRole::kO]}, &layer.o);
    if (!status.ok()) return status;
    status = make(absl::StrCat(prefix, "gate and up"), {&w[LinearRole::kGate], &w[LinearRole::kUp]},
                  &layer.gate_up, Output::kHalf);
    if (!status.ok()) return status;
    status = make(absl::StrCat(prefix, "down"), {&w[LinearRole::kDown]}, &layer.down);
    if (!status.ok()) return status;
  }
  return make("LM head", {&model_->head}, &head_, Output::kWide, Input::kHalf);
}

absl::Status DeviceDecoder::MeasureGroups() {
  const cuda::DeviceProps& props = memory_.props;
  for (const int32_t m : MemorySampleCounts(limits_.max_tokens)) {
    for (const Layer& layer : layers_) {
      for (const LinearGroup* group : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
        needs_.Add(group->Needs(m, props));
      }
    }
    if (m <= logit_rows_) needs_.Add(head_.Needs(m, props));
  }
  std::string error;
  cublas_ = cuda::Cublas::Open(&error);
  if (cublas_ == nullptr && needs_.cublas) {
    return absl::UnavailableError(absl::StrCat("steps of up to ", limits_.max_tokens,
                                               " tokens need cuBLAS on this GPU (max_step_tokens ",
                                               cuda::kMaxSmallTokens, " would not): ", error));
  }
  return absl::OkStatus();
}

int32_t DeviceDecoder::ShortContext(int32_t sequences) const {
  const bool rows = std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
    return layer.o.Prepare(sequences, memory_, cuda::RowKind::kRows).plan.makes_input();
  });
  return rows ? cuda::OneUnitContext(attention_, sequences) : 0;
}

void DeviceDecoder::Place(Carver* carver) {
  const ModelSpec& spec = model_->spec;
  const size_t t = limits_.max_tokens;
  memory_.staged = carver->Take<uint8_t>(needs_.staged);
  memory_.plain = carver->Take<uint8_t>(needs_.plain);
  memory_.workspace.scratch = carver->Take<uint8_t>(needs_.scratch);
  memory_.workspace.exchange = carver->Take<uint8_t>(cuda::ExchangeBytes(memory_.props));
  if (cublas_ != nullptr) cublas_workspace_ = carver->Take<uint8_t>(kCublasWorkspaceBytes);
  attention_workspace_ = carver->Take<uint8_t>(attention_.workspace_bytes);
  for (float** rows : {&hidden_[0], &hidden_[1], &wanted_, &delta_}) {
    *rows = carver->Take<float>(t * spec.hidden_size);
  }
  const size_t widest = std::max(spec.q_size() + 2 * spec.kv_size(), 2 * spec.ffn_size);
  y_ = carver->Take<float>(t * widest);
  const size_t logits = static_cast<size_t>(logit_rows_) * spec.vocab_size;
  logits_ = carver->Take<float>(logits);
  adjusted_ = carver->Take<float>(logits);
}

absl::Status DeviceDecoder::Start(uint8_t* kv, int32_t num_blocks) {
  kv_ = kv;
  num_blocks_ = num_blocks;
  memory_.workspace.cublas = cublas_.get();
  if (cublas_ != nullptr && !cublas_->SetWorkspace(cublas_workspace_, kCublasWorkspaceBytes)) {
    return absl::InternalError("cuBLAS does not take its workspace");
  }
  absl::Status status = FromCuda(cuda::PrepareLinearKernels(memory_.props), "PrepareLinearKernels");
  if (status.ok()) status = FromCuda(cuda::PrepareOps(), "PrepareOps");
  if (status.ok()) status = FromCuda(cuda::PrepareAttention(attention_), "PrepareAttention");
  if (status.ok()) {
    status = FromCuda(cudaMemset(memory_.workspace.exchange, 0, cuda::ExchangeBytes(memory_.props)),
                      "clearing the linear layers' exchange");
  }
  if (status.ok()) {
    status = FromCuda(cudaMemset(attention_workspace_, 0, attention_.workspace_bytes),
                      "clearing the attention's workspace");
  }
  return status;
}

size_t DeviceDecoder::layer_bytes(int32_t num_blocks) const {
  return attention_.cache.block_bytes() * num_blocks;
}

void DeviceDecoder::Run(const DeviceStep& step, StepPlace* place, cudaStream_t stream) {
  place->layer = -1;
  place->Check(cuda::LaunchAttentionStep(attention_, step.view, model_->frequencies,
                                         attention_workspace_, stream),
               "LaunchAttentionStep");
  Hidden hidden;
  for (size_t l = 0; l < layers_.size(); ++l) {
    RunLayer(static_cast<int>(l), step, &hidden, place, stream);
  }
  place->layer = -1;
  for (int32_t begin = 0; begin < step.view.rows; begin += logit_rows_) {
    RunHead(step, hidden, begin, std::min(begin + logit_rows_, step.view.rows), place, stream);
  }
}

void DeviceDecoder::NormFor(GroupCall* call, const cuda::NormArgs& norm, const char* what,
                            StepPlace* place, cudaStream_t stream) const {
  if (!call->plan.makes_input()) {
    place->Check(cuda::LaunchAddNorm(norm, call->input, stream), what);
    return;
  }
  cuda::RowSource& source = call->input.source;
  source.kind = cuda::RowKind::kNorm;
  source.first = norm.hidden;
  source.stride = norm.cols;
  source.rows = norm.rows;
  source.weight = norm.weight;
  source.eps = norm.eps;
  source.hidden_out = norm.hidden_out;
}

void DeviceDecoder::SiluFor(GroupCall* call, const cuda::SiluArgs& silu, StepPlace* place,
                            cudaStream_t stream) const {
  if (!call->plan.makes_input()) {
    place->Check(cuda::LaunchSiluMul(silu, call->input, stream), "LaunchSiluMul");
    return;
  }
  cuda::RowSource& source = call->input.source;
  source.kind = cuda::RowKind::kSiluMul;
  source.first = static_cast<const float*>(silu.gate);
  source.second = static_cast<const float*>(silu.up);
  source.stride = silu.stride;
}

void DeviceDecoder::NormHidden(GroupCall* call, const float* weight, const int32_t* wanted,
                               const char* what, Hidden* hidden, StepPlace* place,
                               cudaStream_t stream) const {
  cuda::NormArgs norm;
  norm.tokens = call->m;
  norm.cols = model_->spec.hidden_size;
  norm.hidden = hidden->rows;
  norm.rows = wanted;
  norm.delta = hidden->delta;
  if (wanted != nullptr) {
    norm.hidden_out = wanted_;
  } else if (hidden->delta != nullptr) {
    norm.hidden_out = Other(*hidden);
  }
  norm.weight = weight;
  norm.eps = model_->spec.rms_eps;
  NormFor(call, norm, what, place, stream);
  if (norm.hidden_out != nullptr) *hidden = {norm.hidden_out, nullptr};
}

void DeviceDecoder::AddTo(const LinearGroup& group, const GroupCall& call, bool same_rows,
                          const char* what, Hidden* hidden, StepPlace* place,
                          cudaStream_t stream) const {
  if (!same_rows || (!call.plan.adds() && !call.plan.adds_in_place())) {
    place->Check(group.Launch(call, memory_, delta_, stream), what);
    hidden->delta = delta_;
    return;
  }
  float* sum = call.plan.adds_in_place() ? hidden->rows : Other(*hidden);
  place->Check(group.Launch(call, memory_, sum, stream, hidden->rows), what);
  hidden->rows = sum;
}

void DeviceDecoder::RunLayer(int index, const DeviceStep& step, Hidden* hidden, StepPlace* place,
                             cudaStream_t stream) {
  const Layer& layer = layers_[index];
  const DeviceLayer& w = model_->layers[index];
  const int tokens = step.view.tokens;
  place->layer = index;

  GroupCall qkv =
      layer.qkv.Prepare(tokens, memory_, index == 0 ? cuda::RowKind::kStaged : hidden->norm_kind());
  if (index == 0) {
    cuda::NormArgs norm;
    norm.tokens = tokens;
    norm.cols = model_->spec.hidden_size;
    norm.hidden_out = hidden_[0];
    norm.weight = w.input_norm;
    norm.eps = model_->spec.rms_eps;
    place->Check(
        cuda::LaunchEmbedNorm(model_->embedding.dense(), step.view, norm, qkv.input, stream),
        "LaunchEmbedNorm");
    *hidden = {hidden_[0], nullptr};
  } else {
    NormHidden(&qkv, w.input_norm, nullptr, "LaunchAddNorm (attention)", hidden, place, stream);
  }
  place->Check(layer.qkv.Launch(qkv, memory_, y_, stream), "linear q, k, v");

  // After the last attention only the wanted rows go on.
  const bool last = index + 1 == static_cast<int>(layers_.size());
  const int rows = last ? step.view.rows : tokens;
  cuda::WantedRows wanted;
  if (rows < tokens) wanted = {step.view.row_tokens, rows};
  const bool staged = step.view.max_query > 1 || rows < tokens;
  GroupCall o = layer.o.Prepare(rows > 0 ? rows : tokens, memory_,
                                staged ? cuda::RowKind::kStaged : cuda::RowKind::kRows);
  AttendFor(&o, qkv.output, index, wanted, step, place, stream);
  if (rows == 0) return;
  AddTo(layer.o, o, rows == tokens, "linear o", hidden, place, stream);

  GroupCall gate_up = layer.gate_up.Prepare(rows, memory_, hidden->norm_kind());
  NormHidden(&gate_up, w.post_attention_norm, last ? step.view.row_tokens : nullptr,
             "LaunchAddNorm (mlp)", hidden, place, stream);
  place->Check(layer.gate_up.Launch(gate_up, memory_, y_, stream), "linear gate, up");

  GroupCall down = layer.down.Prepare(rows, memory_, cuda::RowKind::kSiluMul);
  cuda::SiluArgs silu;
  silu.tokens = rows;
  silu.cols = model_->spec.ffn_size;
  silu.type = gate_up.output;
  silu.gate = y_;
  silu.up = AtColumn(y_, silu.type, silu.cols);
  silu.stride = layer.gate_up.rows();
  SiluFor(&down, silu, place, stream);
  AddTo(layer.down, down, true, "linear down", hidden, place, stream);
}

void DeviceDecoder::AttendFor(GroupCall* call, DType type, int index,
                              const cuda::WantedRows& wanted, const DeviceStep& step,
                              StepPlace* place, cudaStream_t stream) {
  const ModelSpec& spec = model_->spec;
  const DeviceLayer& w = model_->layers[index];
  cuda::AttentionLayer layer;
  layer.type = type;
  layer.q = y_;
  layer.k = AtColumn(y_, type, spec.q_size());
  layer.v = AtColumn(y_, type, spec.q_size() + spec.kv_size());
  layer.q_stride = layer.k_stride = layer.v_stride = layers_[index].qkv.rows();
  layer.q_bias = w.q_bias;
  layer.k_bias = w.k_bias;
  layer.v_bias = w.v_bias;
  layer.q_norm = w.q_norm;
  layer.k_norm = w.k_norm;
  layer.cache = kv_ + index * layer_bytes(num_blocks_);
  if (!call->plan.makes_input()) {
    place->Check(cuda::LaunchAttention(attention_, step.view, layer, attention_workspace_,
                                       call->input, wanted, stream),
                 "LaunchAttention");
    return;
  }
  place->Check(
      cuda::LaunchAttentionRows(attention_, step.view, layer, attention_workspace_, stream),
      "LaunchAttentionRows");
  call->input.source.kind = cuda::RowKind::kRows;
  call->input.source.first = cuda::AttendedRows(attention_, attention_workspace_);
  call->input.source.stride = spec.q_size();
}

void DeviceDecoder::RunHead(const DeviceStep& step, const Hidden& hidden, int32_t begin,
                            int32_t end, StepPlace* place, cudaStream_t stream) {
  const ModelSpec& spec = model_->spec;
  const size_t e = spec.hidden_size;
  const GroupCall head = head_.Prepare(end - begin, memory_);
  cuda::NormArgs norm;
  norm.tokens = end - begin;
  norm.cols = spec.hidden_size;
  norm.hidden = hidden.rows + begin * e;
  if (hidden.delta != nullptr) norm.delta = hidden.delta + begin * e;
  norm.weight = model_->final_norm;
  norm.eps = spec.rms_eps;
  place->Check(cuda::LaunchAddNorm(norm, head.input, stream), "LaunchAddNorm (head)");
  place->Check(head_.Launch(head, memory_, logits_, stream), "LM head");

  cuda::SampleCall call;
  call.rows = end - begin;
  call.vocab = spec.vocab_size;
  call.logits = logits_;
  call.logits_stride = head_.rows();
  call.params = step.params + begin;
  call.lists = step.lists;
  call.row_slots = step.view.row_slots + begin;
  call.last_ids = step.view.last_ids;
  call.counts = step.counts;
  call.adjusted = adjusted_;
  call.results = step.results + begin;
  place->Check(cuda::LaunchSample(call, memory_.props, stream), "LaunchSample");
}

}  // namespace fewbit
