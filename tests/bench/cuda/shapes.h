// The linear layers of the published models that the GPU benches are run for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fewbit::bench {

struct ModelShape {
  std::string_view name;
  int hidden, intermediate;
  int qkv_rows;  // query, key and value heads together
  int layers;
};

inline constexpr ModelShape kModelShapes[] = {
    {"llama-2-7b", 4096, 11008, 3 * 4096, 32},     {"llama-2-13b", 5120, 13824, 3 * 5120, 40},
    {"llama-2-70b", 8192, 28672, 8192 + 2048, 80}, {"llama-3-8b", 4096, 14336, 4096 + 2048, 32},
    {"chatglm3-6b", 4096, 13696, 4096 + 512, 28},  {"qwen2-7b", 3584, 18944, 3584 + 1024, 28},
};

// The four linear layers of one decoder layer, with fused qkv and gate + up.
struct LinearShape {
  std::string_view name;
  int rows, cols;
};
inline std::vector<LinearShape> LinearsOf(const ModelShape& m) {
  return {{"qkv", m.qkv_rows, m.hidden},
          {"o", m.hidden, m.hidden},
          {"gate+up", 2 * m.intermediate, m.hidden},
          {"down", m.hidden, m.intermediate}};
}

}  // namespace fewbit::bench
