// What fewbit-client was asked to do: its flags as one struct. Filled by client_flags.cc, used by
// everything else of the program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fewbit/v1/generation.pb.h"

namespace fewbit::client {

struct LoadOptions {
  int32_t concurrency = 0;  // streams at a time; 0: no load, one request
  int32_t requests = 100;   // measured ones
  int32_t warmup = 1;       // requests before, not measured
  double rate = 0.0;        // requests per second, Poisson; 0: closed loop
  int32_t prompt_tokens =
      0;  // random ids instead of a prompt, other ones for every request; 0: the prompt
  int32_t connections = 1;
};

// Contents of PEM files, not their names.
struct TlsOptions {
  std::string ca;  // empty: plain text
  std::string certificate, key;
  std::string server_name;  // in the server's certificate; empty: the host of the address
};

struct ClientOptions {
  enum class Mode { kGenerate, kLoad, kInfo, kTokenize, kDetokenize, kAbort, kHealth };

  Mode mode = Mode::kGenerate;
  std::string address = "localhost:8033";
  TlsOptions tls;
  std::string api_key;              // sent with every call of the service; empty: none
  std::string tenant;               // sent as x-tenant-id; empty: not sent
  double timeout_seconds = 0.0;     // deadline of a call; 0: none
  double wait_ready_seconds = 0.0;  // before the call; 0: do not wait. kHealth: never 0

  v1::GenerateRequest request;  // also carries the text of kTokenize and the ids of kDetokenize
  std::string abort_id;         // kAbort
  LoadOptions load;             // kLoad

  bool stream = true;  // false: one answer at the end
  bool json = false;   // one JSON object per message
  bool quiet = false;  // no statistics
};

}  // namespace fewbit::client
