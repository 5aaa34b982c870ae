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
#include "server/metric_table.h"
#include "tests/server/fake_nvml.h"
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

// Accounts close whatever the executor runs ahead.
class StepsInFlightTest : public ::testing::TestWithParam<int32_t> {};

INSTANTIATE_TEST_SUITE_P(Accounting, StepsInFlightTest, ::testing::Values(1, 2));

TEST_P(StepsInFlightTest, SecondsAndDollarsSumUpToTheWallTime) {
  const double before = DeviceMeter::SteadySeconds();
  HarnessOptions options = Priced();
  options.step_time = absl::Milliseconds(2);
  options.steps_in_flight = GetParam();
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

TEST(AccountingTest, BillsAddUpToWhatTheTenantIsCharged) {
  HarnessOptions options = Priced();
  options.step_time = absl::Milliseconds(1);
  Harness harness(options);
  double seconds = 0.0, dollars = 0.0;
  for (const char* text : {" the sun", " the sun was high", " the"}) {
    const v1::Usage usage = Stream(harness.stub(), harness.Saying(text)).messages.back().usage();
    EXPECT_GT(usage.device_seconds(), 0.0);
    ASSERT_TRUE(usage.has_cost_usd());
    seconds += usage.device_seconds();
    dollars += usage.cost_usd();
  }
  harness.ExpectIdle();
  const Exposition metrics = Read(harness);
  EXPECT_NEAR(dollars, seconds, 1e-9);  // a dollar per second
  EXPECT_NEAR(dollars, metrics.Sum("fewbit_tenant_cost_usd_total"), 1e-9);
  EXPECT_NEAR(dollars, metrics.Sum("fewbit_cost_usd_total", {"basis=\"used\""}), 1e-6);
}

TEST(AccountingTest, WithoutAPriceNothingCostsAnything) {
  Harness harness({.metrics = true});
  const Collected answer = Stream(harness.stub(), harness.Saying(" the sun"));
  EXPECT_FALSE(answer.messages.back().usage().has_cost_usd());
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

// What clients were told, put together.
struct Told {
  std::map<int, int> calls;                            // by status code
  double prompt_tokens = 0.0, generated_tokens = 0.0;  // of calls that ended OK
  double tokens_of_cut_off = 0.0;                      // that the others had read before

  void Add(const Collected& end) {
    ++calls[end.status.error_code()];
    if (!end.status.ok()) {
      tokens_of_cut_off += static_cast<double>(end.token_ids.size());
      return;
    }
    EXPECT_EQ(end.last.usage().generated_tokens(), end.token_ids.size());
    prompt_tokens += end.last.usage().prompt_tokens();
    generated_tokens += end.last.usage().generated_tokens();
  }
  void Add(const Told& other) {
    for (const auto& [code, count] : other.calls) calls[code] += count;
    prompt_tokens += other.prompt_tokens;
    generated_tokens += other.generated_tokens;
    tokens_of_cut_off += other.tokens_of_cut_off;
  }
};

// One call of a random kind: finished, ended by a stop string or by a time limit, cancelled by the
// client, out of time, or invalid. The server may refuse any of them.
Collected RandomCall(Harness& harness, std::mt19937* random) {
  v1::GenerateRequest request = harness.Saying(" one two three four five six seven");
  grpc::ClientContext context;
  context.AddMetadata("x-tenant-id", absl::StrCat("tenant", (*random)() % 6));
  const auto endless = [&] {
    request.mutable_stopping()->set_ignore_eos(true);
    request.mutable_stopping()->set_max_new_tokens(4000);
  };
  switch ((*random)() % 6) {
    case 1:
      request.mutable_stopping()->add_stop_strings(" three");
      break;
    case 2:
      endless();
      request.mutable_stopping()->set_time_limit_ms(20);
      break;
    case 3: {
      endless();
      const auto reader = harness.stub().GenerateStream(&context, request);
      v1::GenerateResponse first;
      if (!reader->Read(&first)) return Collect(reader.get());
      context.TryCancel();
      Collected rest = Collect(reader.get());
      rest.token_ids.insert(rest.token_ids.end(), first.token_ids().begin(),
                            first.token_ids().end());
      return rest;
    }
    case 4:
      endless();
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
      break;
    case 5:
      request.mutable_sampling()->set_temperature(-1);
      break;
    default:
      break;
  }
  return Stream(harness.stub(), request, &context);
}

// Tokens by outcome and tenant, and why they were wasted. `left`, `late`: calls that clients
// cancelled and that ran out of time.
void ExpectTokensAsTold(const Exposition& metrics, const Told& told, double left, double late) {
  const auto tokens = [&](const std::string& family, const char* kind, const char* outcome) {
    return metrics.Sum(
        family, {absl::StrCat("kind=\"", kind, "\""), absl::StrCat("outcome=\"", outcome, "\"")});
  };
  const double prompt = static_cast<double>(Tokens("Once upon a time").size()) + 1;  // and BOS
  EXPECT_EQ(tokens("fewbit_tokens_total", "prompt", "delivered"), told.prompt_tokens);
  EXPECT_EQ(tokens("fewbit_tokens_total", "generated", "delivered"), told.generated_tokens);
  EXPECT_EQ(tokens("fewbit_tokens_total", "prompt", "aborted"), prompt * (left + late));
  EXPECT_GE(tokens("fewbit_tokens_total", "generated", "aborted"), told.tokens_of_cut_off);
  EXPECT_EQ(metrics.Sum("fewbit_tokens_total", {"kind=\"generated\""}),
            metrics.Sum("fewbit_request_generated_tokens_sum"));
  const auto wasted = [&](const char* kind, const char* reason) {
    return metrics.Sum("fewbit_wasted_tokens_total", {absl::StrCat("kind=\"", kind, "\""),
                                                      absl::StrCat("reason=\"", reason, "\"")});
  };
  for (const char* kind : {"prompt", "generated"}) {
    double sum = 0.0;
    for (const char* reason :
         {"client_left", "deadline", "slow_reader", "internal", "after_stop"}) {
      sum += wasted(kind, reason);
    }
    EXPECT_EQ(sum, tokens("fewbit_tokens_total", kind, "aborted")) << kind;
  }
  EXPECT_EQ(wasted("prompt", "client_left"), prompt * left);
  EXPECT_EQ(wasted("prompt", "deadline"), prompt * late);
  EXPECT_GT(wasted("generated", "client_left"), 0.0);
  for (const char* kind : {"prompt", "generated"}) {
    for (const char* outcome : {"delivered", "aborted"}) {
      EXPECT_EQ(tokens("fewbit_tenant_tokens_total", kind, outcome),
                tokens("fewbit_tokens_total", kind, outcome));
    }
  }
}

TEST_P(StepsInFlightTest, TokensAndCallsAreWhatClientsWereTold) {
  HarnessOptions options = Priced();
  options.step_time = absl::Milliseconds(1);
  options.steps_in_flight = GetParam();
  options.config.max_running = 3;
  options.config.max_waiting = 1;
  options.config.max_tenants = 3;
  Harness harness(options);
  Told told;
  Mutex mu;
  std::vector<std::thread> clients;
  for (uint32_t client = 0; client < 6; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(client);
      Told mine;
      for (int i = 0; i < 20; ++i) mine.Add(RandomCall(harness, &random));
      MutexLock lock(&mu);
      told.Add(mine);
    });
  }
  for (std::thread& client : clients) client.join();
  harness.ExpectIdle();

  const Exposition metrics = Read(harness);
  const auto calls = [&](const std::string& code) {
    return metrics.Sum("fewbit_requests_total", {absl::StrCat("code=\"", code, "\"")});
  };
  EXPECT_EQ(calls("OK"), told.calls[grpc::StatusCode::OK]);
  EXPECT_EQ(calls("INVALID_ARGUMENT"), told.calls[grpc::StatusCode::INVALID_ARGUMENT]);
  EXPECT_EQ(calls("RESOURCE_EXHAUSTED"), told.calls[grpc::StatusCode::RESOURCE_EXHAUSTED]);
  const double cut_off = calls("CANCELLED") + calls("DEADLINE_EXCEEDED");
  EXPECT_EQ(cut_off, told.calls[grpc::StatusCode::CANCELLED] +
                         told.calls[grpc::StatusCode::DEADLINE_EXCEEDED]);
  EXPECT_EQ(metrics.Sum("fewbit_requests_total"), 6 * 20);
  for (const char* code : {"OK", "INVALID_ARGUMENT", "CANCELLED", "DEADLINE_EXCEEDED"}) {
    EXPECT_GT(calls(code), 0) << code;
  }

  ExpectTokensAsTold(metrics, told, calls("CANCELLED"), calls("DEADLINE_EXCEEDED"));
  EXPECT_EQ(metrics.Sum("fewbit_dropped_step_tokens_total") > 0, GetParam() > 1);
  EXPECT_GT(metrics.Sum("fewbit_tenant_tokens_total", {"tenant=\"other\""}), 0);
  EXPECT_EQ(metrics.Sum("fewbit_tenant_tokens_total", {"tenant=\"none\""}), 0);
  const double used = metrics.Sum("fewbit_cost_usd_total", {"basis=\"used\""});
  EXPECT_LE(metrics.Sum("fewbit_tenant_cost_usd_total"), used * (1 + 1e-9));
  EXPECT_GE(metrics.Sum("fewbit_tenant_cost_usd_total"), used * 0.5);
}

TEST(AccountingTest, TenantsTakeABoundedNumberOfSeries) {
  HarnessOptions options = Priced();
  options.config.max_tenants = 2;
  Harness harness(options);
  const auto call = [&](const std::string& tenant) {
    grpc::ClientContext context;
    context.AddMetadata("x-tenant-id", tenant);
    return Stream(harness.stub(), harness.Saying(" x"), &context).status;
  };
  EXPECT_TRUE(call("first").ok());
  EXPECT_TRUE(call("second").ok());
  harness.ExpectIdle();
  const size_t series = Read(harness).num_series();
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(call(absl::StrCat("one-more.", i)).ok());
  EXPECT_TRUE(call("other").ok());
  EXPECT_TRUE(call("").ok());
  for (const std::string& bad : {std::string(65, 'a'), std::string("a b"), std::string("a\"b")}) {
    const grpc::Status refused = call(bad);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << bad;
    EXPECT_THAT(refused.error_message(), HasSubstr("x-tenant-id"));
  }
  harness.ExpectIdle();
  const Exposition metrics = Read(harness);
  EXPECT_EQ(metrics.num_series(), series);
  const std::string prompts = "kind=\"prompt\"";
  const double first = metrics.Sum("fewbit_tenant_tokens_total", {"tenant=\"first\"", prompts});
  EXPECT_GT(first, 0);
  EXPECT_EQ(metrics.Sum("fewbit_tenant_tokens_total", {"tenant=\"other\"", prompts}), 21 * first);
  EXPECT_EQ(metrics.Sum("fewbit_tenant_tokens_total", {"tenant=\"none\"", prompts}), first);
}

// Everything that a server can show: targets, a price, a GPU, and a request that ran.
Exposition Everything(const std::vector<std::string>& tenants) {
  HarnessOptions options = Priced();
  options.config.max_tenants = 1000;
  options.pci_bus_id = kFakePciBusId;
  Harness harness(options);
  Stream(harness.stub(), harness.Saying(" the sun was high"));
  for (const std::string& tenant : tenants) {
    grpc::ClientContext context;
    context.AddMetadata("x-tenant-id", tenant);
    Stream(harness.stub(), harness.Saying(" x"), &context);
  }
  harness.ExpectIdle();
  WaitFor([&] { return Read(harness).families().contains("fewbit_device_info"); }, "the GPU");
  return Read(harness);
}

std::string Readme() {
  std::ifstream file(FEWBIT_SOURCE_DIR "/server/README.md");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(AccountingTest, AScrapeIsWhatTheTableSays) {
  const Exposition metrics = Everything({});
  std::map<std::string, Exposition::Family> expected;
  for (const MetricRow& row : MetricTable()) {
    Exposition::Family& family = expected[row.name];
    family.help = row.help;
    const bool counter = row.type == prometheus::MetricType::Counter;
    const bool gauge = row.type == prometheus::MetricType::Gauge;
    family.type = counter ? "counter" : gauge ? "gauge" : "histogram";
    family.labels = {IsAlias(row) ? "model_name" : "model"};
    for (absl::string_view label : absl::StrSplit(row.labels, ", ", absl::SkipEmpty())) {
      family.labels.emplace(label);
    }
  }
  for (const auto& [name, family] : metrics.families()) {
    ASSERT_TRUE(expected.contains(name)) << name << " is not in the table";
    EXPECT_EQ(family.help, expected[name].help) << name;
    EXPECT_EQ(family.type, expected[name].type) << name;
    EXPECT_EQ(family.labels, expected[name].labels) << name;
    expected.erase(name);
  }
  for (const auto& [name, family] : expected) ADD_FAILURE() << name << " was not scraped";
}

TEST(AccountingTest, TheReferenceInTheReadmeIsTheTable) {
  EXPECT_TRUE(absl::StrContains(Readme(), "\n\n" + MetricsReference() + "\n"))
      << "put the output of metrics-reference in place of the table in server/README.md";
}

TEST(AccountingTest, ThereAreNoMoreSeriesThanTheReadmeSays) {
  constexpr size_t kMost = 380;
  constexpr size_t kFurtherPhases = 7;  // of the start; the harness has one
  const size_t fixed = Everything({}).num_series();
  EXPECT_LE(fixed + kFurtherPhases, kMost);
  EXPECT_EQ(Everything({"a", "b", "c"}).num_series(), fixed + 3 * 5);
  EXPECT_TRUE(absl::StrContains(Readme(),
                                absl::StrCat("at most ", kMost, " series and 5 for every tenant")));
}

}  // namespace
}  // namespace fewbit::testing
