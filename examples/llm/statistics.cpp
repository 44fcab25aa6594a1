// statistics.cpp: sums over a vocabulary run in float within a segment, for the vector units, and in double over the
// segments.
#include "statistics.hpp"

#include <algorithm>
#include <cmath>

namespace llm {
namespace {

template <class Expression>
double segmented_sum(const Expression& x) {
  constexpr Index segment = 512;
  double sum = 0;
  for (Index i = 0; i < x.size(); i += segment) sum += double(x.segment(i, std::min(segment, x.size() - i)).sum());
  return sum;
}

}  // namespace

void to_log_probabilities(Matrix& logits) {
  for (Index i = 0; i < logits.rows(); ++i) {
    auto row = logits.row(i).transpose().array();
    row -= row.maxCoeff();
    row -= float(std::log(segmented_sum(row.exp())));
  }
}

double divergence(const Eigen::Ref<const Eigen::ArrayXf>& reference, const Eigen::Ref<const Eigen::ArrayXf>& other) {
  return segmented_sum(reference.exp() * (reference - other));
}

Token most_probable(const Eigen::Ref<const Eigen::RowVectorXf>& row) {
  Index best = 0;
  row.maxCoeff(&best);
  return Token(best);
}

double quantile(std::vector<float>& values, double share) {
  const Index rank = Index(std::ceil(share * double(values.size()))) - 1;
  const auto at = values.begin() + std::clamp(rank, Index(0), Index(values.size()) - 1);
  std::nth_element(values.begin(), at, values.end());
  return double(*at);
}

}  // namespace llm
