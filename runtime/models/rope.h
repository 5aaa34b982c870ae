// Rotary position embeddings (Su et al. 2021): the cosines and sines by which pairs of a head's
// dimensions turn at a position, with the linear and llama3 scalings of long contexts.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/models/model_spec.h"

namespace fewbit {

// Angular frequency of each pair [rotary_dim / 2], after scaling.
std::vector<double> RopeFrequencies(const RopeSpec& rope);

// Everything is kept in double; positions are split into a high and a low part whose angles are
// added by the addition theorems, so that memory grows with the square root of what a full table
// would take. Thread rule: immutable.
class RopeTable {
 public:
  // For positions 0 .. max_positions - 1.
  RopeTable(const RopeSpec& rope, int32_t max_positions);

  int pairs() const { return static_cast<int>(frequencies_.size()); }

  // cosines [pairs], sines [pairs]
  void Fill(int32_t position, float* cosines, float* sines) const;

 private:
  struct Turn {
    double cosine;
    double sine;
  };
  std::vector<double> frequencies_;
  std::vector<Turn> low_;   // [kLowPositions, pairs]
  std::vector<Turn> high_;  // [max_positions / kLowPositions + 1, pairs]
};

}  // namespace fewbit
