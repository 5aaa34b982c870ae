#include "runtime/weights/quantized_writer.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
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

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

absl::Status CheckTarget(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::exists(directory, error)) return absl::OkStatus();
  const bool empty = std::filesystem::is_directory(directory, error) &&
                     std::filesystem::is_empty(directory, error) && !error;
  if (empty) return absl::OkStatus();
  return absl::AlreadyExistsError(StrCat(directory, ": exists and is not an empty directory"));
}

// A new directory beside the target; another process or an interrupted run may hold other names.
absl::StatusOr<std::string> MakeDirectoryBeside(const std::string& target) {
  constexpr int kTries = 1000;
  for (int i = 0; i < kTries; ++i) {
    std::string path = StrCat(target, ".tmp-", ::getpid(), "-", i);
    if (::mkdir(path.c_str(), 0777) == 0) return path;
    if (errno != EEXIST) return ErrnoStatus(errno, "create directory", path);
  }
  return absl::AlreadyExistsError(StrCat(target, ".tmp-*: too many left-over directories"));
}

}  // namespace

struct QuantizedWriter::Impl {
  const CheckpointReader* source = nullptr;
  std::string target;
  std::string directory;  // where files go until Finish; empty once it is renamed
  int embedding_bits = 16;
  QuantizedBytes bytes;
  std::optional<bool> zero_points;
  std::vector<bool> layer_done;
  bool embeddings_done = false;
  int64_t total_bytes = 0;
  std::map<std::string, std::string> weight_map;  // tensor -> file

  std::string ShardName(int shard) const;
  absl::Status WriteShard(int shard, std::vector<TensorToWrite> tensors);
  absl::Status AddVocabMatrix(const char* name, const Matrix& matrix, Int8Storage* rounded,
                              std::vector<TensorToWrite>* tensors);
  void AddLinear(const std::string& name, const quant::PackedStorage& storage,
                 const std::vector<int32_t>& shape, std::vector<TensorToWrite>* tensors);
  absl::Status WriteConfig(const nlohmann::json& settings) const;
  absl::Status WriteIndex() const;
  absl::Status CopyFiles() const;
};

// Shard 0 holds the embeddings, shard i + 1 layer i.
std::string QuantizedWriter::Impl::ShardName(int shard) const {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", shard + 1,
                source->spec().num_layers + 1);
  return name;
}

absl::Status QuantizedWriter::Impl::WriteShard(int shard, std::vector<TensorToWrite> tensors) {
  const std::string name = ShardName(shard);
  for (const TensorToWrite& tensor : tensors) {
    weight_map[tensor.name] = name;
    total_bytes += static_cast<int64_t>(tensor.data.size());
  }
  return WriteSafetensors(StrCat(directory, "/", name), std::move(tensors));
}

absl::Status QuantizedWriter::Impl::AddVocabMatrix(const char* name, const Matrix& matrix,
                                                   Int8Storage* rounded,
                                                   std::vector<TensorToWrite>* tensors) {
  const auto& dense = std::get<DenseMatrix>(matrix);
  const auto wrong = [&](const absl::Status& status) {
    return absl::InvalidArgumentError(
        StrCat(source->directory(), ": tensor '", name,
               "': ", std::string_view(status.message().data(), status.message().size())));
  };
  bytes.embedding_weights += int64_t{dense.rows} * dense.cols;
  if (embedding_bits != 8) {
    if (const absl::Status status = CheckFinite(dense); !status.ok()) return wrong(status);
    tensors->push_back(DenseToWrite(name, dense));
    bytes.embedding_bytes += static_cast<int64_t>(tensors->back().data.size());
    return absl::OkStatus();
  }
  auto storage = RoundToInt8(dense);
  if (!storage.ok()) return wrong(storage.status());
  *rounded = *std::move(storage);
  std::string base(name);
  base.resize(base.size() - std::string_view(format::kWeight).size());
  const int aligned = rounded->codes.size() % format::kPackedAlignment == 0
                          ? format::kPackedAlignment
                          : TensorTypeBytes(TensorType::kU8);
  tensors->push_back({.name = base + format::kCodes,
                      .type = TensorType::kU8,
                      .shape = {dense.rows, dense.cols},
                      .data = rounded->codes,
                      .alignment = aligned});
  tensors->push_back({.name = base + format::kScales,
                      .type = TensorType::kF32,
                      .shape = {dense.rows},
                      .data = BytesOf(rounded->scales)});
  bytes.embedding_bytes +=
      static_cast<int64_t>(rounded->codes.size() + BytesOf(rounded->scales).size());
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
  bytes.linear_bytes += PackedBytes(storage.view());
  bytes.linear_weights += int64_t{storage.shape.rows} * storage.shape.cols;
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
      StrCat(directory, "/config.json"),
      config.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

absl::Status QuantizedWriter::Impl::WriteIndex() const {
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                {"weight_map", weight_map}};
  return WriteFileDurably(StrCat(directory, "/model.safetensors.index.json"), index.dump(2) + "\n");
}

absl::Status QuantizedWriter::Impl::CopyFiles() const {
  for (const char* name : kCopiedFiles) {
    const auto content = ReadSmallFile(StrCat(source->directory(), "/", name), kMaxCopiedBytes);
    if (absl::IsNotFound(content.status())) continue;
    if (!content.ok()) return content.status();
    const absl::Status status = WriteFileDurably(StrCat(directory, "/", name), *content);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

QuantizedWriter::QuantizedWriter() : impl_(std::make_unique<Impl>()) {}

QuantizedWriter::~QuantizedWriter() {
  if (impl_->directory.empty()) return;
  std::error_code ignored;  // nobody is left to hear of it
  std::filesystem::remove_all(impl_->directory, ignored);
}

absl::StatusOr<std::unique_ptr<QuantizedWriter>> QuantizedWriter::Create(
    const std::string& directory, const CheckpointReader& source, int embedding_bits) {
  if (embedding_bits != 8 && embedding_bits != 16) {
    return absl::InvalidArgumentError(
        StrCat("embedding_bits: ", embedding_bits, ": must be 8 or 16"));
  }
  if (source.quantization().quantized) {
    return absl::InvalidArgumentError(
        StrCat(source.directory(), ": is quantized already; take the original checkpoint"));
  }
  std::unique_ptr<QuantizedWriter> writer(new QuantizedWriter());
  Impl& impl = *writer->impl_;
  impl.source = &source;
  impl.target = WithoutTrailingSlashes(directory);
  impl.embedding_bits = embedding_bits;
  impl.layer_done.resize(static_cast<size_t>(source.spec().num_layers));
  if (const absl::Status status = CheckTarget(impl.target); !status.ok()) return status;
  auto created = MakeDirectoryBeside(impl.target);
  if (!created.ok()) return created.status();
  impl.directory = *std::move(created);
  return writer;
}

absl::Status QuantizedWriter::WriteEmbeddings() {
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
  const auto vectors = impl_->source->StoredVectors(-1);
  if (!vectors.ok()) return vectors.status();
  for (const NamedTensor& vector : *vectors) {
    tensors.push_back(VectorToWrite(vector.name, vector.tensor));
  }
  impl_->embeddings_done = true;
  return impl_->WriteShard(0, std::move(tensors));
}

absl::Status QuantizedWriter::WriteLayer(int layer, const QuantizedLayer& linears) {
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
    if (!impl_->zero_points) impl_->zero_points = shape.zero_points;
    FEWBIT_CHECK_EQ(*impl_->zero_points, shape.zero_points);
    shapes[role] = {shape.rows, shape.cols, shape.chunks2, shape.chunks4};
    impl_->AddLinear(CanonicalNames().InLayer(layer, CanonicalNames().linears[role]), storage,
                     shapes[role], &tensors);
  }
  const auto vectors = impl_->source->StoredVectors(layer);
  if (!vectors.ok()) return vectors.status();
  for (const NamedTensor& vector : *vectors) {
    tensors.push_back(VectorToWrite(vector.name, vector.tensor));
  }
  impl_->layer_done[static_cast<size_t>(layer)] = true;
  return impl_->WriteShard(layer + 1, std::move(tensors));
}

absl::Status QuantizedWriter::Finish(const nlohmann::json& settings) {
  FEWBIT_CHECK(impl_->embeddings_done && !impl_->directory.empty());
  for (size_t i = 0; i < impl_->layer_done.size(); ++i) FEWBIT_CHECK(impl_->layer_done[i]) << i;
  FEWBIT_CHECK(settings.is_object() && settings.contains(format::kRecipeKey));
  absl::Status status = impl_->WriteConfig(settings);
  if (status.ok()) status = impl_->WriteIndex();
  if (status.ok()) status = impl_->CopyFiles();
  if (status.ok()) status = SyncDirectory(impl_->directory);
  if (!status.ok()) return status;
  // An empty target is replaced; one that has filled up since Create is not.
  if (::rename(impl_->directory.c_str(), impl_->target.c_str()) != 0) {
    return ErrnoStatus(errno, "be created from the finished temporary directory", impl_->target);
  }
  impl_->directory.clear();
  const std::string parent = std::filesystem::path(impl_->target).parent_path().string();
  return SyncDirectory(parent.empty() ? "." : parent);
}

const QuantizedBytes& QuantizedWriter::bytes() const { return impl_->bytes; }

}  // namespace fewbit
