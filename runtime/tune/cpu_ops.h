// The operators of tuning on the CPU: loops of kernels/cpu/gradients.h and oneDNN's products,
// shared out among the ranks of a team in pieces that do not depend on how many ranks there are.
#pragma once

#include <memory>

#include "kernels/cpu/linear.h"
#include "runtime/products/tile_product.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// With a team of `threads` (0: AvailableProcessors()). "On the device" is ordinary memory here, and
// calls are done when they return. The loops give the same bits for every `isa`; oneDNN chooses its
// own instructions. `products`: kBFloat16 rounds what is multiplied to 8 bits of mantissa, which is
// several times as fast where HasBFloat16Products() and slow elsewhere.
std::unique_ptr<Ops> CreateCpuOps(int threads, cpu::Isa isa = cpu::BestIsa(),
                                  TileType products = TileType::kFloat32);

}  // namespace fewbit::tune
