// Checkpoint directories: every golden one loads as its config says, fused tensors are cut where
// they should be, shards are found, and whatever is missing, misshapen, truncated or unreadable is
// refused with code, file, tensor and reason.
#include "runtime/weights/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/models/model.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

using testing::AllOf;
using testing::ElementsAreArray;
using testing::HasSubstr;

const char* const kGolden[] = {"llama2", "llama3", "mistral-swa", "qwen2",
                               "qwen3",  "glm",    "chatglm2"};

std::string BytesOf(const Matrix& matrix) {
  const auto& dense = std::get<DenseMatrix>(matrix);
  return {static_cast<const char*>(dense.data), static_cast<size_t>(dense.rows) *
                                                    static_cast<size_t>(dense.cols) *
                                                    (dense.dtype == DType::kF32 ? 4 : 2)};
}

std::string_view Rows(const OwnedTensor& tensor, size_t begin, size_t count) {
  const size_t row_bytes = tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
  return {reinterpret_cast<const char*>(tensor.bytes.data()) + begin * row_bytes,
          count * row_bytes};
}

class GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, LoadsWithTheShapesOfItsConfig) {
  const auto loaded = LoadModel(GoldenDirectory(GetParam()));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Model& model = **loaded;
  const ModelSpec& spec = model.spec;
  EXPECT_EQ(spec.vocab_size, 320);
  EXPECT_EQ(spec.max_context, 512);
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(MatrixRows(model.embedding), 320);
  EXPECT_EQ(MatrixCols(model.embedding), 64);
  EXPECT_EQ(MatrixRows(model.head), 320);
  EXPECT_EQ(model.final_norm.size(), 64u);
  EXPECT_FALSE(model.quantization.quantized);
  EXPECT_EQ(model.quantization.average_bits, 16.0);
  EXPECT_EQ(model.quantization.embedding_bits, 16.0);
  for (const LayerWeights& layer : model.layers) {
    for (int i = 0; i < kNumLinearRoles; ++i) {
      const auto role = static_cast<LinearRole>(i);
      const LinearShape shape{MatrixRows(layer[role]), MatrixCols(layer[role])};
      EXPECT_EQ(shape, ShapeOf(spec, role)) << LinearRoleName(role);
    }
    EXPECT_EQ(layer.input_norm.size(), 64u);
    EXPECT_EQ(layer.post_attention_norm.size(), 64u);
    EXPECT_EQ(layer.q_norm.size(), spec.qk_norm ? static_cast<size_t>(spec.head_dim) : 0u);
    EXPECT_EQ(layer.k_norm.size(), layer.q_norm.size());
    EXPECT_EQ(layer.q_bias.size(), spec.qkv_bias ? static_cast<size_t>(spec.q_size()) : 0u);
    EXPECT_EQ(layer.k_bias.size(), spec.qkv_bias ? static_cast<size_t>(spec.kv_size()) : 0u);
    EXPECT_EQ(layer.v_bias.size(), layer.k_bias.size());
  }
}

TEST_P(GoldenTest, WeightBytesAreThoseOfTheTensors) {
  const auto reader = CheckpointReader::Open(GoldenDirectory(GetParam()));
  ASSERT_TRUE(reader.ok()) << reader.status();
  int64_t expected = 0;
  for (const OwnedTensor& tensor : ReadGolden(GetParam()).tensors) {
    expected += static_cast<int64_t>(tensor.bytes.size());
  }
  EXPECT_EQ((*reader)->weight_bytes(), expected);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, testing::ValuesIn(kGolden));

TEST(CheckpointTest, MatricesAreTheTensorsOfTheFile) {
  EditableCheckpoint golden = ReadGolden("llama3");
  const auto loaded = LoadModel(GoldenDirectory("llama3"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LayerWeights& layer = (*loaded)->layers[1];
  for (int i = 0; i < kNumLinearRoles; ++i) {
    const auto role = static_cast<LinearRole>(i);
    const std::string part = role <= LinearRole::kO ? "self_attn." : "mlp.";
    const OwnedTensor& tensor =
        golden.Get("model.layers.1." + part + LinearRoleName(role) + ".weight");
    EXPECT_EQ(BytesOf(layer[role]), Rows(tensor, 0, static_cast<size_t>(tensor.shape[0])))
        << LinearRoleName(role);
  }
  EXPECT_EQ(BytesOf((*loaded)->head), Rows(golden.Get("lm_head.weight"), 0, 320));
}

TEST(CheckpointTest, FusedTensorsAreCutByRows) {
  EditableCheckpoint golden = ReadGolden("chatglm2");
  const auto loaded = LoadModel(GoldenDirectory("chatglm2"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LayerWeights& layer = (*loaded)->layers[1];
  const std::string prefix = "transformer.encoder.layers.1.";
  const OwnedTensor& qkv = golden.Get(prefix + "self_attention.query_key_value.weight");
  EXPECT_EQ(BytesOf(layer[LinearRole::kQ]), Rows(qkv, 0, 64));
  EXPECT_EQ(BytesOf(layer[LinearRole::kK]), Rows(qkv, 64, 32));
  EXPECT_EQ(BytesOf(layer[LinearRole::kV]), Rows(qkv, 96, 32));
  const OwnedTensor& gate_up = golden.Get(prefix + "mlp.dense_h_to_4h.weight");
  EXPECT_EQ(BytesOf(layer[LinearRole::kGate]), Rows(gate_up, 0, 96));
  EXPECT_EQ(BytesOf(layer[LinearRole::kUp]), Rows(gate_up, 96, 96));
  const OwnedTensor& bias = golden.Get(prefix + "self_attention.query_key_value.bias");
  const auto bias_value = [&bias](size_t i) {  // bf16 is the upper half of a float
    const uint32_t bits = static_cast<uint32_t>(bias.bytes[2 * i] | bias.bytes[2 * i + 1] << 8)
                          << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  };
  EXPECT_EQ(layer.q_bias[5], bias_value(5));
  EXPECT_EQ(layer.k_bias[5], bias_value(64 + 5));
  EXPECT_EQ(layer.v_bias[31], bias_value(127));
}

TEST(CheckpointTest, TiedHeadIsTheEmbeddingAndALeftOverHeadIsIgnored) {
  EditableCheckpoint golden = ReadGolden("llama2");
  golden.config["tie_word_embeddings"] = true;
  const TempDirectory directory;
  WriteCheckpoint(directory.path(), golden);
  const auto loaded = LoadModel(directory.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(std::get<DenseMatrix>((*loaded)->head).data,
            std::get<DenseMatrix>((*loaded)->embedding).data);
}

TEST(CheckpointTest, ReadsF16AndF32) {
  EditableCheckpoint golden = ReadGolden("llama2");
  OwnedTensor& norm = golden.Get("model.norm.weight");
  norm.type = TensorType::kF32;
  norm.bytes.assign(4 * 64, 0);
  const float two = 2.0f;
  std::memcpy(norm.bytes.data() + 4 * 3, &two, sizeof(two));
  OwnedTensor& half_norm = golden.Get("model.layers.0.input_layernorm.weight");
  half_norm.type = TensorType::kF16;
  half_norm.bytes.assign(2 * 64, 0);
  half_norm.bytes[1] = 0x3C;  // 1.0
  golden.Get("model.layers.0.mlp.up_proj.weight").type = TensorType::kF16;
  const TempDirectory directory;
  WriteCheckpoint(directory.path(), golden);
  const auto loaded = LoadModel(directory.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->final_norm[3], 2.0f);
  EXPECT_EQ((*loaded)->layers[0].input_norm[0], 1.0f);
  EXPECT_EQ(std::get<DenseMatrix>((*loaded)->layers[0][LinearRole::kUp]).dtype, DType::kF16);
}

TEST(CheckpointTest, ReleasedLayersReadBackTheSame) {
  const auto reader = CheckpointReader::Open(GoldenDirectory("glm"));
  ASSERT_TRUE(reader.ok()) << reader.status();
  const auto before = (*reader)->Layer(0);
  ASSERT_TRUE(before.ok());
  const std::string bytes = BytesOf((*before)[LinearRole::kDown]);
  (*reader)->ReleaseLayer(0);
  EXPECT_EQ(BytesOf((*before)[LinearRole::kDown]), bytes);
}

// Writes `checkpoint` as one shard per tensor kind: layers apart from the rest.
void WriteSharded(const std::string& directory, const EditableCheckpoint& checkpoint) {
  nlohmann::json map;
  std::vector<OwnedTensor> shards[2];
  for (const OwnedTensor& tensor : checkpoint.tensors) {
    const bool in_layer = tensor.name.find("layers.") != std::string::npos;
    shards[in_layer].push_back(tensor);
    map[tensor.name] = in_layer ? "b.safetensors" : "a.safetensors";
  }
  WriteSafetensorsFile(directory + "/a.safetensors", shards[0]);
  WriteSafetensorsFile(directory + "/b.safetensors", shards[1]);
  WriteText(directory + "/config.json", checkpoint.config.dump());
  WriteText(directory + "/model.safetensors.index.json",
            nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
}

TEST(ShardedTest, LoadsTheSameWeights) {
  const TempDirectory directory;
  WriteSharded(directory.path(), ReadGolden("qwen3"));
  const auto sharded = LoadModel(directory.path());
  const auto single = LoadModel(GoldenDirectory("qwen3"));
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  ASSERT_TRUE(single.ok());
  EXPECT_EQ((*sharded)->mappings.size(), 2u);
  EXPECT_EQ((*sharded)->weight_bytes, (*single)->weight_bytes);
  EXPECT_EQ(BytesOf((*sharded)->embedding), BytesOf((*single)->embedding));
  for (int i = 0; i < kNumLinearRoles; ++i) {
    EXPECT_EQ(BytesOf((*sharded)->layers[1].linears[i]), BytesOf((*single)->layers[1].linears[i]));
  }
  EXPECT_THAT((*sharded)->layers[0].k_norm, ElementsAreArray((*single)->layers[0].k_norm));
}

TEST(ShardedTest, RefusesBadIndexes) {
  const TempDirectory directory;
  WriteSharded(directory.path(), ReadGolden("llama2"));
  const std::string index_path = directory / "model.safetensors.index.json";
  const nlohmann::json index = nlohmann::json::parse(ReadText(index_path));
  const auto load_with = [&](auto change) {
    nlohmann::json changed = index;
    change(&changed);
    WriteText(index_path, changed.dump());
    return LoadModel(directory.path()).status();
  };
  const auto expect = [&](const absl::Status& status, absl::StatusCode code, const char* file,
                          const char* text) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(file), HasSubstr(text)));
  };
  using enum absl::StatusCode;
  for (const char* escape : {"../a.safetensors", "/etc/passwd", "..", ""}) {
    expect(load_with([&](auto* j) { (*j)["weight_map"]["lm_head.weight"] = escape; }),
           kInvalidArgument, "model.safetensors.index.json", "'lm_head.weight'");
  }
  expect(load_with([](auto* j) { (*j)["weight_map"]["lm_head.weight"] = "c.safetensors"; }),
         kNotFound, "c.safetensors", "cannot open");
  expect(load_with([](auto* j) { (*j)["weight_map"]["lm_head.weight"] = "b.safetensors"; }),
         kInvalidArgument, "b.safetensors", "tensor 'lm_head.weight': missing");
  expect(load_with([](auto* j) { (*j)["weight_map"]["lm_head.weight"] = 3; }), kInvalidArgument,
         "model.safetensors.index.json", "'lm_head.weight'");
  expect(load_with([](auto* j) { j->erase("weight_map"); }), kInvalidArgument,
         "model.safetensors.index.json", "weight_map");
}

struct BrokenTensor {
  const char* name;
  void (*change)(EditableCheckpoint*);
  std::vector<std::string> text;
};

class BrokenTensorTest : public testing::TestWithParam<BrokenTensor> {};

TEST_P(BrokenTensorTest, IsNamedWithTheReason) {
  EditableCheckpoint golden = ReadGolden("qwen2");
  GetParam().change(&golden);
  const TempDirectory directory;
  WriteCheckpoint(directory.path(), golden);
  const absl::Status status = LoadModel(directory.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(directory.path()));
  for (const std::string& text : GetParam().text) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

constexpr char kDown[] = "model.layers.1.mlp.down_proj.weight";

INSTANTIATE_TEST_SUITE_P(
    Tensors, BrokenTensorTest,
    testing::Values(
        BrokenTensor{
            "missing", [](EditableCheckpoint* c) { c->Remove(kDown); }, {kDown, "missing"}},
        BrokenTensor{
            "missing_bias",
            [](EditableCheckpoint* c) { c->Remove("model.layers.0.self_attn.v_proj.bias"); },
            {"model.layers.0.self_attn.v_proj.bias", "missing"}},
        BrokenTensor{"missing_head",
                     [](EditableCheckpoint* c) { c->config["tie_word_embeddings"] = false; },
                     {"lm_head.weight", "missing"}},
        BrokenTensor{"wrong_shape",
                     [](EditableCheckpoint* c) {
                       c->Get(kDown).shape = {96, 64};
                     },
                     {"model.safetensors", kDown, "[96, 64]", "[64, 96]"}},
        BrokenTensor{"wrong_rank",
                     [](EditableCheckpoint* c) { c->Get(kDown).shape = {64 * 96}; },
                     {kDown, "[6144]"}},
        BrokenTensor{"fewer_layers_than_config",
                     [](EditableCheckpoint* c) { c->config["num_hidden_layers"] = 3; },
                     {"model.layers.2.", "missing"}},
        BrokenTensor{"wrong_dtype",
                     [](EditableCheckpoint* c) { c->Get(kDown).type = TensorType::kI16; },
                     {kDown, "dtype is I16", "BF16"}},
        BrokenTensor{"nan_norm",
                     [](EditableCheckpoint* c) {
                       auto& bytes = c->Get("model.layers.0.input_layernorm.weight").bytes;
                       bytes[14] = 0xC0;  // element 7
                       bytes[15] = 0x7F;
                     },
                     {"model.layers.0.input_layernorm.weight", "element 7", "NaN"}}),
    [](const testing::TestParamInfo<BrokenTensor>& info) { return info.param.name; });

TEST(BrokenFileTest, TruncatedShardIsDataLoss) {
  const TempDirectory directory;
  WriteCheckpoint(directory.path(), ReadGolden("llama2"));
  const std::string path = directory / "model.safetensors";
  const size_t size = std::filesystem::file_size(path);
  for (const size_t keep : {size - 1, size / 2, size_t{100}, size_t{3}}) {
    std::filesystem::resize_file(path, keep);
    const absl::Status status = LoadModel(directory.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr("truncated")));
  }
}

TEST(BrokenFileTest, MissingFilesAreNamed) {
  const TempDirectory directory;
  const auto load = [&] { return LoadModel(directory.path()).status(); };
  EXPECT_EQ(load().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(load().message()), HasSubstr("config.json"));
  WriteText(directory / "config.json", ReadGolden("llama2").config.dump());
  EXPECT_EQ(load().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(load().message()),
              AllOf(HasSubstr(directory.path()), HasSubstr("model.safetensors")));
  EXPECT_EQ(LoadModel(directory / "nowhere").status().code(), absl::StatusCode::kNotFound);
}

// In a child process, as a user who may not read the files: prints the status and exits with its
// code.
[[noreturn]] void LoadAsNobody(const std::string& directory) {
  constexpr unsigned kNobody = 65534;
  if (::geteuid() == 0 && (::setegid(kNobody) != 0 || ::seteuid(kNobody) != 0)) std::_Exit(99);
  const absl::Status status = LoadModel(directory).status();
  std::fputs(status.ToString().c_str(), stderr);
  std::_Exit(static_cast<int>(status.code()));
}

TEST(UnreadableDeathTest, IsPermissionDeniedAndNamesTheFile) {
  const TempDirectory directory;
  WriteCheckpoint(directory.path(), ReadGolden("llama2"));
  ASSERT_EQ(::chmod(directory.path().c_str(), 0755), 0);
  const auto denied =
      testing::ExitedWithCode(static_cast<int>(absl::StatusCode::kPermissionDenied));
  for (const char* file : {"model.safetensors", "config.json"}) {
    ASSERT_EQ(::chmod((directory / file).c_str(), 0), 0);
    EXPECT_EXIT(LoadAsNobody(directory.path()), denied, file);
    ASSERT_EQ(::chmod((directory / file).c_str(), 0644), 0);
  }
  EXPECT_EXIT(LoadAsNobody(directory.path()), testing::ExitedWithCode(0), "OK");
  ASSERT_EQ(::chmod(directory.path().c_str(), 0), 0);
  EXPECT_EXIT(LoadAsNobody(directory.path()), denied, directory.path());
  ASSERT_EQ(::chmod(directory.path().c_str(), 0755), 0);
}

}  // namespace
}  // namespace fewbit
