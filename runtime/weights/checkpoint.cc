#include "runtime/weights/checkpoint.h"

#include <array>
#include <cstring>
#include <utility>

#include "runtime/models/arch_table.h"
#include "runtime/weights/config_reader.h"
#include "runtime/weights/quantized_format.h"
#include "runtime/weights/quantized_tensors.h"
#include "runtime/weights/tensor_store.h"
#include "runtime/weights/tensor_values.h"
#include "runtime/weights/text.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

namespace format = quantized_format;

// A role's rows within the tensor that holds them, which has `total` rows.
struct RowRange {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t total = 0;
};

// A norm or bias of a layer: where it goes, what it is called here and in a quantized checkpoint.
struct VectorPlace {
  std::vector<float> LayerWeights::*member;
  std::string stored;
  std::string canonical;
  RowRange rows;
};

DType DenseType(TensorType type) {
  return type == TensorType::kF32 ? DType::kF32
                                  : (type == TensorType::kF16 ? DType::kF16 : DType::kBF16);
}

std::string_view WithoutWeight(std::string_view name) {
  name.remove_suffix(std::strlen(format::kWeight));
  return name;
}

int64_t DenseBytes(const DenseMatrix& matrix) {
  return int64_t{matrix.rows} * matrix.cols * (matrix.dtype == DType::kF32 ? 4 : 2);
}

int64_t EmbeddingBytes(const Matrix& matrix) {
  if (const auto* dense = std::get_if<DenseMatrix>(&matrix)) return DenseBytes(*dense);
  const auto& int8 = std::get<Int8Matrix>(matrix);
  return int64_t{int8.rows} * (int8.cols + static_cast<int64_t>(sizeof(float)));
}

}  // namespace

struct CheckpointReader::Impl {
  std::string directory;
  ModelConfig config;
  TensorStore store;
  const TensorNames* names = nullptr;
  QuantizationInfo info;
  int64_t weight_bytes = 0;

  const ModelSpec& spec() const { return config.spec; }

  RowRange Rows(LinearRole role) const;
  std::vector<VectorPlace> LayerVectors(int layer) const;
  absl::StatusOr<DenseMatrix> FindDense(const std::string& name, const RowRange& rows,
                                        int32_t cols) const;
  absl::StatusOr<Matrix> FindLinear(int layer, LinearRole role) const;
  absl::StatusOr<Matrix> FindVocabMatrix(const char* name) const;
  absl::StatusOr<Tensor> FindVector(const std::string& name, const RowRange& rows) const;
  absl::StatusOr<std::vector<float>> ReadVector(const std::string& name,
                                                const RowRange& rows) const;
  absl::StatusOr<Matrix> ReadVocabMatrix(const char* name) const;
  absl::Status Survey();
  absl::Status SurveyLayers(int64_t* linear_bytes, int64_t* linear_weights);
};

RowRange CheckpointReader::Impl::Rows(LinearRole role) const {
  const std::string_view name = names->linears[static_cast<int>(role)];
  RowRange range;
  range.count = ShapeOf(spec(), role).rows;
  for (int other = 0; other < kNumLinearRoles; ++other) {
    if (name != names->linears[other]) continue;
    const int32_t rows = ShapeOf(spec(), static_cast<LinearRole>(other)).rows;
    if (other < static_cast<int>(role)) range.begin += rows;
    range.total += rows;
  }
  return range;
}

std::vector<VectorPlace> CheckpointReader::Impl::LayerVectors(int layer) const {
  const TensorNames& canonical = CanonicalNames();
  const auto whole = [](int64_t size) { return RowRange{0, size, size}; };
  std::vector<VectorPlace> places;
  const auto add = [&](auto member, const char* stored, const char* canonical_name, RowRange rows,
                       const char* suffix) {
    places.push_back({member, names->InLayer(layer, StrCat(stored, suffix)),
                      canonical.InLayer(layer, StrCat(canonical_name, suffix)), rows});
  };
  add(&LayerWeights::input_norm, names->input_norm, canonical.input_norm, whole(spec().hidden_size),
      "");
  add(&LayerWeights::post_attention_norm, names->post_attention_norm, canonical.post_attention_norm,
      whole(spec().hidden_size), "");
  if (spec().qk_norm) {
    add(&LayerWeights::q_norm, names->q_norm, canonical.q_norm, whole(spec().head_dim), "");
    add(&LayerWeights::k_norm, names->k_norm, canonical.k_norm, whole(spec().head_dim), "");
  }
  if (spec().qkv_bias) {
    constexpr std::pair<LinearRole, std::vector<float> LayerWeights::*> kBiases[] = {
        {LinearRole::kQ, &LayerWeights::q_bias},
        {LinearRole::kK, &LayerWeights::k_bias},
        {LinearRole::kV, &LayerWeights::v_bias}};
    for (const auto& [role, member] : kBiases) {
      const int index = static_cast<int>(role);
      add(member, names->linears[index], canonical.linears[index], Rows(role), format::kBias);
    }
  }
  return places;
}

absl::StatusOr<DenseMatrix> CheckpointReader::Impl::FindDense(const std::string& name,
                                                              const RowRange& rows,
                                                              int32_t cols) const {
  const int64_t shape[] = {rows.total, cols};
  const auto stored =
      store.Find(name, {TensorType::kBF16, TensorType::kF16, TensorType::kF32}, shape);
  if (!stored.ok()) return stored.status();
  return DenseMatrix{.data = SliceRows(*stored->tensor, rows.begin, rows.count).data.data(),
                     .dtype = DenseType(stored->tensor->type),
                     .rows = static_cast<int32_t>(rows.count),
                     .cols = cols};
}

absl::StatusOr<Matrix> CheckpointReader::Impl::FindLinear(int layer, LinearRole role) const {
  const LinearShape size = ShapeOf(spec(), role);
  const std::string name = names->InLayer(layer, names->linears[static_cast<int>(role)]);
  if (config.quantized) {
    return FindPacked(store, name, size.rows, size.cols, config.quantized->zero_points);
  }
  return FindDense(StrCat(name, format::kWeight), Rows(role), size.cols);
}

absl::StatusOr<Matrix> CheckpointReader::Impl::FindVocabMatrix(const char* name) const {
  const int32_t rows = spec().vocab_size;
  if (config.quantized && config.quantized->embedding_bits == 8) {
    return FindInt8(store, std::string(WithoutWeight(name)), rows, spec().hidden_size);
  }
  return FindDense(name, RowRange{0, rows, rows}, spec().hidden_size);
}

absl::StatusOr<Tensor> CheckpointReader::Impl::FindVector(const std::string& name,
                                                          const RowRange& rows) const {
  const int64_t shape[] = {rows.total};
  const auto stored =
      store.Find(name, {TensorType::kBF16, TensorType::kF16, TensorType::kF32}, shape);
  if (!stored.ok()) return stored.status();
  return SliceRows(*stored->tensor, rows.begin, rows.count);
}

absl::StatusOr<std::vector<float>> CheckpointReader::Impl::ReadVector(const std::string& name,
                                                                      const RowRange& rows) const {
  const auto tensor = FindVector(name, rows);
  if (!tensor.ok()) return tensor.status();
  std::vector<float> values = ToFloats(*tensor);
  if (const int64_t bad = FindNonFinite(values); bad >= 0) {
    return absl::InvalidArgumentError(StrCat(directory, ": tensor '", name, "': element ",
                                             rows.begin + bad, " is NaN or infinite"));
  }
  return values;
}

absl::StatusOr<Matrix> CheckpointReader::Impl::ReadVocabMatrix(const char* name) const {
  absl::StatusOr<Matrix> matrix = FindVocabMatrix(name);
  if (!matrix.ok()) return matrix;
  if (const auto* int8 = std::get_if<Int8Matrix>(&*matrix)) {
    const absl::Status status = CheckInt8Contents(store, std::string(WithoutWeight(name)), *int8);
    if (!status.ok()) return status;
  }
  return matrix;
}

absl::Status CheckpointReader::Impl::SurveyLayers(int64_t* linear_bytes, int64_t* linear_weights) {
  for (int layer = 0; layer < spec().num_layers; ++layer) {
    for (int role = 0; role < kNumLinearRoles; ++role) {
      const auto matrix = FindLinear(layer, static_cast<LinearRole>(role));
      if (!matrix.ok()) return matrix.status();
      const auto* packed = std::get_if<quant::PackedMatrix>(&*matrix);
      *linear_bytes +=
          packed != nullptr ? PackedBytes(*packed) : DenseBytes(std::get<DenseMatrix>(*matrix));
      *linear_weights += int64_t{MatrixRows(*matrix)} * MatrixCols(*matrix);
    }
    for (const VectorPlace& place : LayerVectors(layer)) {
      const auto vector = FindVector(place.stored, place.rows);
      if (!vector.ok()) return vector.status();
      weight_bytes += static_cast<int64_t>(vector->data.size());
    }
  }
  return absl::OkStatus();
}

// Finds every tensor once, so that Open fails for whatever is missing or misshapen, and adds up the
// bytes.
absl::Status CheckpointReader::Impl::Survey() {
  const auto embedding = FindVocabMatrix(names->embedding);
  if (!embedding.ok()) return embedding.status();
  int64_t vocab_bytes = EmbeddingBytes(*embedding);
  int64_t vocab_weights = int64_t{spec().vocab_size} * spec().hidden_size;
  if (!spec().tied_head) {
    const auto head = FindVocabMatrix(names->head);
    if (!head.ok()) return head.status();
    vocab_bytes += EmbeddingBytes(*head);
    vocab_weights *= 2;
  }
  const auto norm =
      FindVector(names->final_norm, RowRange{0, spec().hidden_size, spec().hidden_size});
  if (!norm.ok()) return norm.status();

  int64_t linear_bytes = 0;
  int64_t linear_weights = 0;
  const absl::Status status = SurveyLayers(&linear_bytes, &linear_weights);
  if (!status.ok()) return status;
  weight_bytes += vocab_bytes + linear_bytes + static_cast<int64_t>(norm->data.size());
  info.average_bits = 8.0 * static_cast<double>(linear_bytes) / static_cast<double>(linear_weights);
  info.embedding_bits = 8.0 * static_cast<double>(vocab_bytes) / static_cast<double>(vocab_weights);
  return absl::OkStatus();
}

CheckpointReader::CheckpointReader() : impl_(std::make_unique<Impl>()) {}
CheckpointReader::~CheckpointReader() = default;

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Open(
    const std::string& directory) {
  auto config = ReadModelConfig(directory);
  if (!config.ok()) return config.status();
  auto store = TensorStore::Open(directory);
  if (!store.ok()) return store.status();
  std::unique_ptr<CheckpointReader> reader(new CheckpointReader());
  Impl& impl = *reader->impl_;
  impl.directory = directory;
  impl.config = *std::move(config);
  impl.store = *std::move(store);
  impl.names = impl.config.quantized ? &CanonicalNames() : impl.config.arch->names;
  if (impl.config.quantized) {
    impl.info.quantized = true;
    impl.info.method = impl.config.quantized->method;
  }
  const absl::Status status = impl.Survey();
  if (!status.ok()) return status;
  return reader;
}

const ModelSpec& CheckpointReader::spec() const { return impl_->config.spec; }
const QuantizationInfo& CheckpointReader::quantization() const { return impl_->info; }
const GenerationDefaults& CheckpointReader::generation() const { return impl_->config.generation; }
const std::string& CheckpointReader::directory() const { return impl_->directory; }
const nlohmann::json& CheckpointReader::config() const { return impl_->config.json; }
int64_t CheckpointReader::weight_bytes() const { return impl_->weight_bytes; }

absl::StatusOr<Matrix> CheckpointReader::Embedding() const {
  return impl_->ReadVocabMatrix(impl_->names->embedding);
}

absl::StatusOr<Matrix> CheckpointReader::Head() const {
  return spec().tied_head ? Embedding() : impl_->ReadVocabMatrix(impl_->names->head);
}

absl::StatusOr<std::vector<float>> CheckpointReader::FinalNorm() const {
  return impl_->ReadVector(impl_->names->final_norm,
                           RowRange{0, spec().hidden_size, spec().hidden_size});
}

absl::StatusOr<LayerWeights> CheckpointReader::Layer(int layer) const {
  FEWBIT_CHECK(layer >= 0 && layer < spec().num_layers) << "layer " << layer;
  LayerWeights weights;
  for (int role = 0; role < kNumLinearRoles; ++role) {
    auto matrix = impl_->FindLinear(layer, static_cast<LinearRole>(role));
    if (!matrix.ok()) return matrix.status();
    if (const auto* packed = std::get_if<quant::PackedMatrix>(&*matrix)) {
      const absl::Status status = CheckPackedContents(
          impl_->store, impl_->names->InLayer(layer, impl_->names->linears[role]), *packed);
      if (!status.ok()) return status;
    }
    weights.linears[role] = *std::move(matrix);
  }
  for (const VectorPlace& place : impl_->LayerVectors(layer)) {
    auto values = impl_->ReadVector(place.stored, place.rows);
    if (!values.ok()) return values.status();
    weights.*place.member = *std::move(values);
  }
  return weights;
}

absl::StatusOr<std::vector<NamedTensor>> CheckpointReader::StoredVectors(int layer) const {
  std::vector<NamedTensor> tensors;
  if (layer < 0) {
    auto norm = impl_->FindVector(impl_->names->final_norm,
                                  RowRange{0, spec().hidden_size, spec().hidden_size});
    if (!norm.ok()) return norm.status();
    tensors.push_back({CanonicalNames().final_norm, *std::move(norm)});
    return tensors;
  }
  for (const VectorPlace& place : impl_->LayerVectors(layer)) {
    auto tensor = impl_->FindVector(place.stored, place.rows);
    if (!tensor.ok()) return tensor.status();
    tensors.push_back({place.canonical, *std::move(tensor)});
  }
  return tensors;
}

void CheckpointReader::ReleaseLayer(int layer) const {
  impl_->store.Release(impl_->names->InLayer(layer, ""));
}

void CheckpointReader::ReleaseEnds() const {
  impl_->store.Release(WithoutWeight(impl_->names->embedding));
  impl_->store.Release(WithoutWeight(impl_->names->head));
}

std::vector<std::shared_ptr<const void>> CheckpointReader::mappings() const {
  std::vector<std::shared_ptr<const void>> mappings;
  for (const SafetensorsFile& file : impl_->store.files()) mappings.push_back(file.mapping());
  return mappings;
}

}  // namespace fewbit
