//===- Operations.h - what every kvp operation on tensors computes ----------------------------===//
//
// Plain functions, one file per group, free of IR. Numbers are f32, computed in double and rounded
// once; sums are double throughout. What each means is said in dialect/IR/KvpOps.td.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_REFERENCE_OPERATIONS_H
#define KVPC_REFERENCE_OPERATIONS_H

#include "dialect/IR/Kvp.h"
#include "lib/Reference/Tensor.h"

#include <optional>

namespace kvpc::reference {

// Elementwise.cpp: operands without axes are host scalars already rounded to f32 where they are
// floats; the result has the union of all axes.
Tensor map(kvp::Fn fn, llvm::ArrayRef<const Tensor *> operands, Element result);

// Reduce.cpp
Tensor reduce(kvp::Reduction kind, const Tensor &input, llvm::ArrayRef<llvm::StringRef> over,
              const Tensor *where);
Tensor dot(const Tensor &lhs, const Tensor &rhs, llvm::StringRef over);

// Along.cpp
Tensor softmax(const Tensor &input, llvm::StringRef axis, const Tensor *where);
Tensor normalize(const Tensor &input, llvm::StringRef axis, const Tensor *where);
Tensor cumsum(const Tensor &input, llvm::StringRef axis, const Tensor *where);
Tensor averagePool(const Tensor &input, llvm::StringRef axis, int64_t size, const Tensor *where);
Tensor maxPool(const Tensor &input, llvm::StringRef axis, int64_t size, const Tensor *where);
Tensor shift(const Tensor &input, llvm::StringRef axis, int64_t by, double fill);

// Order.cpp
/// Whether score `a` stands before `b`: higher first, then -inf, then NaN. Equal ones: false.
bool better(float a, float b);
Tensor sort(const Tensor &input, llvm::StringRef axis, llvm::StringRef to, const Tensor *where);
Tensor rank(const Tensor &input, llvm::ArrayRef<llvm::StringRef> over, const Tensor *protect,
            const Tensor *where);
/// The `count` (clamped to 1..n) best entries of one row, ascending.
std::vector<int64_t> selectBest(llvm::ArrayRef<float> scores, llvm::ArrayRef<uint8_t> protect,
                                int64_t count);

// Axes.cpp
Tensor rename(const Tensor &input, llvm::StringRef from, llvm::StringRef to);
/// The part of an axis that is cut, and how.
struct Cut {
  int64_t size;
  std::optional<int64_t> from, to;
  bool whole = false;

  /// First entry and number of parts on an axis of `extent` entries.
  std::pair<int64_t, int64_t> parts(int64_t extent) const;
  /// One past the last entry.
  int64_t end(int64_t extent) const;
  /// Which slots the parts have, over two axes of these names; null where all have all.
  std::shared_ptr<const Tensor> slots(int64_t extent, llvm::StringRef part,
                                      llvm::StringRef slot) const;
};
Tensor partition(const Tensor &input, llvm::StringRef axis, const Cut &cut);
Tensor join(const Tensor &input, const Tensor &like, llvm::StringRef axis, const Cut &cut,
            double fill);
/// `within`: an axis of slots, of which a short last part has fewer; indices are clamped to those.
Tensor at(const Tensor &input, llvm::StringRef axis, const Tensor &index, bool within = false);

// Rotary.cpp
struct Rope;
/// `by`: positions; `mean`: those of its axes over which the turned values are averaged.
Tensor rotate(const Tensor &input, const Tensor &by, llvm::ArrayRef<llvm::StringRef> mean,
              const Rope &rope);
/// The table over the axes of `by` but those of `mean`, and the given one, of channels.
Tensor rotary(kvp::Wave wave, const Tensor &by, llvm::ArrayRef<llvm::StringRef> mean,
              const Axis &channel, bool back, const Rope &rope);
Tensor pair(const Tensor &input, llvm::StringRef axis, const Rope &rope);
/// Keys [head, token, channel] as they were before the model turned them to `positions`.
Tensor unrotate(const Tensor &keys, const Tensor &positions, const Rope &rope);

// Random.cpp
/// `axes` name head, token, channel and new axes; `positions` are original ones per head and token,
/// `channels` (null: all) the numbers of channels among `width`.
Tensor uniform(int64_t seed, int64_t layer, Axes axes, const Tensor &positions, int64_t width,
               const Tensor *channels);

} // namespace kvpc::reference

#endif
