// That the numbers of /metrics close: seconds against the clock, tokens and ends against what the
// clients were told; that the set of series is bounded; that the documentation lists it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/device_meter.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::HasSubstr;

// One scrape, taken apart.
class Exposition {
 public:
  struct Family {
    std::string help, type;
    std::set<std::string> labels;  // without le
  };

  explicit Exposition(const std::string& text) {
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      if (absl::StrContains(line, "exposer_")) continue;  // the HTTP server about itself
      const std::vector<std::string> word = absl::StrSplit(line, absl::MaxSplits(' ', 3));
      if (word.size() == 4 && word[0] == "#") {
        (word[1] == "HELP" ? families_[word[2]].help : families_[word[2]].type) = word[3];
      } else if (!families_.empty() && !line.empty() && line[0] != '#') {
        AddSample(std::string(line));
      }
    }
  }

  const std::map<std::string, Family>& families() const { return families_; }
  size_t num_series() const { return samples_.size(); }
  // Sum of the samples of `name` whose labels contain all of `labels`, each as key="value".
  double Sum(const std::string& name, const std::vector<std::string>& labels = {}) const {
    double sum = 0.0;
    for (const auto& [series, value] : samples_) {
      if (!series.starts_with(name + "{")) continue;
      bool all = true;
      for (const std::string& label : labels) all = all && series.find(label) != series.npos;
      if (all) sum += value;
    }
    return sum;
  }

 private:
  void AddSample(const std::string& line) {
    const size_t open = line.find('{'), close = line.rfind('}');
    ASSERT_NE(open, std::string::npos) << line;
    double value = 0.0;
    ASSERT_TRUE(absl::SimpleAtod(line.substr(close + 2), &value)) << line;
    samples_[line.substr(0, close + 1)] = value;
    std::string family = line.substr(0, open);
    for (const std::string suffix : {"_bucket", "_sum", "_count"}) {
      const std::string stem =
          family.substr(0, family.size() - std::min(family.size(), suffix.size()));
      if (family.ends_with(suffix) && families_.contains(stem)) family = stem;
    }
    for (absl::string_view label : absl::StrSplit(line.substr(open + 1, close - open - 1), ',')) {
      const std::string key(label.substr(0, label.find('=')));
      if (key != "le") families_[family].labels.insert(key);
    }
  }

  std::map<std::string, Family> families_;
  std::map<std::string, double> samples_;
};

Exposition Read(Harness& harness) { return Exposition(Scrape(harness.server().metrics_port())); }

HarnessOptions Priced() {
  HarnessOptions options{.metrics = true};
  options.config.gpu_hour_usd = 3600.0;  // a dollar per second
  options.config.slo_ttft_ms = 3.6e6;
  options.config.slo_tpot_ms = 1e-6;
  return options;
}

TEST(AccountingTest, SecondsAndDollarsSumUpToTheWallTime) {
  const double before = DeviceMeter::SteadySeconds();
  HarnessOptions options = Priced();
  options.step_time = absl::Milliseconds(2);
  Harness harness(options);
  const double up = DeviceMeter::SteadySeconds();
  for (int i = 0; i < 3; ++i) Stream(harness.stub(), harness.Saying(" the sun was high"));
  harness.ExpectIdle();

  const double scraped = DeviceMeter::SteadySeconds();
  const Exposition metrics = Read(harness);
  const double after = DeviceMeter::SteadySeconds();
  const double prefill = metrics.Sum("fewbit_gpu_seconds_total", {"phase=\"prefill\""});
  const double decode = metrics.Sum("fewbit_gpu_seconds_total", {"phase=\"decode\""});
  const double total = metrics.Sum("fewbit_gpu_seconds_total");
  EXPECT_GE(prefill, 3 * 0.002);
  EXPECT_GE(decode, 3 * 0.002);
  EXPECT_NEAR(prefill + decode, metrics.Sum("fewbit_busy_seconds_total"), 1e-6);
  constexpr double kClockReading = 1e-3;
  EXPECT_LE(total, after - before + kClockReading);
  EXPECT_GE(total, scraped - up - kClockReading);
  EXPECT_NEAR(metrics.Sum("fewbit_cost_usd_total", {"basis=\"reserved\""}), total, 1e-6);
  EXPECT_NEAR(metrics.Sum("fewbit_cost_usd_total", {"basis=\"used\""}), prefill + decode, 1e-6);
  const double tokens = metrics.Sum("fewbit_tokens_total", {"kind=\"generated\""});
  EXPECT_NEAR(metrics.Sum("fewbit_usd_per_million_generated_tokens", {"basis=\"used\""}),
              (prefill + decode) * 1e6 / tokens, 1e-3 * 1e6 / tokens);
}

TEST(AccountingTest, WithoutAPriceNothingCostsAnything) {
  Harness harness({.metrics = true});
  Stream(harness.stub(), harness.Saying(" the sun"));
  harness.ExpectIdle();
  const Exposition metrics = Read(harness);
  EXPECT_GT(metrics.Sum("fewbit_gpu_seconds_total"), 0.0);
  EXPECT_EQ(metrics.Sum("fewbit_cost_usd_total"), 0.0);
  EXPECT_EQ(metrics.Sum("fewbit_gpu_hour_usd"), 0.0);
  EXPECT_TRUE(metrics.families().at("fewbit_slo_requests_total").labels.empty()) << "no target";
}

TEST(AccountingTest, ObjectivesAreMetOrMissedOncePerRequest) {
  Harness harness(Priced());  // the first token within an hour, the others within a nanosecond
  for (int i = 0; i < 3; ++i) Stream(harness.stub(), harness.Saying(" the sun was high"));
  harness.ExpectIdle();
  const Exposition metrics = Read(harness);
  const auto count = [&](const std::string& slo, const std::string& met) {
    return metrics.Sum("fewbit_slo_requests_total",
                       {absl::StrCat("slo=\"", slo, "\""), absl::StrCat("met=\"", met, "\"")});
  };
  EXPECT_EQ(count("ttft", "true"), 3);
  EXPECT_EQ(count("ttft", "false"), 0);
  EXPECT_EQ(count("tpot", "true"), 0);
  EXPECT_EQ(count("tpot", "false"), 3);
}

TEST(AccountingTest, RoutersFindTheNamesOfVllm) {
  HarnessOptions options = Priced();
  options.gate_closed = true;
  options.config.max_running = 1;
  Harness harness(options);
  grpc::ClientContext first_context, second_context;
  const auto first = harness.stub().GenerateStream(&first_context, harness.Saying(" one"));
  harness.executor().WaitUntilHeld();
  const auto second = harness.stub().GenerateStream(&second_context, harness.Saying(" two"));
  WaitFor([&] { return harness.server().engine_stats().requests_waiting == 1; }, "the second");
  const std::string text = Scrape(harness.server().metrics_port());
  EXPECT_EQ(MetricValue(text, "vllm:num_requests_running{model_name=\"demo\"}"), 1);
  EXPECT_EQ(MetricValue(text, "vllm:num_requests_waiting{model_name=\"demo\"}"), 1);
  EXPECT_EQ(MetricValue(text, "vllm:kv_cache_usage_perc{model_name=\"demo\"}"),
            MetricValue(text, "fewbit_kv_usage_ratio{model=\"demo\"}"));
  EXPECT_EQ(MetricValue(text,
                        "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"4096\","
                        "model_name=\"demo\"}"),
            1);
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(first.get()).status.ok());
  EXPECT_TRUE(Collect(second.get()).status.ok());
}

// The table of server/README.md: | `name` | type | unit | labels | meaning |.
TEST(AccountingTest, TheDocumentationListsEveryMetricAsItIs) {
  Harness harness(Priced());
  Stream(harness.stub(), harness.Saying(" the sun was high"));
  harness.ExpectIdle();
  std::set<std::string> actual;
  const Exposition metrics = Read(harness);
  for (const auto& [name, family] : metrics.families()) {
    std::set<std::string> labels = family.labels;
    EXPECT_EQ(labels.erase("model") + labels.erase("model_name"), 1u) << name;
    actual.insert(absl::StrCat("`", name, "` | ", family.type, " | ", absl::StrJoin(labels, ", "),
                               " | ", family.help));
  }
  std::set<std::string> documented;
  std::ifstream file(FEWBIT_SOURCE_DIR "/server/README.md");
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> cell = absl::StrSplit(line, " | ");
    if (cell.size() != 5 || !(line.starts_with("| `fewbit_") || line.starts_with("| `vllm:"))) {
      continue;
    }
    documented.insert(absl::StrCat(cell[0].substr(2), " | ", cell[1], " | ", cell[3], " | ",
                                   cell[4].substr(0, cell[4].rfind(" |"))));
  }
  EXPECT_EQ(documented, actual);
}

}  // namespace
}  // namespace fewbit::testing
