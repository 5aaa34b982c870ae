// Distances between two distributions of the next token, from rows of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

namespace fewbit {

// log of the sum of exp(logits).
inline double LogSumExp(std::span<const float> row) {
  const float largest = *std::max_element(row.begin(), row.end());
  double sum = 0.0;
  for (const float x : row) sum += std::exp(x - largest);
  return static_cast<double>(largest) + std::log(sum);
}

// KL(p || q) in nats; the norms are LogSumExp of the rows.
inline double KlDivergence(std::span<const float> p, double p_norm, std::span<const float> q,
                           double q_norm) {
  double sum = 0.0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = static_cast<double>(p[i]) - p_norm;
    const double log_q = static_cast<double>(q[i]) - q_norm;
    sum += static_cast<double>(std::exp(static_cast<float>(log_p))) * (log_p - log_q);
  }
  return sum;
}

}  // namespace fewbit
