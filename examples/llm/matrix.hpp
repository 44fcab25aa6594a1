// matrix.hpp: the dense types of the example: row-major float matrices, one token or one output feature a row. Used by
// the loader, the model and the evaluation.
#pragma once

#include <Eigen/Dense>

namespace llm {

using Eigen::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXf;
using Token = int;

}  // namespace llm
