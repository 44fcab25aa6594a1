// check_status.hpp: from a Status to an exception, which main turns into an error that names the rank. Used by all.
#pragma once

#include <asymkv/status.hpp>
#include <stdexcept>
#include <utility>

namespace context_parallel {

inline void check(const asymkv::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

template <class T>
T take(asymkv::Result<T> result) {
  check(result.status());
  return std::move(*result);
}

}  // namespace context_parallel
