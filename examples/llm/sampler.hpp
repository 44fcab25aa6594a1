// sampler.hpp: the next token from logits. Used by generate.
#pragma once

#include <cstdint>
#include <random>

#include "matrix.hpp"

namespace llm {

class Sampler {
 public:
  /// Temperature 0 takes the most probable token; the same seed draws the same tokens.
  Sampler(float temperature, std::uint64_t seed) : temperature_(temperature), generator_(seed) {}

  Token draw(const Eigen::Ref<const Vector>& logits);

 private:
  float temperature_;
  std::mt19937_64 generator_;
};

}  // namespace llm
