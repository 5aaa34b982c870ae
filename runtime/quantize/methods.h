// The quantization methods as rows of a table. What each row does, and how far "published" follows
// the paper, is in README.md.
#pragma once

#include <cstdint>
#include <string_view>

namespace fewbit {

// How a strip earns its 4 bits.
enum class Sensitivity : uint8_t {
  kRange,  // squared value range, weighted by the Hessian diagonal
  kError,  // Hessian-weighted squared error at 2 bits
};

struct QuantizeMethod {
  const char* name = "";
  bool zero_points = false;  // asymmetric codes with a stored zero per (row, strip)
  bool search_scales =
      false;  // scales from a search of the weighted error, else from minimum and maximum
  bool error_feedback = false;  // the error of a channel is made up for by the channels after it
  int descent_sweeps = 0;       // of coordinate descent on codes and scales after error feedback
  bool shared_bits = false;     // 4-bit strips are shared out among the matrices by what they gain
  bool sequential = false;      // calibration inputs come through the layers already quantized
  Sensitivity sensitivity = Sensitivity::kError;
  const char* summary = "";
};

inline constexpr QuantizeMethod kQuantizeMethods[] = {
    {"default", false, true, true, 2, true, true, Sensitivity::kError,
     "searched scales, symmetric levels, error feedback with 4-bit strips last (arXiv 2210.17323)"},
    {"searched", false, true, false, 0, false, false, Sensitivity::kError,
     "default without error feedback: nearest codes, less memory"},
    {"published", true, false, false, 0, false, false, Sensitivity::kRange,
     "min-max scales with zero-points, strips by Hessian-weighted range (arXiv 2311.16442)"},
};

// Null for an unknown name.
constexpr const QuantizeMethod* FindQuantizeMethod(std::string_view name) {
  for (const QuantizeMethod& method : kQuantizeMethods) {
    if (name == method.name) return &method;
  }
  return nullptr;
}

}  // namespace fewbit
