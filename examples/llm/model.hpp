// model.hpp: the weights of a decoder as float. Used by the decoder.
#pragma once

#include <vector>

#include "architecture.hpp"
#include "gguf.hpp"
#include "matrix.hpp"

namespace llm {

/// One output feature a row. Products that share their input are stacked into one matrix. A norm that the architecture
/// does not have is empty.
struct Model {
  struct Layer {
    Vector attention_norm, query_norm, key_norm, attention_update_norm;
    Vector hidden_norm, hidden_update_norm;
    Matrix query_key_value;  // heads, then kv_heads keys, then kv_heads values
    Matrix attention_output;
    Matrix gate_up;
    Matrix down;
  };

  /// Throws std::runtime_error for architectures that are not supported, and where tensors are missing, left over or
  /// of a wrong shape.
  explicit Model(const GgufFile& file);
  const Matrix& output() const { return tied_output ? embedding : separate_output; }

  Architecture shape;
  Matrix embedding;
  std::vector<Layer> layers;
  Vector output_norm;
  bool tied_output;  // most small models use the embedding as output matrix, too
  Matrix separate_output;
};

}  // namespace llm
