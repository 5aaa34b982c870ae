#include "runtime/quantize/html_page.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/check.h"

namespace fewbit::html {
namespace {

// Colours are variables, so that a dark page is the same markup. A value of a heat map is --v, the
// share of the hot colour in its cell.
constexpr char kStyle[] = R"css(
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--text:#1b2330;--soft:#5c6779;
--line:#e1e5eb;
--cold:#eef2f8;--hot:#1f5fc4;--onhot:#fff;--grid:#e6e9ee;--s0:#1f5fc4;--s1:#d9480f;--s2:#2b8a3e;
--s3:#862e9c;--s4:#0b7285;--s5:#a61e4d}
@media (prefers-color-scheme:dark){:root{--page:#0f1319;--card:#171d26;--text:#e4e9f1;
--soft:#95a1b3;--line:#28313e;
--cold:#1e2734;--hot:#6fb1ff;--onhot:#08121f;--grid:#28313e;--s0:#6fb1ff;--s1:#ff922b;
--s2:#69db7c;--s3:#da77f2;--s4:#3bc9db;--s5:#f783ac}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 40px}
h1{font-size:26px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}
h3{font-size:14px;margin:0 0 6px}
p{margin:0 0 12px;max-width:80ch;overflow-wrap:anywhere}
.sub{color:var(--soft);margin:4px 0 22px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin:0 0 16px}
.figure,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.figure{padding:12px 14px}
.figure .name{color:var(--soft);font-size:13px}
.figure .value{font-size:24px;font-weight:650;line-height:1.3;font-variant-numeric:tabular-nums;
white-space:nowrap}
.figure .note{color:var(--soft);font-size:12.5px;line-height:1.4}
section{padding:18px 20px 8px;margin:0 0 16px}
.items{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));
gap:4px 28px}
.items>*{min-width:0;margin:0 0 14px}
.wide{grid-column:1/-1}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px 5px 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:top}
.words td{overflow-wrap:anywhere;min-width:8ch}
th{color:var(--soft);font-weight:600;font-size:13px;white-space:nowrap}
th.n,td.n{text-align:right;padding:5px 0 5px 14px;white-space:nowrap}
tr.total td{font-weight:650;border-bottom:0}
pre{margin:0;padding:12px 14px;background:var(--cold);border-radius:8px;overflow-x:auto;
font:13px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.heat{table-layout:fixed;border-collapse:separate;border-spacing:2px;font-size:12px}
.heat th,.heat td{border:0;padding:2px 1px;text-align:center;overflow:hidden}
.heat td{border-radius:3px;min-width:0;overflow-wrap:normal;
background:color-mix(in oklab,var(--hot) var(--v),var(--cold))}
.heat td.h{color:var(--onhot)}
.heat td.none{background:none}
.heat th{font-size:12px;font-weight:500}
.heat th:first-child{text-align:right;padding-right:5px;width:44px}
.legend{color:var(--soft);font-size:12.5px;display:flex;flex-wrap:wrap;align-items:center;
gap:2px 7px;margin:4px 0 0}
.legend span{white-space:nowrap}
.ramp{width:72px;height:9px;border-radius:3px;
background:linear-gradient(90deg in oklab,var(--cold),var(--hot))}
.swatch{width:12px;height:12px;border-radius:3px}
.cells{display:flex;gap:6px}
.names{position:relative;flex:0 0 24px;font-size:10px;line-height:10px;color:var(--soft)}
.names span{position:absolute;right:0;transform:translateY(-50%)}
.cells svg{display:block;flex:1;min-width:0;background:var(--cold);border-radius:3px}
.cells path{stroke:var(--hot);fill:none}
.axis{margin:3px 0 0 30px}
.axis .key{margin-left:auto;display:inline-flex;align-items:center;gap:7px}
.chart{display:block;width:100%;max-width:680px;height:auto}
.chart text{fill:var(--soft);font-size:12px}
.chart .grid{stroke:var(--grid)}
.chart polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
footer{color:var(--soft);font-size:13px;padding:4px 2px;overflow-wrap:anywhere}
@media (max-width:560px){main{padding:18px 12px 28px}section{padding:14px 12px 4px}
h1{font-size:21px}
.figures{grid-template-columns:repeat(2,1fr);gap:8px}
.figure:last-child:nth-child(odd){grid-column:1/-1}.figure{padding:9px 10px}
.figure .value{font-size:20px}table{font-size:13.5px}th.n,td.n{padding-left:8px}
.heat{font-size:11px;border-spacing:1px}
.heat th:first-child{width:32px}.heat th{font-size:10.5px}}
@media print{body{background:none}section,.figure{break-inside:avoid}}
)css";

constexpr int kLevels = 8;  // of a cell map's colour

bool IsPlain(char c) { return static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t'; }

void AppendText(const std::string& text, std::string* out) {
  absl::StrAppend(out, "<p>", Escaped(text), "</p>\n");
}

void AppendTable(const Table& table, std::string* out) {
  const bool words = std::none_of(table.columns.begin(), table.columns.end(),
                                  [](const Column& column) { return column.number; });
  absl::StrAppend(out, "<div class=\"scroll wide\"><table", words ? " class=\"words\"" : "",
                  "><thead><tr>");
  const auto kind = [&](size_t c) { return table.columns[c].number ? " class=\"n\"" : ""; };
  for (size_t c = 0; c < table.columns.size(); ++c) {
    absl::StrAppend(out, "<th", kind(c), ">", Escaped(table.columns[c].name), "</th>");
  }
  absl::StrAppend(out, "</tr></thead><tbody>\n");
  for (size_t r = 0; r < table.rows.size(); ++r) {
    FEWBIT_CHECK_EQ(table.rows[r].size(), table.columns.size());
    const bool total = table.total && r + 1 == table.rows.size();
    absl::StrAppend(out, total ? "<tr class=\"total\">" : "<tr>");
    for (size_t c = 0; c < table.columns.size(); ++c) {
      absl::StrAppend(out, "<td", kind(c), ">", Escaped(table.rows[r][c]), "</td>");
    }
    absl::StrAppend(out, "</tr>\n");
  }
  absl::StrAppend(out, "</tbody></table></div>\n");
}

// Of the finite ones; {0, 0} when there is none.
std::pair<double, double> RangeOf(const std::vector<double>& values) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  return low <= high ? std::pair(low, high) : std::pair(0.0, 0.0);
}

void AppendHeading(const std::string& title, std::string* out) {
  if (!title.empty()) absl::StrAppend(out, "<h3>", Escaped(title), "</h3>\n");
}

void AppendHeatMap(const HeatMap& map, std::string* out) {
  const size_t columns = map.columns.size();
  FEWBIT_CHECK_EQ(map.values.size(), map.rows.size() * columns);
  FEWBIT_CHECK_EQ(map.labels.size(), map.values.size());
  const auto [low, high] = RangeOf(map.values);
  // White text is read well on the hot colour only.
  constexpr double kOnHot = 0.55;
  absl::StrAppend(out, "<div>");
  AppendHeading(map.title, out);
  absl::StrAppend(out, "<table class=\"heat\"><thead><tr><th>", Escaped(map.corner), "</th>");
  for (const std::string& name : map.columns) absl::StrAppend(out, "<th>", Escaped(name), "</th>");
  absl::StrAppend(out, "</tr></thead><tbody>\n");
  for (size_t r = 0; r < map.rows.size(); ++r) {
    absl::StrAppend(out, "<tr><th>", Escaped(map.rows[r]), "</th>");
    for (size_t c = 0; c < columns; ++c) {
      const double value = map.values[r * columns + c];
      if (!std::isfinite(value)) {
        absl::StrAppend(out, "<td class=\"none\"></td>");
        continue;
      }
      const double share = high > low ? (value - low) / (high - low) : 0.0;
      absl::StrAppendFormat(out, "<td%s style=\"--v:%.0f%%\">%s</td>",
                            share > kOnHot ? " class=\"h\"" : "", 100.0 * share,
                            Escaped(map.labels[r * columns + c]));
    }
    absl::StrAppend(out, "</tr>\n");
  }
  absl::StrAppend(out, "</tbody></table>");
  if (!map.legend.empty()) {
    absl::StrAppend(out, "<div class=\"legend\">", Escaped(map.legend), "</div>");
  }
  absl::StrAppend(out, "</div>\n");
}

// The runs of cells with this level, row after row; cells of all rows given have one width.
std::string PathOfLevel(const std::vector<std::vector<float>>& rows, size_t cells, int level) {
  std::string path;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].size() != cells) continue;
    const auto is_level = [&](size_t i) {
      const float share = std::clamp(rows[r][i], 0.0f, 1.0f);
      return static_cast<int>(std::ceil(share * kLevels)) == level;
    };
    for (size_t begin = 0; begin < cells;) {
      size_t end = begin;
      while (end < cells && is_level(end)) ++end;
      if (end > begin) absl::StrAppend(&path, "M", begin, " ", r, ".5h", end - begin);
      begin = std::max(end, begin + 1);
    }
  }
  return path;
}

void AppendCellMap(const CellMap& map, std::string* out) {
  FEWBIT_CHECK_EQ(map.values.size(), map.rows.size());
  const int rows = static_cast<int>(map.rows.size());
  const int row_pixels = rows <= 12 ? 14 : rows <= 40 ? 9 : 6;
  constexpr int kNamePixels = 12;
  const int every = (kNamePixels + row_pixels - 1) / row_pixels;  // row that is named
  absl::StrAppend(out, "<div>");
  AppendHeading(map.title, out);
  absl::StrAppend(out, "<div class=\"cells\"><div class=\"names\">");
  for (int r = 0; r < rows; r += every) {
    absl::StrAppendFormat(out, "<span style=\"top:%.1fpx\">%s</span>", (r + 0.5) * row_pixels,
                          Escaped(map.rows[r]));
  }
  constexpr double kWidth = 1000.0;
  absl::StrAppendFormat(out,
                        "</div><svg viewBox=\"0 0 %.0f %d\" preserveAspectRatio=\"none\" "
                        "height=\"%d\" width=\"100%%\" role=\"img\" aria-label=\"%s\">",
                        kWidth, std::max(rows, 1), rows * row_pixels, Escaped(map.title));
  std::map<size_t, bool> widths;
  for (const auto& row : map.values) widths[row.size()] = true;
  for (const auto& [cells, _] : widths) {
    if (cells == 0) continue;
    absl::StrAppendFormat(out, "<g transform=\"scale(%.6g 1)\" stroke-width=\".9\">",
                          kWidth / static_cast<double>(cells));
    for (int level = 1; level <= kLevels; ++level) {
      const std::string path = PathOfLevel(map.values, cells, level);
      if (path.empty()) continue;
      absl::StrAppendFormat(out, "<path stroke-opacity=\"%.3g\" d=\"%s\"/>",
                            static_cast<double>(level) / kLevels, path);
    }
    absl::StrAppend(out, "</g>");
  }
  absl::StrAppend(out, "</svg></div><div class=\"axis legend\"><span>", Escaped(map.axis),
                  "</span>");
  if (!map.low.empty() || !map.high.empty()) {
    absl::StrAppend(out, "<span class=\"key\">", Escaped(map.low), "<span class=\"ramp\"></span>",
                    Escaped(map.high), "</span>");
  }
  absl::StrAppend(out, "</div></div>\n");
}

// 1, 2 or 5 times a power of ten, so that `parts` or a few more of them make up `span`.
double NiceStep(double span, int parts) {
  const double power = std::pow(10.0, std::floor(std::log10(span / parts)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= span / parts * 0.999) return factor * power;
  }
  return 10.0 * power;
}

// Where values of one axis go in pixels, and its ticks.
class Axis {
 public:
  Axis(double low, double high, double first_pixel, double last_pixel)
      : low_(low), first_(first_pixel), last_(last_pixel) {
    constexpr int kParts = 5;
    if (!(high > low)) high = low + (low != 0.0 ? std::abs(low) : 1.0);
    step_ = NiceStep(high - low, kParts);
    low_ = std::floor(low / step_) * step_;
    high_ = std::ceil(high / step_ - 1e-9) * step_;
  }
  double At(double value) const {
    return first_ + (last_ - first_) * (value - low_) / (high_ - low_);
  }
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    for (int i = 0; low_ + i * step_ <= high_ + 0.01 * step_; ++i) {
      const double tick = low_ + i * step_;
      ticks.push_back(std::abs(tick) < 1e-9 * step_ ? 0.0 : tick);
    }
    return ticks;
  }

 private:
  double low_, high_ = 0.0, step_ = 0.0;
  const double first_, last_;
};

void AppendLegend(const std::vector<Series>& series, std::string* out) {
  absl::StrAppend(out, "<div class=\"legend\">");
  for (size_t s = 0; s < series.size(); ++s) {
    absl::StrAppendFormat(out, "<span class=\"swatch\" style=\"background:var(--s%d)\"></span>", s);
    absl::StrAppend(out, "<span>", Escaped(series[s].name), "</span>");
  }
  absl::StrAppend(out, "</div>");
}

void AppendChart(const Chart& chart, std::string* out) {
  constexpr size_t kMostSeries = 6;
  constexpr int kWidth = 520, kHeight = 260;
  constexpr int kLeft = 58, kRight = 506, kTop = 26, kBottom = 218;
  FEWBIT_CHECK(chart.series.size() <= kMostSeries) << chart.title;
  std::vector<double> xs, ys;
  for (const Series& series : chart.series) {
    for (const auto& [x, y] : series.points) {
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      xs.push_back(x);
      ys.push_back(y);
    }
  }
  const auto [x_low, x_high] = RangeOf(xs);
  const auto [y_low, y_high] = RangeOf(ys);
  const Axis x(x_low, x_high, kLeft, kRight);
  const Axis y(y_low, y_high, kBottom, kTop);
  absl::StrAppend(out, "<div>");
  AppendHeading(chart.title, out);
  absl::StrAppendFormat(
      out, "<svg class=\"chart\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">", kWidth,
      kHeight, Escaped(chart.title));
  for (const double tick : y.Ticks()) {
    absl::StrAppendFormat(out,
                          "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                          "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>",
                          kLeft, kRight, y.At(tick), y.At(tick), kLeft - 6, y.At(tick) + 4, tick);
  }
  for (const double tick : x.Ticks()) {
    absl::StrAppendFormat(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>",
                          x.At(tick), kBottom + 17, tick);
  }
  absl::StrAppendFormat(out,
                        "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>"
                        "<text x=\"%d\" y=\"14\">%s</text>",
                        (kLeft + kRight) / 2, kHeight - 6, Escaped(chart.x_label), 4,
                        Escaped(chart.y_label));
  for (size_t s = 0; s < chart.series.size(); ++s) {
    absl::StrAppendFormat(out, "<polyline stroke=\"var(--s%d)\" points=\"", s);
    for (const auto& [px, py] : chart.series[s].points) {
      if (!std::isfinite(px) || !std::isfinite(py)) continue;
      absl::StrAppendFormat(out, "%.1f,%.1f ", x.At(px), y.At(py));
    }
    absl::StrAppend(out, "\"/>");
  }
  absl::StrAppend(out, "</svg>");
  AppendLegend(chart.series, out);
  absl::StrAppend(out, "</div>\n");
}

struct ItemWriter {
  std::string* out;
  void operator()(const Text& text) const {
    absl::StrAppend(out, "<div class=\"wide\">");
    AppendText(text.text, out);
    absl::StrAppend(out, "</div>");
  }
  void operator()(const Code& code) const {
    absl::StrAppend(out, "<pre class=\"wide\">", Escaped(code.text), "</pre>\n");
  }
  void operator()(const Table& table) const { AppendTable(table, out); }
  void operator()(const HeatMap& map) const { AppendHeatMap(map, out); }
  void operator()(const CellMap& map) const { AppendCellMap(map, out); }
  void operator()(const Chart& chart) const { AppendChart(chart, out); }
};

void AppendFigures(const std::vector<Figure>& figures, std::string* out) {
  absl::StrAppend(out, "<div class=\"figures\">\n");
  for (const Figure& figure : figures) {
    absl::StrAppend(out, "<div class=\"figure\"><div class=\"name\">", Escaped(figure.name),
                    "</div><div class=\"value\">", Escaped(figure.value),
                    "</div><div class=\"note\">", Escaped(figure.note), "</div></div>\n");
  }
  absl::StrAppend(out, "</div>\n");
}

}  // namespace

std::string Escaped(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (IsPlain(c)) {
          out += c;
        } else {
          out += "\xEF\xBF\xBD";  // U+FFFD
        }
    }
  }
  return out;
}

std::string Render(const Page& page) {
  std::string out = absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      // Nothing may be loaded, whatever a name in the page tries.
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      Escaped(page.title), "</title>\n<style>", kStyle, "</style></head>\n<body><main>\n<h1>",
      Escaped(page.title), "</h1>\n<p class=\"sub\">", Escaped(page.subtitle), "</p>\n");
  if (!page.figures.empty()) AppendFigures(page.figures, &out);
  for (const Section& section : page.sections) {
    absl::StrAppend(&out, "<section><h2>", Escaped(section.title),
                    "</h2>\n<div class=\"items\">\n");
    for (const Item& item : section.items) std::visit(ItemWriter{&out}, item);
    absl::StrAppend(&out, "</div></section>\n");
  }
  absl::StrAppend(&out, "<footer>", Escaped(page.footer), "</footer>\n</main></body></html>\n");
  return out;
}

}  // namespace fewbit::html
