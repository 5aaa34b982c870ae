// The page of a quantization run, on a golden checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "runtime/quantize/html_report.h"
#include "runtime/weights/checkpoint.h"
#include "tests/runtime/checkpoint_files.h"
#include "tests/runtime/quantize_golden.h"

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kCommand[] = "fewbit-quantize --model='a <b>'";

std::string PageOf(const QuantizeOptions& options, const QuantizeReport& report) {
  const auto page = ReportPage(options, report, kCommand);
  EXPECT_TRUE(page.ok()) << page.status();
  return page.ok() ? html::Render(*page) : "";
}

int Matches(const std::string& text, const char* pattern) {
  const std::regex regex(pattern);
  return static_cast<int>(
      std::distance(std::sregex_iterator(text.begin(), text.end(), regex), std::sregex_iterator()));
}

// Two layers of seven matrices; the outliers are many so that there is something to see.
QuantizeOptions Options(const TempDirectory& directory) {
  QuantizeOptions options = GoldenOptions(directory);
  options.outliers = 0.01;
  options.embedding_bits = 8;
  options.program = "1.2.3 <test>";
  return options;
}

TEST(QuantizeReportTest, TheMapsAreThoseOfTheRun) {
  for (const char* method : {"default", "searched"}) {
    const TempDirectory directory;
    QuantizeOptions options = Options(directory);
    options.method = method;
    const auto report = QuantizeGolden(options);
    ASSERT_TRUE(report.ok()) << report.status();
    const auto reader = CheckpointReader::Open(options.out_dir);
    ASSERT_TRUE(reader.ok()) << reader.status();
    const auto maps = ReadWeightMaps(**reader);
    ASSERT_TRUE(maps.ok()) << maps.status();
    ASSERT_EQ(maps->size(), report->matrices.size());
    ASSERT_EQ(maps->size(), size_t{2 * kNumLinearRoles});
    int64_t bytes = 0, outliers = 0;
    for (size_t m = 0; m < maps->size(); ++m) {
      const WeightMap& map = (*maps)[m];
      const MatrixQuality& quality = report->matrices[m];
      EXPECT_EQ(map.weights, quality.weights);
      EXPECT_EQ(map.total_outliers(), quality.outliers);
      const auto strips = static_cast<int64_t>(map.four_bits.size());
      EXPECT_EQ(strips * 16 * map.rows, map.weights);
      EXPECT_EQ(std::count(map.four_bits.begin(), map.four_bits.end(), true) * 16 * map.rows,
                quality.weights4);
      for (size_t s = 0; s < map.four_bits.size(); ++s) {
        EXPECT_TRUE(!map.four_bits[s] || map.outliers[s] == 0) << "only 2-bit strips have outliers";
      }
      bytes += map.bytes;
      outliers += map.total_outliers();
    }
    EXPECT_EQ(bytes, report->bytes.linear_bytes);
    EXPECT_GT(outliers, 0);
  }
  const auto original = CheckpointReader::Open(GoldenDirectory("llama2"));
  EXPECT_EQ(ReadWeightMaps(**original).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(QuantizeReportTest, SaysWhatTheRunFound) {
  const TempDirectory directory;
  const QuantizeOptions options = Options(directory);
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string page = PageOf(options, *report);
  for (const char* title : {"Quality", "Size", "Layer by layer", "Channels with 4 bits",
                            "Where the outliers are", "By kind of matrix", "To make it again"}) {
    EXPECT_THAT(page, HasSubstr("<section><h2>" + std::string(title) + "</h2>"));
  }
  // Four heat maps of 2 x 7 cells; a strip map and an outlier map per kind of matrix.
  EXPECT_EQ(Matches(page, "<table class=\"heat\">"), 4);
  EXPECT_EQ(Matches(page, "<td( class=\"h\")? style=\"--v:"), 4 * 2 * kNumLinearRoles);
  EXPECT_EQ(Matches(page, "<svg "), 2 * kNumLinearRoles);
  const TextScore& score = report->held_out;
  for (const std::string& number :
       {absl::StrFormat("%.4f", score.perplexity),
        absl::StrFormat("%.4f", score.reference_perplexity),
        absl::StrFormat("%.4f", score.kl_divergence), absl::StrFormat("%.3f", report->average_bits),
        absl::StrFormat("%d windows (%d tokens predicted)", score.windows, score.tokens)}) {
    EXPECT_THAT(page, HasSubstr(number));
  }
  // 69632 weights of two bytes become so many bytes.
  EXPECT_EQ(report->original_linear_bytes, 2 * 69632);
  EXPECT_THAT(page, HasSubstr("<td class=\"n\">139.3 kB</td><td class=\"n\">"));
  for (const char* setting : {"probe_windows", "seed", "outliers", "layout_version"}) {
    EXPECT_THAT(page, HasSubstr("<td>" + std::string(setting) + "</td>"));
  }
  EXPECT_THAT(page, HasSubstr("fewbit-quantize 1.2.3 &lt;test&gt;"));
}

TEST(QuantizeReportTest, NamesCannotBecomeMarkup) {
  const TempDirectory directory;
  QuantizeOptions options = Options(directory);
  options.model_dir = directory / "a<script>&\"'";
  std::filesystem::copy(GoldenDirectory("llama2"), options.model_dir);
  options.out_dir = directory / "<img src=x>";
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string page = PageOf(options, *report);
  EXPECT_THAT(page, AllOf(HasSubstr("<title>a&lt;script&gt;&amp;&quot;&#39;, quantized</title>"),
                          HasSubstr("&lt;img src=x&gt;"), HasSubstr("--model=&#39;a &lt;b&gt;")));
  EXPECT_THAT(page, AllOf(Not(HasSubstr("<script")), Not(HasSubstr("<img"))));
}

TEST(QuantizeReportTest, AnInterruptedRunGivesTheSamePage) {
  const TempDirectory directory;
  const QuantizeOptions options = Options(directory);
  const auto undisturbed = QuantizeGolden(options);
  ASSERT_TRUE(undisturbed.ok()) << undisturbed.status();
  const std::string expected = PageOf(options, *undisturbed);
  std::filesystem::remove_all(options.out_dir);
  // One step after the other, each run a little further than the one before.
  for (const int steps : {20, 10, 10}) {
    std::atomic<bool> stop{false};
    int calls = 0;
    const auto stopped = QuantizeCheckpoint(
        options, SomeIds(400), [&](const QuantizeProgress&) { stop = ++calls == steps; }, &stop);
    ASSERT_EQ(stopped.status().code(), absl::StatusCode::kCancelled) << stopped.status();
  }
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(PageOf(options, *report), expected);
}

}  // namespace
}  // namespace fewbit
