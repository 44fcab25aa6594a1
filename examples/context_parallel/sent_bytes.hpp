// sent_bytes.hpp: the bytes that collective calls send, by formula and as Open MPI counts them itself. Used by main and
// both modes.
#pragma once

#include <asymkv/scalar.hpp>
#include <optional>

namespace context_parallel {

using asymkv::Index;

/// What rank `rank` of `ranks` sends in one reduction of `bytes` by recursive doubling: pairs exchange what they have,
/// log2(ranks) times. Of ranks beyond a power of two each hands its part to a neighbour first, which returns the
/// result.
Index all_reduce_bytes(int rank, int ranks, Index bytes);

/// A reduction's messages are Open MPI's own, which calls of MPI do not show; its component pml_monitoring counts all
/// that it hands to the transport, headers not included, and those of collective calls apart from others, but writes
/// its counts only while MPI finalizes (its variables of MPI_T are gone as soon as the component is in use).
class SentBytes {
 public:
  /// Before MPI_Init: turns the counting on, and chooses recursive doubling for reductions, unless the environment
  /// (mpirun --mca) has a choice: the default depends on sizes, and is not documented.
  SentBytes();
  /// After MPI_Finalize: bytes that this rank sent in collective calls; none where MPI does not count.
  std::optional<Index> in_collectives(int rank) const;

 private:
  long process_;
};

}  // namespace context_parallel
