//===- AttendKernel.h - attention of a few query rows over one run of entries -----------------===//
//
// Freestanding: no header of this file's users is compiled for a level of instructions that the
// machine may lack.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_TORCH_ATTENDKERNEL_H
#define KVPC_TORCH_ATTENDKERNEL_H

#include <stdint.h>

namespace kvpc::torch {

/// Query rows are taken four at a time; callers pad them, and each row to whole vectors.
constexpr int64_t attendRows = 4, attendLanes = 8;
/// The most rows of one call: bounds the logits on the stack.
constexpr int64_t attendMaxRows = 64;

/// Entries of one head that lie one after the other.
struct AttendRun {
  const void *keys, *values; // f32, or bf16 or f16 as bits
  int64_t keyStride, valueStride;
  int64_t count;
  int64_t keyWidth, valueWidth;
  const float *queries; // [row, keyWidth in whole vectors], scaled, zeros past the width
  int64_t rows;
  /// Whether a query sees an entry: byte `first query * queryStride + entry * entryStride`; null:
  /// all are seen, but for what `causal` hides. Row r is of query (firstRow + r) % queryCount.
  const uint8_t *visible;
  int64_t queryStride, entryStride;
  int64_t firstRow, queryCount;
  /// Query q sees the entries up to `causal + q` of this run.
  int64_t causal;
  bool isCausal;
};

/// What a row has seen so far: the largest logit, the sum of exponents below it, and the values
/// weighted by them, [row, valueWidth].
struct AttendSums {
  float *largest, *total, *mixed;
};

/// Adds a run to the sums. Those of no run: -infinity, 0, zeros.
using AttendFunction = void (*)(const AttendRun &run, const AttendSums &sums);

enum class AttendElement { F32, BF16, F16 };

/// For this machine.
AttendFunction attendFunction(AttendElement element);

} // namespace kvpc::torch

#endif
