// What the fuzzers and their CTest twin run on one input. Each ends the process when the reader
// breaks its promise: accepting something that it should have refused is as much a finding as a
// crash.
#pragma once

#include <cstdint>
#include <span>

namespace fewbit {

// The input is a whole safetensors file.
void FuzzSafetensors(std::span<const uint8_t> input);

// The input is config.json, and behind the first NUL byte, if there is one, generation_config.json.
void FuzzModelConfig(std::span<const uint8_t> input);

}  // namespace fewbit
