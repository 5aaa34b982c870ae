// From a Config to something that can be served: device, model, tokenizer, executor, the first
// tokens. What --check does, and what comes before the open ports otherwise.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/executor.h"
#include "runtime/models/model.h"
#include "server/config.h"
#include "server/served_model.h"
#include "server/tokenizer.h"

namespace fewbit {

// Destroyed in reverse: the executor needs the model.
struct Loaded {
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Executor> executor;
  ServedModel served;              // with the phases of the start so far
  std::vector<std::string> facts;  // for people: the model, where it runs and why, what fits
};

// Checks everything that can be checked before a port is opened, the cheap things first. A status
// names the flag or the file.
absl::StatusOr<Loaded> Load(const Config& config);

}  // namespace fewbit
