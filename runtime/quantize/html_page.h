// A report as one HTML page that needs nothing else: no network, no scripts, no fonts; light or
// dark as the reader's browser is, readable on a telephone and on a desk. What it shows is a record
// of sections: tables, heat maps, maps of many narrow cells, line charts (inline SVG). It knows
// nothing of models: quantizer and tuner fill the record. Every text is escaped here.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace fewbit::html {

// A paragraph.
struct Text {
  std::string text{};
};

// Lines in a fixed width, e.g. a command; long ones scroll.
struct Code {
  std::string text{};
};

struct Column {
  std::string name{};
  bool number = false;  // to the right, digits of equal width
};

struct Table {
  std::vector<Column> columns{};
  std::vector<std::vector<std::string>> rows{};  // as many cells as columns
  bool total = false;                            // the last row sums up the others
};

// A matrix of cells large enough for a number each, coloured by value from the smallest to the
// largest.
struct HeatMap {
  std::string title{};
  std::string corner{};  // what the rows are
  std::vector<std::string> rows{};
  std::vector<std::string> columns{};
  std::vector<double> values{};       // [rows * columns]; NaN: an empty cell
  std::vector<std::string> labels{};  // likewise, what stands in the cells
  std::string legend{};               // what is shown, with its unit
};

// Rows of many narrow cells without text, each 0 (background) to 1 (full colour); rows may differ
// in length and are all drawn equally wide.
struct CellMap {
  std::string title{};
  std::vector<std::string> rows{};
  std::vector<std::vector<float>> values{};  // [rows][cells]
  std::string axis{};                        // what runs to the right
  std::string low{}, high{};                 // what 0 and 1 stand for; both empty: no legend
};

struct Series {
  std::string name{};
  std::vector<std::pair<double, double>> points{};  // x ascending
};

struct Chart {
  std::string title{};
  std::string x_label{};
  std::string y_label{};
  std::vector<Series> series{};  // up to 6; values that are not finite are left out
};

using Item = std::variant<Text, Code, Table, HeatMap, CellMap, Chart>;

struct Section {
  std::string title{};
  std::vector<Item> items{};
};

// A number that is read first, at the top of the page.
struct Figure {
  std::string name{};
  std::string value{};
  std::string note{};  // may be empty
};

struct Page {
  std::string title{};
  std::string subtitle{};
  std::vector<Figure> figures{};
  std::vector<Section> sections{};
  std::string footer{};  // program and version
};

// The whole file. The same page gives the same bytes.
std::string Render(const Page& page);

// `text` with & < > " ' as entities, control characters but newline and tab as U+FFFD.
std::string Escaped(const std::string& text);

}  // namespace fewbit::html
