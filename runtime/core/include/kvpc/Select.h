//===- Select.h - the selection primitive alone -----------------------------------------------===//
#ifndef KVPC_SELECT_H
#define KVPC_SELECT_H

#include "kvpc/Header.h"
#include "kvpc/abi.h"

namespace kvpc {
inline namespace runtime {

/// Rows of scores, `stride` elements apart; the scores of a row are contiguous.
struct SelectCall {
  const float *scores = nullptr;
  const uint8_t *isProtected = nullptr; // dense [row, token], or null
  int64_t rows = 0, tokens = 0, stride = 0;
  const int64_t *start = nullptr, *length = nullptr; // per row; null: all tokens
  Value budget;                                      // drop or keep
  int64_t *out = nullptr;                            // [row, kept], -1 past the count
  int64_t kept = 0;                                  // largest count, from `select` with out = null
  int64_t *counts = nullptr;                         // [row]
  int64_t threads = 1;                               // shares of the rows
  kvpc_parallel_for parallelFor = nullptr;           // null: the caller alone
  void *parallelContext = nullptr;
};

/// The best entries of each row by the rules of every press: exactly the budget's size, ties to the
/// earlier, NaN below everything, protected above +inf, ascending. With `out` null only `kept` is
/// set.
Failure select(SelectCall &call);

} // namespace runtime
} // namespace kvpc

#endif
