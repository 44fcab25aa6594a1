// modes.hpp: the two ways to split attention over ranks. Used by main, which counts what they send.
#pragma once

#include "options.hpp"
#include "ranks.hpp"

namespace context_parallel {

/// What a run did, for the count of its bytes.
struct Traffic {
  Index steps = 0;           ///< reductions or gathers of all layers, each
  Index bytes_a_step = 0;    ///< that this rank sends in collective calls, by formula
  const char* formula = "";  ///< in words
};

/// One sequence, whose tokens are split over the ranks; outputs are merged by a reduction, so all ranks have them.
/// Checks the first and the last step, unless told not to; prints on rank 0. Throws std::runtime_error.
Traffic run_context(const Options& options, const Ranks& ranks);

/// Whole sequences on each rank; outputs are gathered on rank 0. Checks and prints likewise.
Traffic run_sequences(const Options& options, const Ranks& ranks);

}  // namespace context_parallel
