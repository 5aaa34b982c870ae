// Our tokenizer against Debian's spm_encode and spm_decode, programs of another build of
// SentencePiece.
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "gtest/gtest.h"
#include "server/tokenizer.h"

namespace fewbit {
namespace {

const std::string kDemo = FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m";

const char* const kLines[] = {
    "The old house at the end of the lane had been empty for as long as anyone could remember.",
    "\"Pray, sit down,\" said Mr. Harding; \"you must be tired after so long a journey.\"",
    "She had read, in 1847, that 3,512 ships of the line -- or thereabouts -- were afloat.",
    "    four spaces before, and  two   or three between    ",
    "na\u00efve fa\u00e7ade, \u0152uvre, \u2014 dashes \u2013 and \u201cquotes\u201d\u2026",
    "\u4e16\u754c\u3053\u3093\u306b\u3061\u306f \U0001F600\U0001F680 \u20ac5 \u00bd "
    "\u05e9\u05dc\u05d5\u05dd",
    "<s> </s> <unk> <0x41> [INST] <|im_end|>",
    "x",
    "\u2581\u2581 the mark itself",
    "UPPER lower MiXeD 0123456789 !@#$%^&*()_+-={}[]|\\:;'<>?,./~`",
    "antidisestablishmentarianism floccinaucinihilipilification",
};

// What `command` prints for `input`.
std::string RunWith(const std::string& command, const std::string& input) {
  std::string name = ::testing::TempDir() + "fewbit_spm_XXXXXX";
  const int descriptor = mkstemp(name.data());
  EXPECT_GE(descriptor, 0);
  close(descriptor);
  std::ofstream(name, std::ios::binary) << input;
  std::string output;
  FILE* pipe = popen((command + " < " + name + " 2> /dev/null").c_str(), "r");
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, n);
  EXPECT_EQ(pclose(pipe), 0) << command;
  unlink(name.c_str());
  return output;
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(TokenizerOracleTest, EncodesAndDecodesAsDebiansPrograms) {
  const auto tokenizer = Tokenizer::Load(kDemo, 8192);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::string input, ours_as_text;
  std::vector<std::string> ours;
  for (const char* line : kLines) {
    input += std::string(line) + "\n";
    std::string ids;
    const auto tokens = (*tokenizer)->Encode(line, false);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    for (const TokenId token : *tokens) {
      if (!ids.empty()) ids += ' ';
      ids += std::to_string(ToInt(token));
    }
    ours.push_back(ids);
    ours_as_text += (*tokenizer)->Decode(*tokens) + "\n";
  }
  const std::string model = " --model=" + kDemo + "/tokenizer.model";
  const std::string encoded =
      RunWith(std::string(SPM_ENCODE) + model + " --output_format=id", input);
  EXPECT_EQ(Lines(encoded), ours);
  EXPECT_EQ(RunWith(std::string(SPM_DECODE) + model + " --input_format=id", encoded), ours_as_text);
}

}  // namespace
}  // namespace fewbit
