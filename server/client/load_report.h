// What a load run measured, and its definitions. Pure arithmetic: no clock, no network.
//   TTFT        from the moment a request is due (closed loop: sent) to its first token
//   ITL         gap between two messages with tokens of one stream, as its reader sees it
//   TPOT        per request: (last token - first token) / (tokens - 1), the first token excluded
//   end to end  from the moment a request is due to the end of its stream
// Percentiles are nearest-rank over finished requests (ITL: over all their gaps).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fewbit::client {

// One request. Times are seconds since the run began.
struct RequestRecord {
  double due = 0.0;
  double sent = 0.0;
  double ended = 0.0;
  std::vector<double> token_times;  // of messages with tokens
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  std::string error;  // name of the status code; empty: finished
};

struct Distribution {
  double mean = 0.0, p50 = 0.0, p90 = 0.0, p99 = 0.0, max = 0.0;  // all 0 without values
};

Distribution Summarize(std::vector<double> values);

struct LoadReport {
  int64_t finished = 0;
  int64_t rejected = 0;                   // RESOURCE_EXHAUSTED
  std::map<std::string, int64_t> failed;  // other codes
  double seconds = 0.0;                   // first request sent to last one ended
  double output_tokens_per_second = 0.0;  // of finished requests
  double prompt_tokens_per_second = 0.0;
  double requests_per_second = 0.0;
  double max_late = 0.0;  // how long after it was due a request was sent
  Distribution ttft, itl, tpot, end_to_end;
};

LoadReport MakeReport(const std::vector<RequestRecord>& records);

// The table for people, and one line of JSON with the same numbers in seconds.
std::string ReportText(const LoadReport& report);
std::string ReportJson(const LoadReport& report);

}  // namespace fewbit::client
