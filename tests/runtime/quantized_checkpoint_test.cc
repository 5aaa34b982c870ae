// Quantized checkpoints: what the writer is given comes back bit for bit, nothing half-written
// stays, corrupt tables are refused.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant_pack.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/quantized_writer.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A random matrix whose strips are dealt out between the two widths.
quant::UnpackedMatrix RandomMatrix(LinearShape size, bool zero_points, int num_outliers,
                                   std::mt19937* rng) {
  const int strips = size.cols / quant::kStripChannels;
  const int strips4 = strips / 3;
  const int strips2 = strips - strips4;
  quant::UnpackedMatrix m;
  m.shape = {.rows = size.rows,
             .cols = size.cols,
             .chunks2 = (strips2 + 7) / 8,
             .chunks4 = (strips4 + 3) / 4,
             .zero_points = zero_points};
  const auto positions = static_cast<size_t>(m.shape.num_positions());
  const auto rows = static_cast<size_t>(size.rows);
  std::vector<uint16_t> order(static_cast<size_t>(strips));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint16_t>(i);
  std::shuffle(order.begin(), order.end(), *rng);
  m.strip_order.assign(positions, quant::kNoStrip);
  std::copy_n(order.begin(), strips2, m.strip_order.begin());
  std::copy_n(order.begin() + strips2, strips4, m.strip_order.begin() + 8 * m.shape.chunks2);
  const auto random = [rng](unsigned below) { return (*rng)() % below; };
  m.codes.resize(rows * positions * quant::kStripChannels);
  m.sub_scales.resize(rows * positions);
  if (zero_points) m.zeros.resize(rows * positions);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t p = 0; p < positions; ++p) {
      if (m.strip_order[p] == quant::kNoStrip) continue;
      const unsigned levels = p < static_cast<size_t>(8 * m.shape.chunks2) ? 4 : 16;
      for (int c = 0; c < quant::kStripChannels; ++c) {
        m.codes[(r * positions + p) * quant::kStripChannels + static_cast<size_t>(c)] =
            static_cast<uint8_t>(random(levels));
      }
      m.sub_scales[r * positions + p] = static_cast<uint8_t>(random(16));
      if (zero_points) m.zeros[r * positions + p] = static_cast<uint8_t>(random(levels));
    }
  }
  for (const int bits : {2, 4}) {
    auto& scales = m.second_order[bits == 2 ? 0 : 1];
    scales.resize(rows * static_cast<size_t>(m.shape.tiles(bits)));
    for (uint16_t& scale : scales) scale = static_cast<uint16_t>(0x2000 + random(0x1000));
  }
  for (int i = 0; i < num_outliers; ++i) {
    m.outliers.push_back(
        {.row = static_cast<int32_t>(random(static_cast<unsigned>(size.rows))),
         .position = static_cast<int32_t>(random(static_cast<unsigned>(16 * strips2))),
         .value = static_cast<uint16_t>(0x3000 + i)});
  }
  return m;
}

std::vector<QuantizedLayer> RandomLayers(const ModelSpec& spec, bool zero_points, int outliers) {
  std::mt19937 rng(7);
  std::vector<QuantizedLayer> layers(static_cast<size_t>(spec.num_layers));
  for (QuantizedLayer& layer : layers) {
    for (int role = 0; role < kNumLinearRoles; ++role) {
      layer.linears[role] = quant::Pack(
          RandomMatrix(ShapeOf(spec, static_cast<LinearRole>(role)), zero_points, outliers, &rng));
    }
  }
  return layers;
}

const nlohmann::json kSettings = {{"method", "default"}, {"seed", 7}};

absl::Status WriteQuantized(const std::string& golden, const std::string& target,
                            int embedding_bits, const std::vector<QuantizedLayer>& layers,
                            QuantizedBytes* bytes = nullptr) {
  const auto source = CheckpointReader::Open(golden);
  if (!source.ok()) return source.status();
  const auto writer = QuantizedWriter::Create(target, **source, embedding_bits);
  if (!writer.ok()) return writer.status();
  absl::Status status = (*writer)->WriteEmbeddings();
  for (size_t i = 0; status.ok() && i < layers.size(); ++i) {
    status = (*writer)->WriteLayer(static_cast<int>(i), layers[i]);
  }
  if (status.ok()) status = (*writer)->Finish(kSettings);
  if (bytes != nullptr) *bytes = (*writer)->bytes();
  return status;
}

template <typename T>
void ExpectSameBytes(const std::vector<T>& expected, const T* actual) {
  ASSERT_TRUE(expected.empty() || actual != nullptr);
  EXPECT_TRUE(expected.empty() ||
              std::memcmp(expected.data(), actual, expected.size() * sizeof(T)) == 0);
}

struct RoundTrip {
  const char* golden;
  bool zero_points;
  int outliers;
  int embedding_bits;
};

class RoundTripTest : public testing::TestWithParam<RoundTrip> {};

TEST_P(RoundTripTest, ComesBackBitForBit) {
  const RoundTrip& c = GetParam();
  const TempDirectory parent;
  const std::string target = parent / "quantized";
  const auto source = LoadModel(GoldenDirectory(c.golden));
  ASSERT_TRUE(source.ok()) << source.status();
  const auto layers = RandomLayers((*source)->spec, c.zero_points, c.outliers);
  QuantizedBytes bytes;
  const absl::Status written =
      WriteQuantized(GoldenDirectory(c.golden), target, c.embedding_bits, layers, &bytes);
  ASSERT_TRUE(written.ok()) << written;

  const auto loaded = LoadModel(target);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Model& model = **loaded;
  EXPECT_EQ(model.spec.family, (*source)->spec.family);
  EXPECT_EQ(model.spec.rope.interleaved, (*source)->spec.rope.interleaved);
  for (size_t i = 0; i < layers.size(); ++i) {
    for (int role = 0; role < kNumLinearRoles; ++role) {
      const quant::PackedStorage& expected = layers[i].linears[role];
      const auto& actual = std::get<quant::PackedMatrix>(model.layers[i].linears[role]);
      EXPECT_EQ(actual.shape.chunks2, expected.shape.chunks2);
      EXPECT_EQ(actual.shape.chunks4, expected.shape.chunks4);
      EXPECT_EQ(actual.shape.zero_points, c.zero_points);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(actual.tiles) % 16, 0u);
      EXPECT_EQ(actual.outlier_start == nullptr, expected.outlier_start.empty());
      ExpectSameBytes(expected.tiles, actual.tiles);
      ExpectSameBytes(expected.strip_order, actual.strip_order);
      ExpectSameBytes(expected.outlier_start, actual.outlier_start);
      ExpectSameBytes(expected.outliers, actual.outliers);
    }
    EXPECT_EQ(model.layers[i].input_norm, (*source)->layers[i].input_norm);
    EXPECT_EQ(model.layers[i].q_norm, (*source)->layers[i].q_norm);
    EXPECT_EQ(model.layers[i].q_bias, (*source)->layers[i].q_bias);
    EXPECT_EQ(model.layers[i].v_bias, (*source)->layers[i].v_bias);
  }
  EXPECT_EQ(model.final_norm, (*source)->final_norm);
  EXPECT_TRUE(model.quantization.quantized);
  EXPECT_EQ(model.quantization.method, "default");
  EXPECT_DOUBLE_EQ(model.quantization.average_bits, 8.0 * static_cast<double>(bytes.linear_bytes) /
                                                        static_cast<double>(bytes.linear_weights));
  EXPECT_DOUBLE_EQ(model.quantization.embedding_bits,
                   8.0 * static_cast<double>(bytes.embedding_bytes) /
                       static_cast<double>(bytes.embedding_weights));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(parent.path()), {}), 1)
      << "only the target is left";
}

INSTANTIATE_TEST_SUITE_P(
    Families, RoundTripTest,
    testing::Values(RoundTrip{"llama2", false, 0, 16}, RoundTrip{"llama3", true, 20, 8},
                    RoundTrip{"mistral-swa", false, 5, 16}, RoundTrip{"qwen2", true, 0, 8},
                    RoundTrip{"qwen3", false, 9, 8}, RoundTrip{"glm", false, 3, 8},
                    RoundTrip{"chatglm2", true, 12, 16}));

TEST(QuantizedWriterTest, EightBitRowsAreWithinHalfAStep) {
  const TempDirectory parent;
  EditableCheckpoint golden = ReadGolden("llama2");
  auto& embedding = golden.Get("model.embed_tokens.weight").bytes;
  std::fill_n(embedding.begin(), 2 * 64, uint8_t{0});  // row 0: all zero
  WriteCheckpoint(parent.path(), golden);
  const auto source = LoadModel(parent.path());
  ASSERT_TRUE(source.ok()) << source.status();
  const auto written =
      WriteQuantized(parent.path(), parent / "q", 8, RandomLayers((*source)->spec, false, 0));
  ASSERT_TRUE(written.ok()) << written;
  const auto loaded = LoadModel(parent / "q");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  for (const auto& [matrix, original] : {std::pair(&(*loaded)->embedding, &(*source)->embedding),
                                         std::pair(&(*loaded)->head, &(*source)->head)}) {
    const auto& rounded = std::get<Int8Matrix>(*matrix);
    const auto* words = static_cast<const uint16_t*>(std::get<DenseMatrix>(*original).data);
    for (int r = 0; r < rounded.rows; ++r) {
      float largest = 0.0f;
      for (int c = 0; c < rounded.cols; ++c) {
        const uint32_t bits = static_cast<uint32_t>(words[r * 64 + c]) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        const int code = rounded.codes[r * 64 + c];
        ASSERT_GE(code, 1);
        const float back = static_cast<float>(code - 128) * rounded.scales[r];
        EXPECT_LE(std::fabs(back - value), 0.5001f * rounded.scales[r]);
        largest = std::max(largest, std::fabs(value));
      }
      EXPECT_FLOAT_EQ(rounded.scales[r], largest / 127.0f);
    }
  }
}

TEST(QuantizedWriterTest, CopiesWhatATokenizerNeedsAndKeepsTheConfig) {
  const TempDirectory parent;
  WriteCheckpoint(parent.path(), ReadGolden("llama2"));
  WriteText(parent / "tokenizer.model", std::string("\0binary\n", 8));
  WriteText(parent / "tokenizer_config.json", "{}");
  WriteText(parent / "generation_config.json", R"({"temperature":0.5,"eos_token_id":[2,3]})");
  WriteText(parent / "unrelated.txt", "x");
  const auto source = CheckpointReader::Open(parent.path());
  ASSERT_TRUE(source.ok());
  const std::string target = parent / "q";
  ASSERT_TRUE(
      WriteQuantized(parent.path(), target + "/", 16, RandomLayers((*source)->spec(), true, 1))
          .ok());
  EXPECT_EQ(ReadText(target + "/tokenizer.model"), std::string("\0binary\n", 8));
  EXPECT_EQ(ReadText(target + "/tokenizer_config.json"), "{}");
  EXPECT_FALSE(std::filesystem::exists(target + "/unrelated.txt"));
  const auto config = nlohmann::json::parse(ReadText(target + "/config.json"));
  EXPECT_EQ(config["hidden_size"], 64);
  EXPECT_EQ(config["quantization_config"]["quant_method"], "fewbit");
  EXPECT_EQ(config["quantization_config"]["zero_points"], true);
  EXPECT_EQ(config["quantization_config"]["seed"], 7);
  EXPECT_GT(config["quantization_config"]["average_bits"], 2.0);
  const auto loaded = LoadModel(target);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->generation.temperature, 0.5f);
  EXPECT_EQ((*loaded)->spec.eos.size(), 2u);
}

TEST(QuantizedWriterTest, RefusesTargetsAndSourcesItMustNotTouch) {
  const TempDirectory parent;
  const auto source = CheckpointReader::Open(GoldenDirectory("llama2"));
  ASSERT_TRUE(source.ok());
  const std::string target = parent / "q";
  const auto create = [&](int bits) {
    return QuantizedWriter::Create(target, **source, bits).status();
  };
  EXPECT_EQ(create(4).code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::create_directory(target);
  EXPECT_TRUE(create(16).ok()) << "an empty directory may be filled";
  WriteText(target + "/mine", "x");
  EXPECT_EQ(create(16).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(create(16).message()), HasSubstr(target));
  EXPECT_EQ(QuantizedWriter::Create(parent / "no/where", **source, 16).status().code(),
            absl::StatusCode::kNotFound);

  const auto layers = RandomLayers((*source)->spec(), false, 0);
  ASSERT_TRUE(WriteQuantized(GoldenDirectory("llama2"), parent / "q2", 16, layers).ok());
  EXPECT_EQ(WriteQuantized(parent / "q2", parent / "q3", 16, layers).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(QuantizedWriterTest, LeavesNothingWhenItStopsHalfWay) {
  const TempDirectory parent;
  const auto source = CheckpointReader::Open(GoldenDirectory("llama2"));
  ASSERT_TRUE(source.ok());
  const auto layers = RandomLayers((*source)->spec(), false, 0);
  const auto entries = [&parent] {
    return std::distance(std::filesystem::directory_iterator(parent.path()), {});
  };
  {
    const auto writer = QuantizedWriter::Create(parent / "q", **source, 16);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->WriteEmbeddings().ok());
    ASSERT_TRUE((*writer)->WriteLayer(0, layers[0]).ok());
    EXPECT_EQ(entries(), 1) << "the temporary directory";
    EXPECT_FALSE(std::filesystem::exists(parent / "q"));
  }
  EXPECT_EQ(entries(), 0);
  {  // the target fills up while the quantizer works
    const auto writer = QuantizedWriter::Create(parent / "q", **source, 16);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->WriteEmbeddings().ok());
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE((*writer)->WriteLayer(i, layers[static_cast<size_t>(i)]).ok());
    }
    std::filesystem::create_directory(parent / "q");
    WriteText(parent / "q/mine", "x");
    EXPECT_EQ((*writer)->Finish(kSettings).code(), absl::StatusCode::kAlreadyExists);
  }
  EXPECT_EQ(entries(), 1);
  EXPECT_EQ(ReadText(parent / "q/mine"), "x");
}

TEST(QuantizedWriterTest, NamesTheRowOfANanEmbedding) {
  for (const int bits : {8, 16}) {
    const TempDirectory parent;
    EditableCheckpoint golden = ReadGolden("llama2");
    auto& bytes = golden.Get("lm_head.weight").bytes;
    bytes[2 * (64 * 11 + 5)] = 0x80;
    bytes[2 * (64 * 11 + 5) + 1] = 0xFF;  // -infinity
    WriteCheckpoint(parent.path(), golden);
    const auto source = CheckpointReader::Open(parent.path());
    ASSERT_TRUE(source.ok());
    const auto writer = QuantizedWriter::Create(parent / "q", **source, bits);
    ASSERT_TRUE(writer.ok());
    const absl::Status status = (*writer)->WriteEmbeddings();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("lm_head.weight"), HasSubstr("row 11, column 5")));
  }
}

EditableCheckpoint ReadShard(const std::string& path) {
  EditableCheckpoint content;
  const auto file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return content;
  for (const auto& [name, tensor] : file->tensors()) {
    content.tensors.push_back(
        {name, tensor.type, tensor.shape, {tensor.data.begin(), tensor.data.end()}});
  }
  return content;
}

// A tool that rewrites a shard without our alignment must be noticed, not crash a kernel.
TEST(QuantizedReaderTest, RefusesPackedTensorsOutOfAlignment) {
  const TempDirectory parent;
  const std::string target = parent / "q";
  const auto source = CheckpointReader::Open(GoldenDirectory("llama2"));
  ASSERT_TRUE(source.ok());
  ASSERT_TRUE(WriteQuantized(GoldenDirectory("llama2"), target, 16,
                             RandomLayers((*source)->spec(), false, 4))
                  .ok());
  const std::string shard = target + "/model-00002-of-00003.safetensors";
  EditableCheckpoint content = ReadShard(shard);
  content.tensors.insert(content.tensors.begin(), {"extra", TensorType::kU32, {1}, {1, 2, 3, 4}});
  WriteSafetensorsFile(shard, content.tensors, /*align_bytes=*/false);
  const absl::Status status = LoadModel(target).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(shard), HasSubstr(".packed"), HasSubstr("not aligned to 16 bytes")));
}

struct Corruption {
  const char* name;
  const char* tensor;
  std::function<void(OwnedTensor*)> change;
  std::vector<std::string> text;
};

class CorruptionTest : public testing::TestWithParam<Corruption> {};

// Rewrites the shard of layer 0, or of the embeddings, with one tensor changed.
TEST_P(CorruptionTest, IsRefusedAndNamed) {
  const TempDirectory parent;
  const std::string target = parent / "q";
  const auto source = CheckpointReader::Open(GoldenDirectory("llama2"));
  ASSERT_TRUE(source.ok());
  ASSERT_TRUE(WriteQuantized(GoldenDirectory("llama2"), target, 8,
                             RandomLayers((*source)->spec(), false, 4))
                  .ok());
  const std::string name = GetParam().tensor;
  const std::string shard =
      target + (name.find("layers") == std::string::npos ? "/model-00001-of-00003.safetensors"
                                                         : "/model-00002-of-00003.safetensors");
  EditableCheckpoint content = ReadShard(shard);
  GetParam().change(&content.Get(name));
  WriteSafetensorsFile(shard, content.tensors);
  const absl::Status status = LoadModel(target).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(shard));
  for (const std::string& text : GetParam().text) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

void SetInt(OwnedTensor* tensor, size_t index, int32_t value) {
  std::memcpy(tensor->bytes.data() + 4 * index, &value, sizeof(value));
}

INSTANTIATE_TEST_SUITE_P(
    Tables, CorruptionTest,
    testing::Values(
        Corruption{"rows",
                   "model.layers.0.self_attn.q_proj.packed_shape",
                   [](OwnedTensor* t) { SetInt(t, 0, 63); },
                   {"q_proj.packed_shape", "[63, 64]", "[64, 64]"}},
        Corruption{"negative_chunks",
                   "model.layers.0.self_attn.q_proj.packed_shape",
                   [](OwnedTensor* t) { SetInt(t, 2, -1); },
                   {"q_proj.packed_shape", "-1 2-bit"}},
        Corruption{"huge_chunks",
                   "model.layers.0.self_attn.q_proj.packed_shape",
                   [](OwnedTensor* t) { SetInt(t, 3, INT32_MAX); },
                   {"q_proj.packed_shape"}},
        Corruption{"no_chunks",
                   "model.layers.0.self_attn.q_proj.packed_shape",
                   [](OwnedTensor* t) {
                     SetInt(t, 2, 0);
                     SetInt(t, 3, 0);
                   },
                   {"q_proj.packed_shape", "cannot hold 64"}},
        Corruption{"other_chunks",
                   "model.layers.0.self_attn.q_proj.packed_shape",
                   [](OwnedTensor* t) { SetInt(t, 2, 2); },
                   {"q_proj.packed", "shape is"}},
        Corruption{"packed_dtype",
                   "model.layers.0.mlp.up_proj.packed",
                   [](OwnedTensor* t) { t->type = TensorType::kI8; },
                   {"up_proj.packed", "I8"}},
        Corruption{"strip_out_of_range",
                   "model.layers.0.mlp.up_proj.strip_order",
                   [](OwnedTensor* t) { t->bytes[0] = 200; },
                   {"up_proj"}},
        Corruption{"strip_twice",
                   "model.layers.0.mlp.up_proj.strip_order",
                   [](OwnedTensor* t) {
                     t->bytes[0] = t->bytes[2];
                     t->bytes[1] = t->bytes[3];
                   },
                   {"up_proj"}},
        Corruption{"outlier_start_descends",
                   "model.layers.0.mlp.down_proj.outlier_start",
                   [](OwnedTensor* t) { SetInt(t, 1, 0x7FFFFFFF); },
                   {"down_proj"}},
        Corruption{"outlier_count",
                   "model.layers.0.mlp.down_proj.outlier_start",
                   [](OwnedTensor* t) { SetInt(t, t->bytes.size() / 4 - 1, 5); },
                   {"down_proj.outliers", "[4]", "[5]"}},
        Corruption{"outlier_position",
                   "model.layers.0.mlp.down_proj.outliers",
                   [](OwnedTensor* t) { SetInt(t, 0, 0x1FF); },
                   {"down_proj"}},
        Corruption{"scale_nan",
                   "model.layers.0.mlp.gate_proj.packed",
                   [](OwnedTensor* t) {  // the last two bytes are the second-order scale of a row
                     t->bytes[t->bytes.size() - 1] = 0x7E;
                   },
                   {"gate_proj.packed", "NaN or infinite"}},
        Corruption{"embedding_scale_nan",
                   "model.embed_tokens.scales",
                   [](OwnedTensor* t) { SetInt(t, 17, 0x7FC00000); },
                   {"model.embed_tokens.scales", "row 17"}},
        Corruption{"embedding_codes_shape",
                   "model.embed_tokens.codes",
                   [](OwnedTensor* t) {
                     t->shape = {64, 320};
                   },
                   {"model.embed_tokens.codes", "[64, 320]"}}),
    [](const testing::TestParamInfo<Corruption>& info) { return info.param.name; });

}  // namespace
}  // namespace fewbit
