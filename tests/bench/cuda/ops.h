// fewbit-bench ops: what stands between the linear layers of a step (norms, activation), the LM
// head and the sampler, microseconds per launch.
#pragma once

#include <string>
#include <vector>

namespace fewbit::bench {

struct OpsOptions {
  std::string shape = "llama-2-7b";
  std::vector<int> m = {1, 16, 64, 2048};
  int vocab = 32000;
  int repeats = 21;
};

// Prints the table; a process exit status.
int RunOps(const OpsOptions& options);

}  // namespace fewbit::bench
