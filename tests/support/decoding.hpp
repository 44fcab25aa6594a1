// decoding.hpp: what the tests of both architectures ask of a decoder.
#pragma once

#include <gtest/gtest.h>

#include <random>

#include "decoder.hpp"
#include "policy_cache.hpp"

namespace support {

inline std::vector<llm::Token> random_tokens(std::size_t count, std::size_t vocabulary) {
  std::mt19937 generator(3);
  std::vector<llm::Token> tokens(count);
  for (llm::Token& t : tokens) t = llm::Token(generator() % vocabulary);
  return tokens;
}

/// Logits of tokens fed `chunk` at once over three threads, against those of single steps on one.
inline void expect_chunks_equal_single_steps(const llm::Model& model, const std::vector<llm::Token>& tokens,
                                             Eigen::Index chunk) {
  const Eigen::Index count = Eigen::Index(tokens.size());
  llm::Workers one(1), three(3);
  llm::Decoder serial(model, one), parallel(model, three);
  const auto chunks = llm::make_cache("float", model.shape.cache_shape(), count);
  const auto single = llm::make_cache("float", model.shape.cache_shape(), count);
  for (Eigen::Index first = 0; first < count; first += chunk) {
    const llm::Matrix at_once = parallel.feed(&tokens[std::size_t(first)], chunk, *chunks, 0);
    for (Eigen::Index i = 0; i < chunk; ++i) {
      const llm::Matrix& logits = serial.feed(&tokens[std::size_t(first + i)], 1, *single, 0);
      ASSERT_LT((logits - at_once.row(i)).cwiseAbs().maxCoeff(), 2e-4f) << first + i;
    }
  }
}

}  // namespace support
