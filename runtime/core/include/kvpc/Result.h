//===- Result.h - errors as values ------------------------------------------------------------===//
//
// Nothing in runtime/core throws or exits. A message says what is there, what is needed and how to
// mend it; its code is stable and stands at the end of what hosts show: `message [kvm-code]`.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_RESULT_H
#define KVPC_RESULT_H

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace kvpc {
inline namespace runtime {

enum class ErrorCode {
  // of a file
  File,
  NotAModule,
  Truncated,
  Format,
  Damaged,
  Digest,
  Target,
  // of what is asked of a module
  Press,
  Parameter,
  StaticParameter,
  // of a call
  Dtype,
  Channels,
  Shape,
  Stride,
  Device,
  MissingInput,
  ExtraInput,
  State,
  Require,
  Unsupported,
  Memory,
};

/// "kvm-truncated" and so on.
std::string_view codeName(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;

  /// The message with its code, as hosts show it.
  std::string text() const;
};

/// Empty: all is well.
using Failure = std::optional<Error>;

template <class T>
class Result {
public:
  Result(T value) : content(std::move(value)) {}
  Result(Error error) : content(std::move(error)) {}

  explicit operator bool() const { return content.index() == 0; }
  T &operator*() { return std::get<0>(content); }
  const T &operator*() const { return std::get<0>(content); }
  T *operator->() { return &std::get<0>(content); }
  const T *operator->() const { return &std::get<0>(content); }
  const Error &error() const { return std::get<1>(content); }

private:
  std::variant<T, Error> content;
};

} // namespace runtime
} // namespace kvpc

#endif
