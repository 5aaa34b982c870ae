// libFuzzer target; see README.md.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/fuzz_entries.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fewbit::FuzzSafetensors({data, size});
  return 0;
}
