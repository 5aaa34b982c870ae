// A batch of matrix products on the CPU: tiles that do not depend on the number of threads, each on
// one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/gradients.h"
#include "runtime/products/team_products.h"
#include "runtime/thread_team.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// Thread rule: one caller at a time.
class CpuProducts {
 public:
  // `team` and `table` outlive the object. kBFloat16: operands are rounded to bfloat16 (8 bits of
  // mantissa), sums are float32.
  CpuProducts(ThreadTeam* team, const cpu::GradientTable<float>* table, TileType type);

  void Multiply(const Product& product);

 private:
  // The same matrices as bfloat16, rows without gaps, times `factor`. `rows`, `cols`: as stored.
  Operand Narrow(const Operand& whole, const Product& product, int rows, int cols, float factor,
                 std::vector<uint16_t>* narrow);

  TeamProducts products_;
  const cpu::GradientTable<float>& table_;
  const TileType type_;
  std::vector<uint16_t> a_, b_;
};

}  // namespace fewbit::tune
