#include "runtime/quantize/html_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace fewbit::html {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::string RenderItem(Item item) {
  Page page;
  page.sections.push_back({.title = "S", .items = {std::move(item)}});
  const std::string text = Render(page);
  return text.substr(text.find("<section>"));
}

TEST(HtmlPageTest, NeedsNothingElse) {
  Page page;
  page.title = "T";
  const std::string text = Render(page);
  EXPECT_THAT(text, HasSubstr("default-src 'none'"));
  EXPECT_THAT(text, HasSubstr("<meta charset=\"utf-8\">"));
  for (const char* loader :
       {"<script", "<link", "<img", "<iframe", "url(", "@import", "http:", "src="}) {
    EXPECT_THAT(text, Not(HasSubstr(loader)));
  }
}

// Whatever a directory or a config says: no text of the record can become markup.
TEST(HtmlPageTest, EveryTextIsEscaped) {
  const std::string evil = "<b onclick='x'>\"&amp;\x01</b>";
  const std::string harmless = "&lt;b onclick=&#39;x&#39;&gt;&quot;&amp;amp;\xEF\xBF\xBD&lt;/b&gt;";
  Page page;
  page.title = page.subtitle = page.footer = evil;
  page.figures.push_back({.name = evil, .value = evil, .note = evil});
  Section section{.title = evil, .items = {}};
  section.items.push_back(Text{evil});
  section.items.push_back(Code{evil});
  section.items.push_back(Table{.columns = {{evil}}, .rows = {{evil}}});
  section.items.push_back(HeatMap{.title = evil,
                                  .corner = evil,
                                  .rows = {evil},
                                  .columns = {evil},
                                  .values = {1.0},
                                  .labels = {evil},
                                  .legend = evil});
  section.items.push_back(CellMap{
      .title = evil, .rows = {evil}, .values = {{1.0f}}, .axis = evil, .low = evil, .high = evil});
  section.items.push_back(Chart{.title = evil,
                                .x_label = evil,
                                .y_label = evil,
                                .series = {{.name = evil, .points = {{1.0, 2.0}}}}});
  page.sections.push_back(section);
  const std::string text = Render(page);
  EXPECT_THAT(text, Not(HasSubstr("<b ")));
  EXPECT_THAT(text, Not(HasSubstr("onclick='")));
  // Titles are said twice where a drawing needs a name for who does not see it.
  EXPECT_EQ(Count(text, harmless), 4 + 3 + 1 + 2 + 2 + 6 + 6 + 5);
  EXPECT_EQ(Escaped("a\nb\tc\rd"),
            "a\nb\tc\xEF\xBF\xBD"
            "d");
}

TEST(HtmlPageTest, ATableKeepsItsOrderAndMarksItsTotal) {
  const std::string text = RenderItem(Table{.columns = {{"name"}, {"count", true}},
                                            .rows = {{"q", "1"}, {"k", "22"}, {"all", "23"}},
                                            .total = true});
  EXPECT_THAT(text, HasSubstr("<th>name</th><th class=\"n\">count</th>"));
  EXPECT_THAT(text, HasSubstr("<tr><td>q</td><td class=\"n\">1</td></tr>\n<tr><td>k</td>"));
  EXPECT_THAT(text, HasSubstr("<tr class=\"total\"><td>all</td><td class=\"n\">23</td></tr>"));
  EXPECT_EQ(Count(text, "class=\"total\""), 1);
}

TEST(HtmlPageTest, AHeatMapColoursFromTheSmallestToTheLargest) {
  const std::string text = RenderItem(HeatMap{.rows = {"0", "1"},
                                              .columns = {"q", "k"},
                                              .values = {2.0, 4.0, 2.5, NAN},
                                              .labels = {"2.0", "4.0", "2.5", "unused"}});
  EXPECT_THAT(
      text, HasSubstr("<td style=\"--v:0%\">2.0</td><td class=\"h\" style=\"--v:100%\">4.0</td>"));
  EXPECT_THAT(text, HasSubstr("<td style=\"--v:25%\">2.5</td><td class=\"none\"></td>"));
  EXPECT_THAT(text, Not(HasSubstr("unused")));
  EXPECT_THAT(
      RenderItem(HeatMap{.rows = {"0"}, .columns = {"q"}, .values = {3.0}, .labels = {"3"}}),
      HasSubstr("--v:0%"));
}

TEST(HtmlPageTest, ACellMapDrawsRuns) {
  const std::string text = RenderItem(CellMap{
      .rows = {"0", "1", "2"},
      .values = {{0, 1, 1, 0, 1}, {0, 0, 0, 0, 0.5f}, {1, 0}},
  });
  EXPECT_THAT(text, HasSubstr("<g transform=\"scale(200 1)\" stroke-width=\".9\">"
                              "<path stroke-opacity=\"0.5\" d=\"M4 1.5h1\"/>"
                              "<path stroke-opacity=\"1\" d=\"M1 0.5h2M4 0.5h1\"/></g>"));
  EXPECT_THAT(text, HasSubstr("<g transform=\"scale(500 1)\" stroke-width=\".9\">"
                              "<path stroke-opacity=\"1\" d=\"M0 2.5h1\"/></g>"));
  EXPECT_THAT(text, Not(HasSubstr("ramp")));
}

TEST(HtmlPageTest, AChartLeavesOutWhatIsNotFinite) {
  const std::string text =
      RenderItem(Chart{.series = {{.name = "train", .points = {{0, 4}, {50, NAN}, {100, 2}}},
                                  {.name = "held out", .points = {}}}});
  EXPECT_THAT(text, HasSubstr("points=\"58.0,26.0 506.0,218.0 \""));
  EXPECT_EQ(Count(text, "<polyline"), 2);
  EXPECT_THAT(text, AllOf(HasSubstr("train"), HasSubstr("held out")));
  EXPECT_EQ(Count(text, "nan"), 0);
  // One point, or none: still a drawing.
  EXPECT_THAT(RenderItem(Chart{.series = {{.name = "a", .points = {{3, 3}}}}}),
              Not(HasSubstr("nan")));
  EXPECT_THAT(RenderItem(Chart{}), HasSubstr("<svg"));
}

TEST(HtmlPageTest, TheSamePageGivesTheSameBytes) {
  Page page;
  page.title = "T";
  page.sections.push_back({.title = "S", .items = {Text{"a"}}});
  EXPECT_EQ(Render(page), Render(page));
}

}  // namespace
}  // namespace fewbit::html
