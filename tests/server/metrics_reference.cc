// metrics-reference: prints the table of metrics of server/README.md.
#include <cstdio>

#include "server/metric_table.h"

int main() { std::fputs(fewbit::MetricsReference().c_str(), stdout); }
