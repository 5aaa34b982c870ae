// Seeded random damage to bytes, for tests that run where libFuzzer does not.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace fewbit {

// Thread rule: one owner.
class Mutator {
 public:
  explicit Mutator(uint32_t seed) : rng_(seed) {}

  // One of `corpus` with one to six changes: bits, bytes, ranges cut, doubled or taken from another
  // entry, numbers replaced by ones at the edges of integer types.
  std::string Mutate(const std::vector<std::string>& corpus);

  // Changes `count` bytes in place, lengths stay.
  void Damage(std::string* bytes, int count);

 private:
  size_t Below(size_t limit) { return limit == 0 ? 0 : rng_() % limit; }
  void Change(std::string* input, const std::vector<std::string>& corpus);
  void ReplaceNumber(std::string* input);

  std::mt19937 rng_;
};

}  // namespace fewbit
