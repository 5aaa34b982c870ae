#include "server/tokenizer.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/utf8.h"
#include "tests/server/sentence_piece_oracle.h"

namespace fewbit {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ToyModel;

const std::string kDemo = FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m";
constexpr int32_t kDemoVocab = 8192;

// A directory that is gone after the test.
class Directory {
 public:
  Directory() {
    std::string name = ::testing::TempDir() + "fewbit_tokenizer_XXXXXX";
    path_ = mkdtemp(name.data());
    chmod(path_.c_str(), 0755);
  }
  ~Directory() { fs::remove_all(path_); }
  Directory(const Directory&) = delete;

  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::unique_ptr<Tokenizer> LoadDemo() {
  auto tokenizer = Tokenizer::Load(kDemo, kDemoVocab);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return std::move(*tokenizer);
}

std::unique_ptr<Tokenizer> LoadToy(const ToyModel& model, const std::string& config = "") {
  Directory directory;
  directory.Write("tokenizer.model", model.Serialize());
  if (!config.empty()) directory.Write("tokenizer_config.json", config);
  auto tokenizer = Tokenizer::Load(directory.path(), 1000);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return std::move(*tokenizer);
}

std::vector<int32_t> Ints(const std::vector<TokenId>& tokens) {
  std::vector<int32_t> ids;
  for (const TokenId token : tokens) ids.push_back(ToInt(token));
  return ids;
}

std::vector<std::string> Pieces(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> pieces;
  const auto tokens = tokenizer.Encode(text, false);
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  for (const TokenId token : *tokens) pieces.push_back(tokenizer.Piece(token));
  return pieces;
}

TEST(TokenizerTest, TextGoesThereAndBack) {
  const auto tokenizer = LoadDemo();
  EXPECT_EQ(tokenizer->vocab_size(), kDemoVocab);
  for (const std::string text :
       {"Once upon a time", "  two spaces,  and two more  ", "tab\there\nand a line\n\n", "",
        "na\u00efve caf\u00e9 \u4e16\u754c \U0001F600!", "</s> <s> <unk> <0x41> are text here",
        "1234567890 $%&/()=?{[]}"}) {
    const auto tokens = tokenizer->Encode(text, false);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(tokenizer->Decode(*tokens), text);
    for (const TokenId token : *tokens) EXPECT_NE(tokenizer->Kind(token), TokenKind::kControl);
  }
}

TEST(TokenizerTest, BosStandsInFrontAndHasNoText) {
  const auto tokenizer = LoadDemo();
  EXPECT_TRUE(tokenizer->adds_bos());
  const auto without = tokenizer->Encode("The end.", false);
  const auto with = tokenizer->Encode("The end.", true);
  ASSERT_TRUE(without.ok() && with.ok());
  ASSERT_EQ(with->size(), without->size() + 1);
  EXPECT_EQ((*with)[0], TokenId{1});
  EXPECT_EQ(tokenizer->Kind((*with)[0]), TokenKind::kControl);
  EXPECT_EQ(tokenizer->Bytes((*with)[0]), "");
  EXPECT_EQ(tokenizer->Decode(*with), "The end.");
  EXPECT_EQ(Ints(*tokenizer->Encode("", true)), std::vector<int32_t>{1});
}

TEST(TokenizerTest, BytesStandForWhatTheVocabularyLacks) {
  const auto tokenizer = LoadDemo();
  EXPECT_THAT(Pieces(*tokenizer, "\u20ac"), ElementsAre("\u2581", "<0xE2>", "<0x82>", "<0xAC>"));
  const auto tokens = tokenizer->Encode("\u20ac", false);
  EXPECT_EQ(tokenizer->Kind((*tokens)[1]), TokenKind::kByte);
  EXPECT_EQ(tokenizer->Bytes((*tokens)[1]), "\xE2");
}

TEST(TokenizerTest, InvalidUtf8IsRefused) {
  const auto tokenizer = LoadDemo();
  const auto tokens = tokenizer->Encode("abc\xE2\x82", true);
  EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tokens.status().message(), HasSubstr("UTF-8"));
}

TEST(TokenizerTest, ThreadsShareIt) {
  const auto tokenizer = LoadDemo();
  const std::string text = "It was a dark and stormy night; the rain fell in torrents. \u20ac 5";
  const auto expected = *tokenizer->Encode(text, true);
  std::atomic<int> different = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        const auto tokens = tokenizer->Encode(text, true);
        if (!tokens.ok() || *tokens != expected || tokenizer->Decode(*tokens) != text) ++different;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
}

TEST(TokenizerTest, AModelMayHaveMoreRowsThanTheTokenizerEntries) {
  const auto tokenizer = Tokenizer::Load(kDemo, kDemoVocab + 64);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), kDemoVocab);
  for (const int32_t id : {kDemoVocab, kDemoVocab + 63, -1, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ((*tokenizer)->Kind(TokenId{id}), TokenKind::kControl);
    EXPECT_EQ((*tokenizer)->Bytes(TokenId{id}), "");
    EXPECT_EQ((*tokenizer)->Piece(TokenId{id}), "<id " + std::to_string(id) + ">");
  }
  EXPECT_EQ((*tokenizer)->Decode(std::vector<TokenId>{TokenId{kDemoVocab}}), "");
}

TEST(TokenizerTest, ATokenizerLargerThanTheModelIsRefusedWithBothNumbers) {
  const auto tokenizer = Tokenizer::Load(kDemo, 8000);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(tokenizer.status().message(), HasSubstr("tokenizer.model has 8192 entries"));
  EXPECT_THAT(tokenizer.status().message(), HasSubstr("8000"));
}

TEST(TokenizerTest, MissingFilesAreNamed) {
  const auto no_directory = Tokenizer::Load("/nonexistent/model", kDemoVocab);
  EXPECT_EQ(no_directory.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(no_directory.status().message(), HasSubstr("/nonexistent/model/tokenizer.model"));

  Directory directory;
  const auto empty = Tokenizer::Load(directory.path(), kDemoVocab);
  EXPECT_EQ(empty.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(empty.status().message(), HasSubstr(directory.path() + "/tokenizer.model"));

  directory.Write("tokenizer.json", "{}");
  const auto fast_only = Tokenizer::Load(directory.path(), kDemoVocab);
  EXPECT_EQ(fast_only.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(fast_only.status().message(), HasSubstr("tokenizer.json but no tokenizer.model"));
}

// The part of the test that must not be root, whom no file is closed to.
template <typename Function>
void AsNobody(Function function) {
  const uid_t user = geteuid();
  if (user == 0) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  function();
  if (user == 0) {
    ASSERT_EQ(seteuid(0), 0);
  }
}

TEST(TokenizerTest, UnreadableFilesAreNamed) {
  Directory directory;
  directory.Write("tokenizer.model", ReadAll(kDemo + "/tokenizer.model"));
  directory.Write("tokenizer_config.json", "{}");
  for (const std::string name : {"tokenizer_config.json", "tokenizer.model"}) {
    ASSERT_EQ(chmod((directory.path() + "/" + name).c_str(), 0), 0);
    AsNobody([&] {
      const auto tokenizer = Tokenizer::Load(directory.path(), kDemoVocab);
      EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kPermissionDenied);
      EXPECT_THAT(tokenizer.status().message(), HasSubstr(directory.path() + "/" + name));
    });
  }
}

TEST(TokenizerTest, ADirectoryInTheFilesPlaceIsRefused) {
  Directory directory;
  fs::create_directory(directory.path() + "/tokenizer.model");
  const auto tokenizer = Tokenizer::Load(directory.path(), kDemoVocab);
  EXPECT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.status().message(), HasSubstr("tokenizer.model"));
}

TEST(TokenizerTest, WhatIsNotASentencePieceModelIsRefused) {
  const std::string whole = ReadAll(kDemo + "/tokenizer.model");
  ASSERT_GT(whole.size(), 100'000u);
  for (const std::string& content :
       {std::string(), std::string("not a model at all"), std::string(1000, '\xFF'),
        whole.substr(0, whole.size() - 1), whole.substr(0, 50'001), whole.substr(3)}) {
    Directory directory;
    directory.Write("tokenizer.model", content);
    const auto tokenizer = Tokenizer::Load(directory.path(), kDemoVocab);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << content.size();
    EXPECT_THAT(tokenizer.status().message(), HasSubstr("is not a SentencePiece model"));
  }
}

TEST(TokenizerTest, ADamagedModelIsRefusedOrWorks) {
  const std::string whole = ReadAll(kDemo + "/tokenizer.model");
  const std::string text = "Once upon a time \u20ac 12";
  std::mt19937 random(3);
  Directory directory;
  int refused = 0, working = 0;
  for (int round = 0; round < 150; ++round) {
    std::string content = whole;
    content[random() % content.size()] = static_cast<char>(random());
    if (round % 3 == 0) content[content.size() - 1 - random() % 300] = static_cast<char>(random());
    directory.Write("tokenizer.model", content);
    const auto tokenizer = Tokenizer::Load(directory.path(), kDemoVocab);
    if (!tokenizer.ok()) {
      EXPECT_THAT(tokenizer.status().message(), HasSubstr(directory.path()));
      ++refused;
      continue;
    }
    const auto tokens = (*tokenizer)->Encode(text, true);
    if (tokens.ok()) {
      EXPECT_TRUE(IsValidUtf8((*tokenizer)->Decode(*tokens)));
    }
    ++working;
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(working, 0);
}

TEST(TokenizerTest, EntriesThatAreNoTextAreRefused) {
  ToyModel not_utf8;
  not_utf8.pieces = {{"abc"}, {"\xE2\x82"}};
  ToyModel not_a_byte;
  not_a_byte.pieces = {{"<0xZZ>", ToyModel::Piece::kByte}};
  ToyModel bad_surface;
  bad_surface.unknown_surface = "\xFF";
  bad_surface.pieces = {{"abc"}};
  for (const auto& [model, message] : {std::pair(not_utf8, "entry 4"), std::pair(not_a_byte, "<0x"),
                                       std::pair(bad_surface, "UTF-8")}) {
    Directory directory;
    directory.Write("tokenizer.model", model.Serialize());
    const auto tokenizer = Tokenizer::Load(directory.path(), kDemoVocab);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(tokenizer.status().message(), HasSubstr(message));
  }
}

TEST(TokenizerTest, TheConfigDecidesAboutBos) {
  ToyModel model;
  model.pieces = {{"\u2581a"}, {"a"}, {"\u2581"}};
  const auto adds_bos = [&model](const std::string& config) {
    return LoadToy(model, config)->adds_bos();
  };
  EXPECT_TRUE(adds_bos(""));
  EXPECT_TRUE(adds_bos("{}"));
  EXPECT_TRUE(adds_bos(R"({"add_bos_token": true, "tokenizer_class": "Other"})"));
  EXPECT_FALSE(adds_bos(R"({"add_bos_token": false})"));
  EXPECT_TRUE(adds_bos(R"({"add_bos_token": null, "tokenizer_class": "LlamaTokenizerFast"})"));
  EXPECT_FALSE(adds_bos(R"({"tokenizer_class": "ChatGLMTokenizer"})"));

  model.has_bos = false;
  EXPECT_FALSE(adds_bos(R"({"add_bos_token": true})"));
  EXPECT_FALSE(adds_bos(R"({"add_bos_token": true, "bos_token": "nothing like it"})"));
  EXPECT_TRUE(adds_bos(R"({"add_bos_token": true, "bos_token": "<s>"})"));
  const auto tokenizer = LoadToy(model, R"({"bos_token": {"content": "<s>"}})");
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ((*tokenizer->Encode("a", true))[0], TokenId{1});
}

TEST(TokenizerTest, ABrokenConfigIsRefused) {
  ToyModel model;
  model.pieces = {{"a"}};
  for (const auto& [config, message] :
       {std::pair("{\"add_bos_token\": ", "is not a JSON object"),
        std::pair("[1, 2]", "is not a JSON object"),
        std::pair("{\"add_bos_token\": \"yes\"}", "add_bos_token is \"yes\", not true or false")}) {
    Directory directory;
    directory.Write("tokenizer.model", model.Serialize());
    directory.Write("tokenizer_config.json", config);
    const auto tokenizer = Tokenizer::Load(directory.path(), kDemoVocab);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(tokenizer.status().message(), HasSubstr("tokenizer_config.json"));
    EXPECT_THAT(tokenizer.status().message(), HasSubstr(message));
  }
}

TEST(TokenizerTest, WithoutByteFallbackUnknownTextHasAMark) {
  ToyModel model;
  model.pieces = {{"\u2581a"}, {"a"}, {"\u2581"}};
  const auto tokenizer = LoadToy(model);
  const auto tokens = *tokenizer->Encode("a\u20aca", false);
  EXPECT_EQ(tokenizer->Kind(tokens[1]), TokenKind::kUnknown);
  EXPECT_EQ(tokenizer->Decode(tokens), "a ? a");
}

}  // namespace
}  // namespace fewbit
