// The memory bandwidth that percentages are given of.
#pragma once

namespace fewbit::bench {

// Bytes per microsecond that a plain kernel reads from a buffer far larger than the L2 cache: the
// best of a few grid sizes, median of its replays.
double ReadBytesPerMicro();

}  // namespace fewbit::bench
