// Matrix products on the CPU, cut into tiles that do not depend on the number of threads, each on
// one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/gradients.h"
#include "runtime/products/tile_product.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Appends `whole` cut into tiles of at most `rows` x `cols` of its result.
void CutProduct(const TileProduct& whole, int rows, int cols, std::vector<TileProduct>* tiles);

// Thread rule: one caller at a time, which is not inside team->Run; a rank's multiplier belongs to
// that rank.
class TeamProducts {
 public:
  // `team` outlives the object.
  explicit TeamProducts(ThreadTeam* team);

  ThreadTeam* team() const { return team_; }

  // Whichever rank is free takes the next tile. Results must not overlap.
  void Multiply(std::span<const TileProduct> tiles);

  // y = the bfloat16 numbers nearest to x.
  void Narrow(const float* x, int64_t count, uint16_t* y) const;

  // For work that is shared out otherwise.
  TileMultiplier& multiplier(int rank) { return *ranks_[rank]; }

 private:
  ThreadTeam* const team_;
  const cpu::GradientTable<float>& table_;
  std::vector<std::unique_ptr<TileMultiplier>> ranks_;
};

}  // namespace fewbit
