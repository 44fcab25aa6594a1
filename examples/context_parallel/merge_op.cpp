#include "merge_op.hpp"

#include <asymkv/attention/merge.hpp>
#include <cstdio>

namespace context_parallel {
namespace {

/// `count` elements of value_dim + 1 floats each; the heads are to merge_attention the heads of one token.
void merge_elements(void* from, void* to, int* count, MPI_Datatype* element) {
  int bytes = 0;
  MPI_Type_size(*element, &bytes);
  const Index stride = Index(bytes) / Index(sizeof(float)), value_dim = stride - 1, heads = *count;
  const auto view = [&](void* data, Index offset, Index dim) {
    return asymkv::Tensor{
        static_cast<float*>(data) + offset, asymkv::ScalarType::f32, 1, heads, dim, heads * stride, stride, 1};
  };
  const asymkv::Status status = asymkv::merge_attention(view(from, 0, value_dim), view(from, value_dim, 1),
                                                        view(to, 0, value_dim), view(to, value_dim, 1));
  if (status.ok()) return;
  // a reduction has no way to fail but this
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::fprintf(stderr, "context_parallel: rank %d: merge: %s\n", rank, status.message());
  MPI_Abort(MPI_COMM_WORLD, 1);
}

}  // namespace

MergeOp::MergeOp(Index value_dim) {
  MPI_Type_contiguous(int(value_dim) + 1, MPI_FLOAT, &element_);
  MPI_Type_commit(&element_);
  MPI_Op_create(merge_elements, /* commutes = */ 1, &op_);
}

MergeOp::~MergeOp() {
  MPI_Op_free(&op_);
  MPI_Type_free(&element_);
}

void MergeOp::all_reduce(AttentionOutput& part, MPI_Comm ranks) const {
  MPI_Allreduce(MPI_IN_PLACE, part.data(), int(part.heads()), element_, op_, ranks);
}

}  // namespace context_parallel
