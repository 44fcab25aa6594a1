// check_option.hpp: how a command refuses a number that it was given. Used by eval, passkey and asymmetry.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>

#include "matrix.hpp"

namespace llm {

/// Throws std::runtime_error with the option, its value and the range where the value is not in least..most; `why` says
/// what the range comes from.
inline void check_option(const std::string& option, Index value, Index least,
                         Index most = std::numeric_limits<Index>::max(), const std::string& why = "") {
  if (value >= least && value <= most) return;
  const bool open = most == std::numeric_limits<Index>::max();
  throw std::runtime_error(option + ": is " + std::to_string(value) + "; use " + std::to_string(least) +
                           (open ? " or more" : ".." + std::to_string(most)) + (why.empty() ? "" : " (" + why + ")"));
}

/// The paper's R, as caches take it.
inline void check_residual(Index residual) { check_option("--residual", residual, 1, Index(1) << 32); }

}  // namespace llm
