// The fuzzers' entries over their corpora and thousands of seeded mutations, and whole quantized
// checkpoints with damaged bytes: what keeps the readers honest in every CTest run, without clang.
// An entry ends the process when a promise is broken.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant_pack.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/config_reader.h"
#include "runtime/weights/quantized_writer.h"
#include "tests/fuzz/fuzz_entries.h"
#include "tests/fuzz/mutator.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

constexpr int kMutations = 5000;

std::vector<std::string> ReadCorpus(const std::string& name) {
  std::vector<std::string> paths;
  const std::string directory = std::string(FEWBIT_SOURCE_DIR) + "/tests/fuzz/corpus/" + name;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const std::string& path : paths) corpus.push_back(ReadText(path));
  return corpus;
}

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(FuzzTest, Safetensors) {
  const std::vector<std::string> corpus = ReadCorpus("safetensors");
  int accepted = 0;
  for (const std::string& input : corpus) {
    FuzzSafetensors(Bytes(input));
    accepted += ParseSafetensors(Bytes(input), "seed").ok();
  }
  EXPECT_GE(accepted, 4) << "mutations start from files that are mostly valid";
  Mutator mutator(1);
  for (int i = 0; i < kMutations; ++i) FuzzSafetensors(Bytes(mutator.Mutate(corpus)));
}

TEST(FuzzTest, ModelConfig) {
  const std::vector<std::string> corpus = ReadCorpus("model_config");
  int accepted = 0;
  for (const std::string& input : corpus) {
    FuzzModelConfig(Bytes(input));
    accepted += ParseModelConfig(input.substr(0, input.find('\0')), std::nullopt, "seed").ok();
  }
  EXPECT_GE(accepted, 8);
  Mutator mutator(2);
  for (int i = 0; i < kMutations; ++i) FuzzModelConfig(Bytes(mutator.Mutate(corpus)));
}

// A quantized matrix with every code, scale and strip order at zero but for the order itself.
quant::PackedStorage PlainPacked(LinearShape size) {
  quant::UnpackedMatrix m;
  const int strips = size.cols / quant::kStripChannels;
  m.shape = {.rows = size.rows, .cols = size.cols, .chunks2 = (strips + 7) / 8, .chunks4 = 0};
  const auto positions = static_cast<size_t>(m.shape.num_positions());
  const auto rows = static_cast<size_t>(size.rows);
  m.strip_order.assign(positions, quant::kNoStrip);
  for (int i = 0; i < strips; ++i) m.strip_order[static_cast<size_t>(i)] = static_cast<uint16_t>(i);
  m.codes.resize(rows * positions * quant::kStripChannels);
  m.sub_scales.resize(rows * positions);
  m.second_order[0].resize(rows * static_cast<size_t>(m.shape.tiles(2)));
  m.outliers = {{.row = 1, .position = 3, .value = 0x3C00}, {.row = 20, .position = 0, .value = 1}};
  return quant::Pack(m);
}

// Whatever loads must be safe to use: Unpack touches every table that a kernel indexes memory with.
TEST(FuzzTest, DamagedQuantizedCheckpoints) {
  const TempDirectory parent;
  const std::string target = parent / "q";
  const auto source = CheckpointReader::Open(GoldenDirectory("qwen2"));
  ASSERT_TRUE(source.ok()) << source.status();
  {
    const auto writer = QuantizedWriter::Create(target, **source, 8);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->WriteEmbeddings().ok());
    for (int layer = 0; layer < 2; ++layer) {
      QuantizedLayer linears;
      for (int role = 0; role < kNumLinearRoles; ++role) {
        linears.linears[role] =
            PlainPacked(ShapeOf((*source)->spec(), static_cast<LinearRole>(role)));
      }
      ASSERT_TRUE((*writer)->WriteLayer(layer, linears).ok());
    }
    ASSERT_TRUE((*writer)->Finish({{"method", "default"}}).ok());
  }
  const std::string shard = target + "/model-00002-of-00003.safetensors";
  const std::string intact = ReadText(shard);
  // Tables lie behind the packed tensors, at the end: damage there is what header checks cannot
  // see.
  const size_t tables = intact.size() - intact.size() / 8;
  Mutator mutator(3);
  int loaded = 0;
  constexpr int kDamaged = 600;
  for (int i = 0; i < kDamaged; ++i) {
    std::string head = intact.substr(0, i % 3 == 0 ? 0 : tables);
    std::string rest = intact.substr(head.size());
    mutator.Damage(&rest, 1 + i % 4);
    WriteText(shard, head + rest);
    const auto model = LoadModel(target);
    if (!model.ok()) continue;
    ++loaded;
    for (const Matrix& matrix : (*model)->layers[0].linears) {
      const auto unpacked = quant::Unpack(std::get<quant::PackedMatrix>(matrix));
      EXPECT_EQ(unpacked.codes.size(), static_cast<size_t>(unpacked.shape.rows) *
                                           unpacked.strip_order.size() * quant::kStripChannels);
    }
  }
  EXPECT_GT(loaded, 0) << "some damage hits only codes";
  EXPECT_LT(loaded, kDamaged) << "some damage is noticed";
}

}  // namespace
}  // namespace fewbit
