// merge_op.hpp: the merge of attention over parts of a context as an MPI reduction. Used by the mode `context`; what an
// engine takes from this example.
#pragma once

#include <mpi.h>
#include <asymkv/tensor.hpp>
#include <vector>

namespace context_parallel {

using asymkv::Index;

/// What attend writes for one query, head by head: an element of the reduction is a head's output and, behind it, its
/// log-sum-exp: [heads][value_dim + 1] floats.
class AttentionOutput {
 public:
  AttentionOutput(Index heads, Index value_dim)
      : heads_(heads), value_dim_(value_dim), data_(std::size_t(heads * (value_dim + 1))) {}

  Index heads() const { return heads_; }
  Index value_dim() const { return value_dim_; }
  float* data() { return data_.data(); }
  const std::vector<float>& floats() const { return data_; }
  const float* head(Index head) const { return data_.data() + head * (value_dim_ + 1); }
  float lse(Index h) const { return head(h)[value_dim_]; }

  /// Views for attend and AttentionParams::lse.
  asymkv::Tensor output() { return view(data(), value_dim_); }
  asymkv::Tensor lse() { return view(data() + value_dim_, 1); }

 private:
  asymkv::Tensor view(float* first, Index dim) {
    return {first, asymkv::ScalarType::f32, 1, heads_, dim, heads_ * (value_dim_ + 1), value_dim_ + 1, 1};
  }
  Index heads_, value_dim_;
  std::vector<float> data_;
};

/// An MPI_Op and its datatype; between MPI_Init and MPI_Finalize.
class MergeOp {
 public:
  explicit MergeOp(Index value_dim);
  ~MergeOp();
  MergeOp(const MergeOp&) = delete;
  MergeOp& operator=(const MergeOp&) = delete;

  /// Every rank's part becomes the attention over the parts of all.
  void all_reduce(AttentionOutput& part, MPI_Comm ranks) const;

 private:
  MPI_Datatype element_ = MPI_DATATYPE_NULL;
  MPI_Op op_ = MPI_OP_NULL;
};

}  // namespace context_parallel
