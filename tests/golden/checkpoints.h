// The folders beside this file, for the tests that run all of them on a device. At least one for
// every family of runtime/models/arch_table.cc (golden_test checks it).
#pragma once

namespace fewbit::testing {

inline constexpr const char* kGoldenCheckpoints[] = {"llama2", "llama3", "mistral-swa", "qwen2",
                                                     "qwen3",  "glm",    "chatglm2"};

}  // namespace fewbit::testing
