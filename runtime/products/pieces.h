// Work cut into pieces that do not depend on how many threads there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "runtime/thread_team.h"

namespace fewbit {

// Elements that one rank works on at a time: large against what a hand-out costs, small enough that
// the ranks end together.
inline constexpr int64_t kPieceElements = 32768;

inline int64_t Pieces(int64_t count, int64_t piece) { return (count + piece - 1) / piece; }

inline int64_t RowsPerPiece(int64_t cols) {
  return std::max<int64_t>(1, kPieceElements / std::max<int64_t>(cols, 1));
}

// Calls fn(rank, begin, end) for [0, count) in pieces of `piece`, on whichever rank is free.
template <typename Fn>
void ForPieces(ThreadTeam* team, int64_t count, int64_t piece, const Fn& fn) {
  const int64_t pieces = Pieces(count, piece);
  const auto run = [&](int rank, int64_t i) {
    fn(rank, i * piece, std::min(count, (i + 1) * piece));
  };
  if (pieces <= 1 || team->size() == 1) {
    for (int64_t i = 0; i < pieces; ++i) run(0, i);
    return;
  }
  std::atomic<int64_t> next{0};
  team->Run([&](int rank) {
    for (int64_t i = next.fetch_add(1); i < pieces; i = next.fetch_add(1)) run(rank, i);
  });
}

}  // namespace fewbit
