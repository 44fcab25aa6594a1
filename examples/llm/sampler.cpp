// sampler.cpp: greedy choice, or a draw from the softmax of logits / temperature.
#include "sampler.hpp"

namespace llm {

Token Sampler::draw(const Eigen::Ref<const Vector>& logits) {
  Index best = 0;
  const float greatest = logits.maxCoeff(&best);
  if (temperature_ <= 0.0f) return Token(best);
  const Eigen::ArrayXf weights = ((logits.array() - greatest) / temperature_).exp();
  const double uniform = double(generator_() >> 11) * 0x1p-53;  // std distributions differ between libraries
  double left = uniform * weights.cast<double>().sum();
  for (Index i = 0; i < weights.size(); ++i)
    if ((left -= double(weights[i])) < 0.0) return Token(i);
  return Token(best);
}

}  // namespace llm
