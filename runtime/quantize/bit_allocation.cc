#include "runtime/quantize/bit_allocation.h"

#include "scheduler/check.h"

namespace fewbit {
namespace {

struct Step {
  int to = -1;  // index of the choice, -1: none
  double gain_per_byte = 0.0;
};

// The steepest fall of loss from choice `from` that costs at most `bytes_left`: the next corner of
// the convex hull, unless that one is too large.
Step BestStep(const std::vector<StorageChoice>& choices, int from, int64_t bytes_left) {
  Step best;
  for (int i = from + 1; i < static_cast<int>(choices.size()); ++i) {
    const int64_t bytes = choices[i].bytes - choices[from].bytes;
    FEWBIT_CHECK(bytes > 0) << "choice " << i << " is not larger than choice " << from;
    const double gain = (choices[from].loss - choices[i].loss) / static_cast<double>(bytes);
    if (bytes > bytes_left || !(gain > best.gain_per_byte)) continue;
    best = {.to = i, .gain_per_byte = gain};
  }
  return best;
}

}  // namespace

std::vector<int> ShareBytes(std::span<const std::vector<StorageChoice>> choices,
                            int64_t budget_bytes) {
  std::vector<int> chosen(choices.size(), 0);
  int64_t bytes_left = budget_bytes;
  for (const std::vector<StorageChoice>& of_matrix : choices) {
    FEWBIT_CHECK(!of_matrix.empty());
    bytes_left -= of_matrix[0].bytes;
  }
  while (true) {
    Step best;
    size_t matrix = 0;
    for (size_t m = 0; m < choices.size(); ++m) {
      const Step step = BestStep(choices[m], chosen[m], bytes_left);
      if (step.to < 0 || step.gain_per_byte <= best.gain_per_byte) continue;
      best = step;
      matrix = m;
    }
    if (best.to < 0) return chosen;
    bytes_left -= choices[matrix][best.to].bytes - choices[matrix][chosen[matrix]].bytes;
    chosen[matrix] = best.to;
  }
}

}  // namespace fewbit
