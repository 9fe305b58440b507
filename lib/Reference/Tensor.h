//===- Tensor.h - values over named axes ------------------------------------------------------===//
//
// What the reference interpreter computes with: dense, row-major, small enough to read. An entry
// may be absent (the missing slots of a short last part, the tail of a head that kept fewer
// tokens): `present` says which are there, over some of the tensor's axes. Absent entries hold
// unspecified numbers and take part in no reduction.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_REFERENCE_TENSOR_H
#define KVPC_REFERENCE_TENSOR_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace kvpc::reference {

struct Axis {
  std::string name;
  int64_t extent;
};
using Axes = std::vector<Axis>;

/// Number of index tuples.
int64_t countOf(llvm::ArrayRef<Axis> axes);
/// Axes of `a`, then those of `b` that `a` lacks.
Axes unite(llvm::ArrayRef<Axis> a, llvm::ArrayRef<Axis> b);
/// `axes` without those named.
Axes without(llvm::ArrayRef<Axis> axes, llvm::ArrayRef<llvm::StringRef> names);

enum class Element { Bool, Int, Float };

class Tensor {
public:
  Tensor() = default;
  /// All entries 0.
  Tensor(Axes axes, Element element);

  static Tensor ofFloats(Axes axes, std::vector<float> values);
  static Tensor ofInts(Axes axes, std::vector<int64_t> values);
  static Tensor ofBools(Axes axes, std::vector<uint8_t> values);

  Axes axes;
  Element element = Element::Float;
  /// Exactly one of these has `countOf(axes)` entries.
  std::vector<float> floats;
  std::vector<int64_t> ints;
  std::vector<uint8_t> bools;
  /// i1 over a subset of `axes`; null: every entry is there.
  std::shared_ptr<const Tensor> present;

  const Axis *find(llvm::StringRef name) const;
  bool has(llvm::StringRef name) const { return find(name) != nullptr; }
  /// Extent of an axis that the tensor has.
  int64_t extent(llvm::StringRef name) const;
  int64_t size() const { return countOf(axes); }

  /// The entry as a number of the widest kind: i1 gives 0 or 1.
  double number(int64_t offset) const;
  /// Writes `x`, rounded to f32 in a float tensor.
  void set(int64_t offset, double x);
  /// Copies one entry of a tensor of the same element type.
  void copy(int64_t offset, const Tensor &from, int64_t fromOffset);

  /// The same entries with axes in the order of `names`, all of which the tensor has.
  Tensor permuted(llvm::ArrayRef<llvm::StringRef> names) const;
};

/// Offsets into `tensor` of all index tuples of `axes`, the last axis fastest. Axes that the tensor
/// lacks do not move the offset.
std::vector<int64_t> offsets(llvm::ArrayRef<Axis> axes, const Tensor &tensor);

/// i1 tensor that holds where both hold; either may be null.
std::shared_ptr<const Tensor> both(std::shared_ptr<const Tensor> a,
                                   std::shared_ptr<const Tensor> b);

/// A tensor as rows along some of its axes: what reductions, softmax and ranks work on. Rows are
/// numbered by the other axes in their order, entries of a row by `along`, the last fastest.
class Rows {
public:
  Rows(const Tensor &input, llvm::ArrayRef<llvm::StringRef> along, const Tensor *where = nullptr);

  Axes kept;  ///< the axes that are not along
  Axes along; ///< the others
  int64_t count() const { return static_cast<int64_t>(outer.size()); }
  int64_t length() const { return static_cast<int64_t>(inner.size()); }
  /// Offset of an entry in the input (and in a tensor of the same axes).
  int64_t at(int64_t row, int64_t i) const { return outer[row] + inner[i]; }
  /// Whether the entry is there and inside `where`.
  bool admits(int64_t row, int64_t i) const;

private:
  struct Condition {
    const Tensor *tensor;
    std::vector<int64_t> outer, inner;
  };
  std::vector<int64_t> outer, inner;
  std::vector<Condition> conditions;
};

} // namespace kvpc::reference

#endif
