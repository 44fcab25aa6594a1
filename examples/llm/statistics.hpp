// statistics.hpp: numbers that measurements share: log-probabilities, divergence, quantiles. Used by eval, passkey and
// the tests.
#pragma once

#include <vector>

#include "matrix.hpp"

namespace llm {

/// Logits to log-probabilities, row by row, in place.
void to_log_probabilities(Matrix& logits);

/// KL(reference || other) in nats, of two rows of log-probabilities.
double divergence(const Eigen::Ref<const Eigen::ArrayXf>& reference, const Eigen::Ref<const Eigen::ArrayXf>& other);

/// Index of the greatest element of a row.
Token most_probable(const Eigen::Ref<const Eigen::RowVectorXf>& row);

/// The least element that a share of all (0..1) are below or equal to. Reorders the values, of which there is at least
/// one. O(n).
double quantile(std::vector<float>& values, double share);

}  // namespace llm
