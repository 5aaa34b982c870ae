// The quantization methods as rows of a table. What each row does, and how far "published" follows
// the paper, is in README.md.
#pragma once

#include <cstdint>
#include <string_view>

namespace fewbit {

// How a strip earns its 4 bits.
enum class Sensitivity : uint8_t {
  kRange,          // squared value range
  kWeightedRange,  // likewise, weighted by the Hessian diagonal
  kError,          // Hessian-weighted squared error at 2 bits
};

// What coordinate descent may move after error feedback.
enum class Descent : uint8_t {
  kCodesAndScales,
  kScales,  // a least-squares refit of the scales for fixed codes
};

// What the inputs of a matrix have come through when it is calibrated on them.
enum class Inputs : uint8_t {
  kOriginal,  // the original model
  kLayers,    // the layers before, quantized
  kMatrices,  // all matrices before, quantized
};

struct QuantizeMethod {
  const char* name = "";
  bool zero_points = false;  // asymmetric codes with a stored zero per (row, strip)
  bool search_scales =
      false;  // scales from a search of the weighted error, else from minimum and maximum
  Sensitivity sensitivity = Sensitivity::kError;
  bool error_feedback = false;  // the error of a channel is made up for by the channels after it
  bool large_first = false;     // of a width, the channels with the largest inputs come first
  int descent_sweeps = 0;       // on codes and scales after error feedback
  Descent descent = Descent::kCodesAndScales;
  bool shared_bits = false;  // 4-bit strips are shared out among the matrices by what they gain
  Inputs inputs = Inputs::kOriginal;
  // With inputs that are not the original ones: the share of what quantization has changed in a
  // matrix' inputs that its targets make up for.
  float correction = 0.0f;
  const char* summary = "";

  // Whether a matrix needs its whole Hessian, not only the diagonal.
  constexpr bool full_hessian() const {
    return error_feedback || descent_sweeps > 0 || correction > 0.0f;
  }
};

inline constexpr QuantizeMethod kQuantizeMethods[] = {
    {.name = "default",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .descent_sweeps = 2,
     .shared_bits = true,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "searched scales, symmetric levels, error feedback with 4-bit strips last (arXiv "
                "2210.17323), bits shared out, half of earlier errors made up for (2504.02692)"},
    {.name = "searched",
     .search_scales = true,
     .summary = "default without error feedback: nearest codes, less memory"},
    {.name = "published",
     .zero_points = true,
     .sensitivity = Sensitivity::kWeightedRange,
     .summary =
         "min-max scales with zero-points, strips by Hessian-weighted range (arXiv 2311.16442)"},
};

// What lies between these, one step at a time: for measuring what a step is worth
// (tests/bench/quality).
inline constexpr QuantizeMethod kStepMethods[] = {
    {.name = "published-range",
     .zero_points = true,
     .sensitivity = Sensitivity::kRange,
     .summary = "published, strips by range alone"},
    {.name = "published-error",
     .zero_points = true,
     .sensitivity = Sensitivity::kError,
     .summary = "published, strips by Hessian-weighted error"},
    {.name = "feedback",
     .search_scales = true,
     .error_feedback = true,
     .summary = "searched, and error feedback in the order of the channels, 4-bit strips last"},
    {.name = "feedback-ordered",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .summary = "feedback, channels with large inputs first"},
    {.name = "sequential",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .inputs = Inputs::kLayers,
     .summary = "feedback-ordered, calibrated through the layers already quantized"},
    {.name = "sequential-matrices",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .inputs = Inputs::kMatrices,
     .summary = "feedback-ordered, calibrated through the matrices already quantized"},
    {.name = "corrected",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "sequential-matrices, and half of what that changed made up for"},
    {.name = "refit",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .descent_sweeps = 2,
     .descent = Descent::kScales,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "corrected, and scales refitted by least squares for the codes found"},
    {.name = "descent",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .descent_sweeps = 2,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "corrected, and descent on codes and scales: default with equal shares"},
    {.name = "shared",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .shared_bits = true,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "corrected, and bits shared out: default without descent"},
    {.name = "uncorrected",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .descent_sweeps = 2,
     .shared_bits = true,
     .inputs = Inputs::kMatrices,
     .summary = "default without making up for earlier matrices"},
    {.name = "without-feedback",
     .search_scales = true,
     .descent_sweeps = 2,
     .shared_bits = true,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "default without error feedback: descent begins at the nearest codes"},
    {.name = "channel-order",
     .search_scales = true,
     .error_feedback = true,
     .descent_sweeps = 2,
     .shared_bits = true,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "default with the channels of a width in their own order"},
    {.name = "layer-inputs",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .descent_sweeps = 2,
     .shared_bits = true,
     .inputs = Inputs::kLayers,
     .correction = 0.5f,
     .summary = "default, calibrated through the layers already quantized"},
    {.name = "original-inputs",
     .search_scales = true,
     .error_feedback = true,
     .large_first = true,
     .descent_sweeps = 2,
     .shared_bits = true,
     .summary = "default, calibrated on the original model: nothing to make up for"},
    {.name = "descent-alone",
     .search_scales = true,
     .descent_sweeps = 2,
     .summary = "searched, and descent on codes and scales"},
    {.name = "correction-alone",
     .search_scales = true,
     .inputs = Inputs::kMatrices,
     .correction = 0.5f,
     .summary = "searched, and half of what the matrices before changed made up for"},
};

// Of either table; null for an unknown name.
constexpr const QuantizeMethod* FindQuantizeMethod(std::string_view name) {
  for (const QuantizeMethod& method : kQuantizeMethods) {
    if (name == method.name) return &method;
  }
  for (const QuantizeMethod& method : kStepMethods) {
    if (name == method.name) return &method;
  }
  return nullptr;
}

}  // namespace fewbit
