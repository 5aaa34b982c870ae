#include "server/detokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/utf8.h"
#include "tests/server/sentence_piece_oracle.h"

namespace fewbit {
namespace {

using testing::SentencePieceOracle;
using testing::ToyModel;

const std::string kDemo = FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m";
constexpr int32_t kVocab = 8192;
// The demo vocabulary: 0 <unk>, 1 <s>, 2 </s>, 3..258 the bytes 0..255, then text.
constexpr int32_t kFirstByte = 3;
constexpr int32_t kFirstText = kFirstByte + 256;

const Tokenizer& Demo() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(kDemo, kVocab)).value();
  return *tokenizer;
}

TokenId Byte(uint8_t byte) { return TokenId{kFirstByte + byte}; }

std::vector<TokenId> Tokens(std::string_view text) { return Demo().Encode(text, false).value(); }

// The deltas of `tokens`, the flush at the end last.
std::vector<std::string> Deltas(Detokenizer& detokenizer, std::span<const TokenId> tokens) {
  std::vector<std::string> deltas;
  for (const TokenId token : tokens) {
    deltas.emplace_back();
    detokenizer.Push(token, &deltas.back());
  }
  deltas.emplace_back();
  detokenizer.Finish(&deltas.back());
  return deltas;
}

std::string Join(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += part;
  return all;
}

std::string Text(std::span<const TokenId> prompt, std::span<const TokenId> tokens,
                 DetokenizerOptions options = {}) {
  Detokenizer detokenizer(&Demo(), prompt, std::move(options));
  return Join(Deltas(detokenizer, tokens));
}

// Random tokens of all kinds: much text, runs of bytes that often are characters, controls, the
// unknown mark.
std::vector<TokenId> RandomTokens(std::mt19937& random, size_t length) {
  const auto below = [&random](uint32_t n) { return static_cast<int32_t>(random() % n); };
  const std::vector<std::string> characters = {"\u20ac", "\U0001F600", "\u00e9", "\u4e16", "A"};
  std::vector<TokenId> tokens;
  while (tokens.size() < length) {
    const int32_t kind = below(10);
    if (kind < 5) {
      tokens.push_back(TokenId{kFirstText + below(kVocab - kFirstText)});
    } else if (kind < 7) {  // a character in bytes, sometimes cut off
      const std::string& character = characters[below(characters.size())];
      const size_t end = character.size() - (below(4) == 0 ? 1 : 0);
      for (size_t i = 0; i < end; ++i) tokens.push_back(Byte(static_cast<uint8_t>(character[i])));
    } else if (kind < 9) {
      tokens.push_back(Byte(below(256)));
    } else {
      tokens.push_back(TokenId{below(3)});
    }
  }
  tokens.resize(length);
  return tokens;
}

TEST(DetokenizerTest, TheFirstWordOfATextShedsItsSpaceAndAContinuationKeepsIt) {
  const std::vector<TokenId> prompt = Tokens("Once upon a");
  const std::vector<TokenId> more = Tokens("time there");
  EXPECT_EQ(Text({}, more), "time there");
  EXPECT_EQ(Text(prompt, more), " time there");
  const std::vector<TokenId> only_bos = {TokenId{1}};
  EXPECT_EQ(Text(only_bos, more), "time there");
}

TEST(DetokenizerTest, BytesOfACharacterWaitForTheRest) {
  Detokenizer detokenizer(&Demo(), Tokens("It costs"));
  const std::vector<TokenId> tokens = {Byte(' '), Byte(0xE2), Byte(0x82), Byte(0xAC), Byte('5')};
  EXPECT_THAT(Deltas(detokenizer, tokens), ::testing::ElementsAre(" ", "", "", "\u20ac", "5", ""));
}

TEST(DetokenizerTest, BytesThatBecomeNoCharacterReadAsReplacements) {
  const std::vector<TokenId> prompt = Tokens("x");
  const TokenId euro[] = {Byte(0xE2), Byte(0x82)};
  EXPECT_EQ(Text(prompt, euro), "\uFFFD\uFFFD");
  const TokenId cut[] = {Byte(0xE2), Byte(0x82), Byte('a')};
  EXPECT_EQ(Text(prompt, cut), "\uFFFD\uFFFDa");
  const TokenId control_between[] = {Byte(0xE2), TokenId{2}, Byte(0x82), Byte(0xAC)};
  EXPECT_EQ(Text(prompt, control_between), "\uFFFD\uFFFD\uFFFD");
  const TokenId stray[] = {Byte(0xAC), Byte(0xFF)};
  EXPECT_EQ(Text(prompt, stray), "\uFFFD\uFFFD");
}

TEST(DetokenizerTest, ACharacterBegunByThePromptComesWhole) {
  std::vector<TokenId> prompt = Tokens("It costs");
  prompt.push_back(Byte(0xE2));
  prompt.push_back(Byte(0x82));
  const TokenId rest[] = {Byte(0xAC), Byte('5')};
  EXPECT_EQ(Text(prompt, rest), "\u20ac5");
  // If it stays unfinished the prompt is to blame, and nothing of it is repeated.
  const TokenId other[] = {Byte('5')};
  EXPECT_EQ(Text(prompt, other), "5");
  EXPECT_EQ(Text(prompt, {}), "");
}

TEST(DetokenizerTest, DeltasAreValidUtf8AndAddUpToSentencePiecesOwnDecoding) {
  const SentencePieceOracle oracle(kDemo + "/tokenizer.model");
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    const std::vector<TokenId> tokens = RandomTokens(random, random() % 40);
    std::vector<int32_t> ids;
    for (const TokenId token : tokens) ids.push_back(ToInt(token));
    Detokenizer detokenizer(&Demo(), {});
    const std::vector<std::string> deltas = Deltas(detokenizer, tokens);
    for (const std::string& delta : deltas) ASSERT_TRUE(IsValidUtf8(delta)) << delta;
    ASSERT_EQ(Join(deltas), oracle.Decode(ids)) << "round " << round;
    ASSERT_EQ(Demo().Decode(tokens), Join(deltas));
  }
}

TEST(DetokenizerTest, AContinuationIsTheRestOfTheWhole) {
  std::mt19937 random(8);
  for (int round = 0; round < 2000; ++round) {
    const std::vector<TokenId> all = RandomTokens(random, 1 + random() % 30);
    const size_t cut = random() % (all.size() + 1);
    const std::span<const TokenId> prompt(all.data(), cut);
    const std::span<const TokenId> rest(all.data() + cut, all.size() - cut);
    // A character cut in two reads differently in the prompt alone; that has a test of its own.
    if (cut > 0 && cut < all.size() && Demo().Kind(all[cut - 1]) == TokenKind::kByte) continue;
    ASSERT_EQ(Demo().Decode(prompt) + Text(prompt, rest), Demo().Decode(all)) << round;
  }
}

TEST(DetokenizerTest, LeadingSpacesFollowTheModelsRules) {
  for (const bool remove_extra : {false, true}) {
    for (const bool dummy_prefix : {false, true}) {
      ToyModel model;
      model.pieces = {{"\u2581a"}, {"a"}, {"\u2581"}, {"\u2581\u2581"}};
      model.remove_extra_whitespaces = remove_extra;
      model.add_dummy_prefix = dummy_prefix;
      const std::string directory = ::testing::TempDir() + "fewbit_leading_space";
      std::filesystem::create_directories(directory);
      std::ofstream(directory + "/tokenizer.model", std::ios::binary) << model.Serialize();
      const auto tokenizer = std::move(Tokenizer::Load(directory, 100)).value();
      const SentencePieceOracle oracle(directory + "/tokenizer.model");
      std::filesystem::remove_all(directory);
      for (int32_t code = 0; code < 7 * 7 * 7 * 7; ++code) {  // every sequence of four
        const std::vector<int32_t> ids = {code % 7, code / 7 % 7, code / 49 % 7, code / 343};
        std::vector<TokenId> tokens;
        for (const int32_t id : ids) tokens.push_back(TokenId{id});
        ASSERT_EQ(tokenizer->Decode(tokens), oracle.Decode(ids)) << ::testing::PrintToString(ids);
      }
    }
  }
}

DetokenizerOptions Stops(std::vector<std::string> stops) {
  DetokenizerOptions options;
  options.stop_strings = std::move(stops);
  return options;
}

TEST(DetokenizerTest, AStopStringEndsTheTextBeforeItself) {
  Detokenizer detokenizer(&Demo(), Tokens("Dear"), Stops({"never", "time"}));
  std::string text;
  for (const TokenId token : Tokens("Once upon a time there")) {
    if (detokenizer.Push(token, &text)) break;
  }
  EXPECT_TRUE(detokenizer.stopped());
  EXPECT_EQ(detokenizer.matched_stop_string(), "time");
  EXPECT_EQ(text, " Once upon a ");
  EXPECT_TRUE(detokenizer.Push(Tokens("more")[0], &text));
  detokenizer.Finish(&text);
  EXPECT_EQ(text, " Once upon a ");
}

TEST(DetokenizerTest, TheStopStringStaysIfAskedFor) {
  DetokenizerOptions options = Stops({"time"});
  options.include_stop_string = true;
  EXPECT_EQ(Text({}, Tokens("Once upon a timeless tale"), options), "Once upon a time");
}

TEST(DetokenizerTest, WhatMayBeginAStopStringWaits) {
  Detokenizer detokenizer(&Demo(), Tokens("x"), Stops({"abc\u20ac"}));
  std::string text;
  for (const char c : std::string("zab")) detokenizer.Push(Byte(c), &text);
  EXPECT_EQ(text, "z");
  detokenizer.Push(Byte('a'), &text);
  EXPECT_EQ(text, "zab");
  for (const char c : std::string("bc\xE2\x82")) detokenizer.Push(Byte(c), &text);
  EXPECT_EQ(text, "zab");
  EXPECT_FALSE(detokenizer.stopped());
  detokenizer.Finish(&text);
  EXPECT_EQ(text, "zababc\uFFFD\uFFFD");
}

TEST(DetokenizerTest, TheFirstToBeCompleteWinsThenTheLongest) {
  const auto text_of = [](const std::string& text, std::vector<std::string> stops) {
    Detokenizer detokenizer(&Demo(), Tokens("x"), Stops(std::move(stops)));
    std::vector<TokenId> tokens;
    for (const char c : text) tokens.push_back(Byte(c));
    const std::string result = Join(Deltas(detokenizer, tokens));
    return std::pair(result, std::string(detokenizer.matched_stop_string()));
  };
  using Result = std::pair<std::string, std::string>;
  EXPECT_EQ(text_of("xabcdy", {"abcd", "bc"}), Result("xa", "bc"));
  EXPECT_EQ(text_of("xabcdy", {"cd", "abcd", "bcd"}), Result("x", "abcd"));
  EXPECT_EQ(text_of("aaab", {"aab"}), Result("a", "aab"));
  EXPECT_EQ(text_of("abababc", {"ababc"}), Result("ab", "ababc"));
  EXPECT_EQ(text_of("nothing", {"zzz"}), Result("nothing", ""));
}

TEST(DetokenizerTest, StopStringsCountFromMinTokensOn) {
  std::vector<TokenId> tokens;
  for (const char c : std::string("abcabcabc")) tokens.push_back(Byte(c));
  DetokenizerOptions options = Stops({"abc"});
  const auto text_with = [&](int32_t min_tokens) {
    options.min_tokens = min_tokens;
    return Text(Tokens("x"), tokens, options);
  };
  EXPECT_EQ(text_with(0), "");
  EXPECT_EQ(text_with(3), "");
  EXPECT_EQ(text_with(4), "abc");
  EXPECT_EQ(text_with(9), "abcabc");
  EXPECT_EQ(text_with(10), "abcabcabc");
}

TEST(DetokenizerTest, ThePromptIsNotSearched) {
  EXPECT_EQ(Text(Tokens("ab"), std::vector<TokenId>{Byte('c')}, Stops({"abc"})), "c");
}

// The text of one token sequence by the definition, without any cleverness.
struct Reference {
  std::string text;
  std::string stop;
  std::vector<std::string> certain;  // after each token: all that may be handed out
};

// How many bytes at the end of `text` begin one of `stops` without being it.
size_t PossibleBeginning(const std::string& text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = std::min(text.size(), stop.size() - 1); n > longest; --n) {
      if (text.compare(text.size() - n, n, stop, 0, n) == 0) longest = n;
    }
  }
  return longest;
}

Reference ByDefinition(std::span<const TokenId> tokens, const DetokenizerOptions& options) {
  Detokenizer plain(&Demo(), {});  // checked against SentencePiece above
  const std::vector<std::string> deltas = Deltas(plain, tokens);
  Reference reference;
  std::string seen;
  for (size_t i = 0; i < deltas.size(); ++i) {
    const auto token = static_cast<int32_t>(std::min(i + 1, tokens.size()));
    for (const char byte : deltas[i]) {
      seen += byte;
      if (token < options.min_tokens) continue;
      for (const std::string& stop : options.stop_strings) {
        const bool ends = seen.size() >= stop.size() &&
                          seen.compare(seen.size() - stop.size(), stop.size(), stop) == 0;
        if (ends && stop.size() > reference.stop.size()) reference.stop = stop;
      }
      if (reference.stop.empty()) continue;
      const size_t cut = options.include_stop_string ? 0 : reference.stop.size();
      reference.text = seen.substr(0, seen.size() - cut);
      reference.certain.push_back(reference.text);
      return reference;
    }
    const bool last = i + 1 == deltas.size();
    const size_t hold = last ? 0 : PossibleBeginning(seen, options.stop_strings);
    reference.certain.push_back(seen.substr(0, seen.size() - hold));
  }
  reference.text = seen;
  return reference;
}

DetokenizerOptions RandomOptions(std::mt19937& random, const std::string& text) {
  DetokenizerOptions options;
  options.include_stop_string = random() % 2 == 0;
  options.min_tokens = random() % 3 == 0 ? static_cast<int32_t>(random() % 12) : 0;
  std::vector<std::string> characters;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t length = FirstUtf8Char(rest).length;
    characters.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  for (size_t i = 0; i < 1 + random() % 16; ++i) {  // pieces of the text, some with another end
    std::string stop;
    const size_t begin = characters.empty() ? 0 : random() % characters.size();
    const size_t end = std::min(characters.size(), begin + 1 + random() % 6);
    for (size_t k = begin; k < end; ++k) stop += characters[k];
    if (stop.empty() || random() % 2 == 0) stop += random() % 2 == 0 ? "#" : "\u20ac";
    options.stop_strings.push_back(stop);
  }
  return options;
}

TEST(DetokenizerTest, StopStringsFollowTheDefinitionTokenByToken) {
  std::mt19937 random(9);
  int stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<TokenId> tokens;
    if (round % 2 == 0) {
      tokens = RandomTokens(random, random() % 30);
    } else {  // few different characters, so that matches overlap
      for (size_t i = 0; i < random() % 30; ++i)
        tokens.push_back(Byte(static_cast<uint8_t>("ab\xC3\xA9"[random() % 4])));
    }
    const DetokenizerOptions options = RandomOptions(random, Demo().Decode(tokens));
    const Reference expected = ByDefinition(tokens, options);
    Detokenizer detokenizer(&Demo(), {}, options);
    std::string text;
    for (size_t i = 0; i <= tokens.size(); ++i) {
      std::string delta;
      if (i < tokens.size()) {
        detokenizer.Push(tokens[i], &delta);
      } else {
        detokenizer.Finish(&delta);
      }
      ASSERT_TRUE(IsValidUtf8(delta)) << delta;
      text += delta;
      const size_t at = std::min(i, expected.certain.size() - 1);
      ASSERT_EQ(text, expected.certain[at]) << "round " << round << " token " << i;
    }
    ASSERT_EQ(text, expected.text) << "round " << round;
    ASSERT_EQ(detokenizer.matched_stop_string(), expected.stop) << "round " << round;
    stopped += expected.stop.empty() ? 0 : 1;
  }
  EXPECT_GT(stopped, 500);
}

}  // namespace
}  // namespace fewbit
