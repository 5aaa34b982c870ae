// From rows of logits to the numbers of a TextScore, whoever made the rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/eval/evaluate.h"
#include "runtime/thread_team.h"
#include "scheduler/ids.h"

namespace fewbit {

// The lowest index among equals.
int Argmax(std::span<const float> row);

// Sums over positions, in their order. Thread rule: one caller at a time, not inside team->Run.
class RowScores {
 public:
  // Row r of `logits` [targets, V] rates targets[r]; `reference` likewise or empty, always the one
  // or always the other.
  void Add(std::span<const float> logits, std::span<const float> reference,
           std::span<const TokenId> targets, ThreadTeam* team);

  // The means; windows and stride are left to the caller. REQUIRES: a position was added.
  TextScore Score() const;

 private:
  struct Position {
    double nll = 0.0;
    double reference_nll = 0.0;
    double kl = 0.0;
    bool agree = false;
  };

  std::vector<Position> positions_;  // of one Add
  bool compared_ = false;
  int64_t tokens_ = 0;
  double nll_ = 0.0;
  double reference_nll_ = 0.0;
  double kl_ = 0.0;
  int64_t agree_ = 0;
};

}  // namespace fewbit
