// Linking counting_new.cc into a program replaces its global operator new by one that counts.
#pragma once

#include <cstdint>

namespace fewbit {

// Calls of any form of operator new on this thread since it started.
int64_t AllocationsOnThisThread();

}  // namespace fewbit
