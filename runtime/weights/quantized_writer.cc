#include "runtime/weights/quantized_writer.h"

#include <cstdio>
#include <optional>
#include <utility>

#include "nlohmann/json.hpp"
#include "runtime/models/arch_table.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/embedding_rounding.h"
#include "runtime/weights/file.h"
#include "runtime/weights/json.h"
#include "runtime/weights/quantized_format.h"
#include "runtime/weights/quantized_tensors.h"
#include "runtime/weights/run_directory.h"
#include "runtime/weights/safetensors_writer.h"
#include "runtime/weights/text.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

namespace format = quantized_format;

// Copied where the source has them: what a tokenizer or a server may want beside the weights.
constexpr const char* kCopiedFiles[] = {"tokenizer.model",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "chat_template.jinja",
                                        "generation_config.json"};
constexpr size_t kMaxCopiedBytes = 256 << 20;

template <typename T>
std::span<const uint8_t> BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

TensorToWrite VectorToWrite(std::string name, const Tensor& tensor) {
  return {.name = std::move(name), .type = tensor.type, .shape = tensor.shape, .data = tensor.data};
}

TensorToWrite DenseToWrite(std::string name, const DenseMatrix& matrix) {
  const TensorType type =
      matrix.dtype == DType::kF32
          ? TensorType::kF32
          : (matrix.dtype == DType::kF16 ? TensorType::kF16 : TensorType::kBF16);
  const size_t bytes = static_cast<size_t>(matrix.rows) * static_cast<size_t>(matrix.cols) *
                       static_cast<size_t>(TensorTypeBytes(type));
  return {.name = std::move(name),
          .type = type,
          .shape = {matrix.rows, matrix.cols},
          .data = {static_cast<const uint8_t*>(matrix.data), bytes}};
}

}  // namespace

struct QuantizedWriter::Impl {
  const CheckpointReader* source = nullptr;
  std::unique_ptr<RunDirectory> run;
  int embedding_bits = 16;
  QuantizedBytes bytes;
  std::optional<bool> zero_points;
  std::vector<bool> layer_done;
  bool embeddings_done = false;
  bool completed = false;
  bool finished = false;
  int64_t total_bytes = 0;
  std::map<std::string, std::string> weight_map;  // tensor -> file

  absl::Status Open(const std::string& directory, const CheckpointReader& reader, int bits,
                    bool restart);
  std::string ShardName(int shard) const;
  std::string Path(std::string_view name) const { return StrCat(run->files(), "/", name); }
  void CountTensor(const std::string& name, size_t size, const std::string& shard);
  absl::Status WriteShard(int shard, std::vector<TensorToWrite> tensors);
  absl::Status AddVocabMatrix(const char* name, const Matrix& matrix, Int8Storage* rounded,
                              std::vector<TensorToWrite>* tensors);
  void AddInt8(const char* name, const Int8Matrix& matrix, std::vector<TensorToWrite>* tensors);
  absl::Status AddVectors(int layer, const ReplacedVectors& replaced,
                          std::vector<TensorToWrite>* tensors);
  void AddLinear(const std::string& name, const quant::PackedStorage& storage,
                 const std::vector<int32_t>& shape, std::vector<TensorToWrite>* tensors);
  void CountLinear(const quant::PackedMatrix& matrix);
  absl::Status WriteConfig(const nlohmann::json& settings) const;
  absl::Status WriteIndex() const;
  absl::Status CopyFiles() const;
};

absl::Status QuantizedWriter::Impl::Open(const std::string& directory,
                                         const CheckpointReader& reader, int bits, bool restart) {
  source = &reader;
  embedding_bits = bits;
  layer_done.resize(static_cast<size_t>(reader.spec().num_layers));
  auto opened = RunDirectory::Open(directory, restart);
  if (!opened.ok()) return opened.status();
  run = *std::move(opened);
  return absl::OkStatus();
}

// Shard 0 holds the embeddings, shard i + 1 layer i.
std::string QuantizedWriter::Impl::ShardName(int shard) const {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", shard + 1,
                source->spec().num_layers + 1);
  return name;
}

absl::Status QuantizedWriter::Impl::WriteShard(int shard, std::vector<TensorToWrite> tensors) {
  const std::string name = ShardName(shard);
  for (const TensorToWrite& tensor : tensors) CountTensor(tensor.name, tensor.data.size(), name);
  return WriteSafetensors(Path(name), std::move(tensors));
}

void QuantizedWriter::Impl::CountTensor(const std::string& name, size_t size,
                                        const std::string& shard) {
  weight_map[name] = shard;
  total_bytes += static_cast<int64_t>(size);
}

absl::Status QuantizedWriter::Impl::AddVocabMatrix(const char* name, const Matrix& matrix,
                                                   Int8Storage* rounded,
                                                   std::vector<TensorToWrite>* tensors) {
  if (const auto* stored = std::get_if<Int8Matrix>(&matrix)) {
    AddInt8(name, *stored, tensors);
    return absl::OkStatus();
  }
  const auto& dense = std::get<DenseMatrix>(matrix);
  const auto wrong = [&](const absl::Status& status) {
    return absl::InvalidArgumentError(
        StrCat(source->directory(), ": tensor '", name,
               "': ", std::string_view(status.message().data(), status.message().size())));
  };
  if (embedding_bits != 8) {
    if (const absl::Status status = CheckFinite(dense); !status.ok()) return wrong(status);
    bytes.embedding_weights += int64_t{dense.rows} * dense.cols;
    tensors->push_back(DenseToWrite(name, dense));
    bytes.embedding_bytes += static_cast<int64_t>(tensors->back().data.size());
    return absl::OkStatus();
  }
  auto storage = RoundToInt8(dense);
  if (!storage.ok()) return wrong(storage.status());
  *rounded = *std::move(storage);
  AddInt8(name,
          {.codes = rounded->codes.data(),
           .scales = rounded->scales.data(),
           .rows = dense.rows,
           .cols = dense.cols},
          tensors);
  return absl::OkStatus();
}

void QuantizedWriter::Impl::AddInt8(const char* name, const Int8Matrix& matrix,
                                    std::vector<TensorToWrite>* tensors) {
  std::string base(name);
  base.resize(base.size() - std::string_view(format::kWeight).size());
  const int64_t weights = int64_t{matrix.rows} * matrix.cols;
  const int aligned = weights % format::kPackedAlignment == 0 ? format::kPackedAlignment
                                                              : TensorTypeBytes(TensorType::kU8);
  const std::span<const uint8_t> scales(reinterpret_cast<const uint8_t*>(matrix.scales),
                                        static_cast<size_t>(matrix.rows) * sizeof(float));
  tensors->push_back({.name = base + format::kCodes,
                      .type = TensorType::kU8,
                      .shape = {matrix.rows, matrix.cols},
                      .data = {matrix.codes, static_cast<size_t>(weights)},
                      .alignment = aligned});
  tensors->push_back({.name = base + format::kScales,
                      .type = TensorType::kF32,
                      .shape = {matrix.rows},
                      .data = scales});
  bytes.embedding_weights += weights;
  bytes.embedding_bytes += weights + static_cast<int64_t>(scales.size());
}

absl::Status QuantizedWriter::Impl::AddVectors(int layer, const ReplacedVectors& replaced,
                                               std::vector<TensorToWrite>* tensors) {
  const auto vectors = source->StoredVectors(layer);
  if (!vectors.ok()) return vectors.status();
  size_t used = 0;
  for (const NamedTensor& vector : *vectors) {
    TensorToWrite tensor = VectorToWrite(vector.name, vector.tensor);
    if (const auto found = replaced.find(vector.name); found != replaced.end()) {
      tensor.type = TensorType::kF32;
      tensor.data = BytesOf(found->second);
      FEWBIT_CHECK_EQ(int64_t{tensor.shape[0]}, static_cast<int64_t>(found->second.size()));
      ++used;
    }
    tensors->push_back(std::move(tensor));
  }
  FEWBIT_CHECK_EQ(used, replaced.size());
  return absl::OkStatus();
}

void QuantizedWriter::Impl::AddLinear(const std::string& name, const quant::PackedStorage& storage,
                                      const std::vector<int32_t>& shape,
                                      std::vector<TensorToWrite>* tensors) {
  const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  tensors->push_back(
      {.name = name + format::kPacked,
       .type = TensorType::kU8,
       .shape = {storage.shape.row_blocks(), static_cast<int64_t>(storage.shape.row_block_bytes())},
       .data = storage.tiles,
       .alignment = format::kPackedAlignment});
  tensors->push_back({.name = name + format::kPackedShape,
                      .type = TensorType::kI32,
                      .shape = {size(shape)},
                      .data = BytesOf(shape)});
  tensors->push_back({.name = name + format::kStripOrder,
                      .type = TensorType::kU16,
                      .shape = {size(storage.strip_order)},
                      .data = BytesOf(storage.strip_order)});
  if (!storage.outlier_start.empty()) {
    tensors->push_back({.name = name + format::kOutlierStart,
                        .type = TensorType::kU32,
                        .shape = {size(storage.outlier_start)},
                        .data = BytesOf(storage.outlier_start)});
    tensors->push_back({.name = name + format::kOutliers,
                        .type = TensorType::kU32,
                        .shape = {size(storage.outliers)},
                        .data = BytesOf(storage.outliers)});
  }
  CountLinear(storage.view());
}

void QuantizedWriter::Impl::CountLinear(const quant::PackedMatrix& matrix) {
  if (!zero_points) zero_points = matrix.shape.zero_points;
  FEWBIT_CHECK_EQ(*zero_points, matrix.shape.zero_points);
  bytes.linear_bytes += PackedBytes(matrix);
  bytes.linear_weights += int64_t{matrix.shape.rows} * matrix.shape.cols;
}

absl::Status QuantizedWriter::Impl::WriteConfig(const nlohmann::json& settings) const {
  nlohmann::json config = source->config();
  nlohmann::json quantization = settings;
  quantization[format::kMethodNameKey] = format::kMethodName;
  quantization[format::kLayoutVersionKey] = quant::kLayoutVersion;
  quantization[format::kZeroPointsKey] = zero_points.value_or(false);
  quantization[format::kEmbeddingBitsKey] = embedding_bits;
  quantization[format::kAverageBitsKey] =
      8.0 * static_cast<double>(bytes.linear_bytes) / static_cast<double>(bytes.linear_weights);
  config[format::kConfigKey] = std::move(quantization);
  return WriteFileDurably(
      Path("config.json"),
      config.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

absl::Status QuantizedWriter::Impl::WriteIndex() const {
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                {"weight_map", weight_map}};
  return WriteFileDurably(Path("model.safetensors.index.json"), index.dump(2) + "\n");
}

absl::Status QuantizedWriter::Impl::CopyFiles() const {
  for (const char* name : kCopiedFiles) {
    const auto content = ReadSmallFile(StrCat(source->directory(), "/", name), kMaxCopiedBytes);
    if (absl::IsNotFound(content.status())) continue;
    if (!content.ok()) return content.status();
    const absl::Status status = WriteFileDurably(Path(name), *content);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

QuantizedWriter::QuantizedWriter() : impl_(std::make_unique<Impl>()) {}

QuantizedWriter::~QuantizedWriter() = default;

absl::StatusOr<std::unique_ptr<QuantizedWriter>> QuantizedWriter::Create(
    const std::string& directory, const CheckpointReader& source, int embedding_bits,
    bool restart) {
  if (embedding_bits != 8 && embedding_bits != 16) {
    return absl::InvalidArgumentError(
        StrCat("embedding_bits: ", embedding_bits, ": must be 8 or 16"));
  }
  if (source.quantization().quantized) {
    return absl::InvalidArgumentError(
        StrCat(source.directory(), ": is quantized already; take the original checkpoint"));
  }
  std::unique_ptr<QuantizedWriter> writer(new QuantizedWriter());
  if (absl::Status status = writer->impl_->Open(directory, source, embedding_bits, restart);
      !status.ok()) {
    return status;
  }
  return writer;
}

absl::StatusOr<std::unique_ptr<QuantizedWriter>> QuantizedWriter::CreateVersion(
    const std::string& directory, const CheckpointReader& source, bool restart) {
  if (!source.quantization().quantized) {
    return absl::InvalidArgumentError(StrCat(source.directory(), ": is not quantized"));
  }
  const auto embedding = source.Embedding();
  if (!embedding.ok()) return embedding.status();
  std::unique_ptr<QuantizedWriter> writer(new QuantizedWriter());
  const int embedding_bits = std::holds_alternative<Int8Matrix>(*embedding) ? 8 : 16;
  if (absl::Status status = writer->impl_->Open(directory, source, embedding_bits, restart);
      !status.ok()) {
    return status;
  }
  return writer;
}

const std::string& QuantizedWriter::partial_directory() const { return impl_->run->path(); }
const std::optional<nlohmann::json>& QuantizedWriter::progress() const {
  return impl_->run->progress();
}
absl::Status QuantizedWriter::Record(const nlohmann::json& progress) {
  return impl_->run->Record(progress);
}

absl::Status QuantizedWriter::WriteEmbeddings(const ReplacedVectors& replaced) {
  FEWBIT_CHECK(!impl_->embeddings_done);
  const TensorNames& names = CanonicalNames();
  std::vector<TensorToWrite> tensors;
  Int8Storage embedding_storage;
  Int8Storage head_storage;
  const auto embedding = impl_->source->Embedding();
  if (!embedding.ok()) return embedding.status();
  absl::Status status =
      impl_->AddVocabMatrix(names.embedding, *embedding, &embedding_storage, &tensors);
  if (!status.ok()) return status;
  if (!impl_->source->spec().tied_head) {
    const auto head = impl_->source->Head();
    if (!head.ok()) return head.status();
    status = impl_->AddVocabMatrix(names.head, *head, &head_storage, &tensors);
    if (!status.ok()) return status;
  }
  if (status = impl_->AddVectors(-1, replaced, &tensors); !status.ok()) return status;
  impl_->embeddings_done = true;
  return impl_->WriteShard(0, std::move(tensors));
}

absl::Status QuantizedWriter::WriteLayer(int layer, const QuantizedLayer& linears,
                                         const ReplacedVectors& replaced) {
  const ModelSpec& spec = impl_->source->spec();
  FEWBIT_CHECK(layer >= 0 && layer < spec.num_layers) << layer;
  FEWBIT_CHECK(!impl_->layer_done[static_cast<size_t>(layer)]) << "layer " << layer << " twice";
  std::vector<TensorToWrite> tensors;
  std::vector<int32_t> shapes[kNumLinearRoles];
  for (int role = 0; role < kNumLinearRoles; ++role) {
    const quant::PackedStorage& storage = linears.linears[role];
    const quant::PackedShape& shape = storage.shape;
    FEWBIT_CHECK(
        (LinearShape{shape.rows, shape.cols} == ShapeOf(spec, static_cast<LinearRole>(role))))
        << CanonicalNames().linears[role];
    shapes[role] = {shape.rows, shape.cols, shape.chunks2, shape.chunks4};
    impl_->AddLinear(CanonicalNames().InLayer(layer, CanonicalNames().linears[role]), storage,
                     shapes[role], &tensors);
  }
  const absl::Status status = impl_->AddVectors(layer, replaced, &tensors);
  if (!status.ok()) return status;
  impl_->layer_done[static_cast<size_t>(layer)] = true;
  return impl_->WriteShard(layer + 1, std::move(tensors));
}

absl::StatusOr<uint64_t> QuantizedWriter::LayerChecksum(int layer) const {
  const auto file = MappedFile::Open(impl_->Path(impl_->ShardName(layer + 1)));
  if (!file.ok()) return file.status();
  return Fnv1a((*file)->bytes());
}

absl::StatusOr<WrittenLayer> QuantizedWriter::TakeOverLayer(int layer, uint64_t checksum,
                                                            bool zero_points) {
  const ModelSpec& spec = impl_->source->spec();
  FEWBIT_CHECK(layer >= 0 && layer < spec.num_layers) << layer;
  FEWBIT_CHECK(!impl_->layer_done[static_cast<size_t>(layer)]) << "layer " << layer << " twice";
  const std::string shard = impl_->ShardName(layer + 1);
  const std::string path = impl_->Path(shard);
  const auto found = LayerChecksum(layer);
  if (!found.ok()) return found.status();
  if (*found != checksum) return absl::DataLossError(StrCat(path, ": not what the run wrote"));
  auto store = TensorStore::OpenFile(path);
  if (!store.ok()) return store.status();
  WrittenLayer result{.store = *std::move(store), .linears = {}};
  for (int role = 0; role < kNumLinearRoles; ++role) {
    const LinearShape shape = ShapeOf(spec, static_cast<LinearRole>(role));
    const std::string name = CanonicalNames().InLayer(layer, CanonicalNames().linears[role]);
    const auto matrix = FindPacked(result.store, name, shape.rows, shape.cols, zero_points);
    if (!matrix.ok()) return matrix.status();
    const absl::Status status = CheckPackedContents(result.store, name, *matrix);
    if (!status.ok()) return status;
    result.linears[role] = *matrix;
  }
  for (const quant::PackedMatrix& matrix : result.linears) impl_->CountLinear(matrix);
  for (const auto& [name, tensor] : result.store.files()[0].tensors()) {
    impl_->CountTensor(name, tensor.data.size(), shard);
  }
  impl_->layer_done[static_cast<size_t>(layer)] = true;
  return result;
}

absl::StatusOr<std::string> QuantizedWriter::Complete(const nlohmann::json& settings) {
  FEWBIT_CHECK(impl_->embeddings_done && !impl_->completed);
  for (size_t i = 0; i < impl_->layer_done.size(); ++i) FEWBIT_CHECK(impl_->layer_done[i]) << i;
  FEWBIT_CHECK(settings.is_object() && settings.contains(format::kRecipeKey));
  absl::Status status = impl_->WriteConfig(settings);
  if (status.ok()) status = impl_->WriteIndex();
  if (status.ok()) status = impl_->CopyFiles();
  if (!status.ok()) return status;
  impl_->completed = true;
  return impl_->run->files();
}

absl::Status QuantizedWriter::Finish() {
  FEWBIT_CHECK(impl_->completed && !impl_->finished);
  const absl::Status status = impl_->run->Publish();
  impl_->finished = status.ok();
  return status;
}

absl::Status QuantizedWriter::Finish(const nlohmann::json& settings) {
  const auto files = Complete(settings);
  return files.ok() ? Finish() : files.status();
}

const QuantizedBytes& QuantizedWriter::bytes() const { return impl_->bytes; }

}  // namespace fewbit
