#include "server/client/load_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fewbit::client {
namespace {

double NearestRank(const std::vector<double>& sorted, double fraction) {
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(sorted.size())));
  return sorted[std::max<size_t>(rank, 1) - 1];
}

}  // namespace

Distribution Summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {sum / static_cast<double>(values.size()), NearestRank(values, 0.5),
          NearestRank(values, 0.9), NearestRank(values, 0.99), values.back()};
}

LoadReport MakeReport(const std::vector<RequestRecord>& records) {
  LoadReport report;
  std::vector<double> ttft, itl, tpot, end_to_end;
  int64_t prompt_tokens = 0, output_tokens = 0;
  double begin = HUGE_VAL, end = 0.0;
  for (const RequestRecord& record : records) {
    begin = std::min(begin, record.sent);
    end = std::max(end, record.ended);
    report.max_late = std::max(report.max_late, record.sent - record.due);
    if (record.error == "RESOURCE_EXHAUSTED") {
      ++report.rejected;
      continue;
    }
    if (!record.error.empty()) {
      ++report.failed[record.error];
      continue;
    }
    ++report.finished;
    prompt_tokens += record.prompt_tokens;
    output_tokens += record.generated_tokens;
    end_to_end.push_back(record.ended - record.due);
    const std::vector<double>& times = record.token_times;
    if (times.empty()) continue;
    ttft.push_back(times.front() - record.due);
    for (size_t i = 1; i < times.size(); ++i) itl.push_back(times[i] - times[i - 1]);
    if (record.generated_tokens > 1) {
      tpot.push_back((times.back() - times.front()) /
                     static_cast<double>(record.generated_tokens - 1));
    }
  }
  report.ttft = Summarize(std::move(ttft));
  report.itl = Summarize(std::move(itl));
  report.tpot = Summarize(std::move(tpot));
  report.end_to_end = Summarize(std::move(end_to_end));
  report.seconds = std::max(0.0, end - std::min(begin, end));
  if (report.seconds > 0) {
    report.output_tokens_per_second = static_cast<double>(output_tokens) / report.seconds;
    report.prompt_tokens_per_second = static_cast<double>(prompt_tokens) / report.seconds;
    report.requests_per_second = static_cast<double>(report.finished) / report.seconds;
  }
  return report;
}

std::string ReportText(const LoadReport& report) {
  std::string text = absl::StrFormat("%d finished, %d rejected", report.finished, report.rejected);
  for (const auto& [code, count] : report.failed)
    absl::StrAppendFormat(&text, ", %d %s", count, code);
  absl::StrAppendFormat(&text, " in %.2f s", report.seconds);
  if (report.max_late > 0.001) {
    absl::StrAppendFormat(&text, "; requests went out up to %.1f ms late", 1e3 * report.max_late);
  }
  absl::StrAppendFormat(&text, "\n%.1f output tokens/s, %.1f prompt tokens/s, %.2f requests/s\n\n",
                        report.output_tokens_per_second, report.prompt_tokens_per_second,
                        report.requests_per_second);
  absl::StrAppendFormat(&text, "%-14s%10s%10s%10s%10s%10s\n", "milliseconds", "mean", "p50", "p90",
                        "p99", "max");
  const auto row = [&text](const char* name, const Distribution& d) {
    absl::StrAppendFormat(&text, "%-14s%10.2f%10.2f%10.2f%10.2f%10.2f\n", name, 1e3 * d.mean,
                          1e3 * d.p50, 1e3 * d.p90, 1e3 * d.p99, 1e3 * d.max);
  };
  row("TTFT", report.ttft);
  row("ITL", report.itl);
  row("TPOT", report.tpot);
  row("end to end", report.end_to_end);
  absl::StrAppend(
      &text,
      "\nTTFT: due to first token. ITL: gap between two messages of a stream. TPOT: (last -\n"
      "first token) / (tokens - 1). Percentiles are nearest-rank over finished requests.\n");
  return text;
}

std::string ReportJson(const LoadReport& report) {
  std::string text = absl::StrFormat("{\"finished\": %d, \"rejected\": %d, \"failed\": {",
                                     report.finished, report.rejected);
  const char* separator = "";
  for (const auto& [code, count] : report.failed) {
    absl::StrAppendFormat(&text, "%s\"%s\": %d", separator, code, count);
    separator = ", ";
  }
  absl::StrAppendFormat(&text,
                        "}, \"seconds\": %.6f, \"output_tokens_per_second\": %.3f, "
                        "\"prompt_tokens_per_second\": %.3f, \"requests_per_second\": %.4f, "
                        "\"max_late_seconds\": %.6f",
                        report.seconds, report.output_tokens_per_second,
                        report.prompt_tokens_per_second, report.requests_per_second,
                        report.max_late);
  const auto row = [&text](const char* name, const Distribution& d) {
    absl::StrAppendFormat(&text,
                          ", \"%s_seconds\": {\"mean\": %.6f, \"p50\": %.6f, \"p90\": %.6f, "
                          "\"p99\": %.6f, \"max\": %.6f}",
                          name, d.mean, d.p50, d.p90, d.p99, d.max);
  };
  row("ttft", report.ttft);
  row("itl", report.itl);
  row("tpot", report.tpot);
  row("end_to_end", report.end_to_end);
  return text + "}";
}

}  // namespace fewbit::client
