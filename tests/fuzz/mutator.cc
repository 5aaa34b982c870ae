#include "tests/fuzz/mutator.h"

#include <cctype>

namespace fewbit {

void Mutator::Damage(std::string* bytes, int count) {
  for (int i = 0; i < count && !bytes->empty(); ++i) {
    (*bytes)[Below(bytes->size())] = static_cast<char>(rng_());
  }
}

void Mutator::ReplaceNumber(std::string* input) {
  static constexpr const char* kNumbers[] = {"0",     "-1",         "1",
                                             "2",     "2147483647", "4294967296",
                                             "1e400", "0.5",        "9223372036854775807",
                                             "null",  "[]",         "18446744073709551616"};
  size_t begin = Below(input->size());
  while (begin < input->size() && std::isdigit(static_cast<unsigned char>((*input)[begin])) == 0) {
    ++begin;
  }
  size_t end = begin;
  while (end < input->size() && std::isdigit(static_cast<unsigned char>((*input)[end])) != 0) ++end;
  if (end > begin) input->replace(begin, end - begin, kNumbers[Below(std::size(kNumbers))]);
}

void Mutator::Change(std::string* input, const std::vector<std::string>& corpus) {
  constexpr size_t kMaxRange = 64;
  const size_t at = Below(input->size());
  const size_t length = 1 + Below(kMaxRange);
  switch (Below(6)) {
    case 0:
      if (!input->empty()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << Below(8)));
      break;
    case 1:
      Damage(input, 1);
      break;
    case 2:
      input->erase(at, length);
      break;
    case 3:
      input->insert(at, input->substr(at, length));
      break;
    case 4: {
      const std::string& other = corpus[Below(corpus.size())];
      if (!other.empty()) input->insert(at, other.substr(Below(other.size()), length));
      break;
    }
    default:
      ReplaceNumber(input);
  }
}

std::string Mutator::Mutate(const std::vector<std::string>& corpus) {
  std::string input = corpus[Below(corpus.size())];
  const size_t changes = 1 + Below(6);
  for (size_t i = 0; i < changes; ++i) Change(&input, corpus);
  return input;
}

}  // namespace fewbit
