// The operators of tuning on the CPU: loops of kernels/cpu/gradients.h and OpenBLAS's products,
// shared out among the ranks of a team in pieces that do not depend on how many ranks there are.
#pragma once

#include <memory>

#include "kernels/cpu/linear.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// With a team of `threads` (0: AvailableProcessors()). "On the device" is ordinary memory here, and
// calls are done when they return. The loops give the same bits for every `isa`; OpenBLAS chooses
// its own instructions, and must be the variant with POSIX threads (libopenblas0-pthread in Debian)
// for products to be shared out: see blas.h.
std::unique_ptr<Ops> CreateCpuOps(int threads, cpu::Isa isa = cpu::BestIsa());

}  // namespace fewbit::tune
