// status.hpp: how a call says that it failed. The library never throws, prints or aborts: a fallible call returns a
// Status, or a Result<T> that holds either a value or a Status.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <optional>
#include <utility>

#include "asymkv/config.hpp"

ASYMKV_NAMESPACE_BEGIN

enum class ErrorCode {
  ok,
  invalid_argument,  ///< a shape, stride, name or option that makes no sense
  out_of_range,      ///< an index or length outside what exists
  unsupported,       ///< makes sense, but this build or processor does not offer it
  non_finite,        ///< NaN or infinity in keys, values or queries
  overflow,          ///< finite, but too large for the format or for float sums
  out_of_memory,     ///< the allocator returned null
  stream_failed,     ///< a sink or source of the caller's returned false: a full disk, an early end
  corrupt_state,     ///< saved state that is damaged, or no state at all
};

/// Outcome of a call: a code, and for errors one sentence that names the argument and says what to do.
class [[nodiscard]] Status {
 public:
  Status() noexcept { message_[0] = '\0'; }

  [[gnu::format(printf, 2, 3)]] static Status error(ErrorCode code, const char* format, ...) noexcept {
    Status status;
    status.code_ = code;
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(status.message_, sizeof status.message_, format, arguments);
    va_end(arguments);
    return status;
  }

  bool ok() const noexcept { return code_ == ErrorCode::ok; }
  explicit operator bool() const noexcept { return ok(); }
  ErrorCode code() const noexcept { return code_; }
  /// Zero-terminated; empty when ok.
  const char* message() const noexcept { return message_; }

 private:
  ErrorCode code_ = ErrorCode::ok;
  char message_[236];
};

/// A value, or the Status that says why there is none. value(), * and -> require ok().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) noexcept : value_(std::move(value)) {}
  Result(Status error) noexcept : status_(std::move(error)) {}

  bool ok() const noexcept { return value_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }
  const Status& status() const noexcept { return status_; }
  T& value() & noexcept { return *value_; }
  const T& value() const& noexcept { return *value_; }
  T&& value() && noexcept { return std::move(*value_); }
  T& operator*() & noexcept { return *value_; }
  const T& operator*() const& noexcept { return *value_; }
  T&& operator*() && noexcept { return std::move(*value_); }
  T* operator->() noexcept { return &*value_; }
  const T* operator->() const noexcept { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

ASYMKV_NAMESPACE_END
