//===- Elementwise.cpp - functions of entries that share an index -----------------------------===//
#include "lib/Reference/Operations.h"

#include "llvm/ADT/STLExtras.h"

using namespace kvpc;
using namespace kvpc::reference;
using kvp::Fn;

namespace {

/// One entry of the result from one entry of each operand.
void apply(Fn fn, llvm::ArrayRef<const Tensor *> in, llvm::ArrayRef<int64_t> at, Tensor &out,
           int64_t to) {
  switch (fn) {
  case Fn::And:
    out.bools[to] = in[0]->bools[at[0]] && in[1]->bools[at[1]];
    return;
  case Fn::Or:
    out.bools[to] = in[0]->bools[at[0]] || in[1]->bools[at[1]];
    return;
  case Fn::Not:
    out.bools[to] = !in[0]->bools[at[0]];
    return;
  case Fn::Where: {
    int chosen = in[0]->bools[at[0]] ? 1 : 2;
    if (in[chosen]->element == out.element)
      out.copy(to, *in[chosen], at[chosen]);
    else // an i64 among floats
      out.set(to, in[chosen]->number(at[chosen]));
    return;
  }
  default:
    break;
  }
  bool integers = llvm::all_of(in, [](const Tensor *t) { return t->element == Element::Int; });
  llvm::SmallVector<int64_t, 3> ints;
  llvm::SmallVector<double, 3> numbers;
  for (auto [tensor, offset] : llvm::zip_equal(in, at)) {
    if (integers)
      ints.push_back(tensor->ints[offset]);
    // Among floats an integer is the nearest f32.
    numbers.push_back(static_cast<float>(tensor->number(offset)));
  }
  switch (fn) {
  case Fn::Lt:
  case Fn::Le:
  case Fn::Eq:
  case Fn::Ne:
    if (!integers)
      out.bools[to] = kvp::evaluateCompare(fn, numbers[0], numbers[1]);
    else if (fn == Fn::Lt || fn == Fn::Le)
      out.bools[to] = fn == Fn::Lt ? ints[0] < ints[1] : ints[0] <= ints[1];
    else
      out.bools[to] = (ints[0] == ints[1]) == (fn == Fn::Eq);
    return;
  case Fn::Floor:
  case Fn::Round:
  case Fn::Int:
    out.ints[to] = integers ? ints[0] : kvp::floatToInt(fn, numbers[0]);
    return;
  default:
    if (out.element == Element::Int)
      out.ints[to] = kvp::evaluateInt(fn, ints);
    else
      out.floats[to] = static_cast<float>(kvp::evaluateFloat(fn, numbers));
  }
}

} // namespace

Tensor kvpc::reference::map(Fn fn, llvm::ArrayRef<const Tensor *> operands, Element result) {
  Axes axes;
  std::shared_ptr<const Tensor> present;
  for (const Tensor *tensor : operands) {
    axes = unite(axes, tensor->axes);
    present = both(present, tensor->present);
  }
  Tensor out(axes, result);
  out.present = present;
  // The last axis apart: tables of offsets stay small.
  Axes inner;
  if (!axes.empty()) {
    inner.push_back(axes.back());
    axes.pop_back();
  }
  std::vector<std::vector<int64_t>> outerOffsets, innerOffsets;
  for (const Tensor *tensor : operands) {
    outerOffsets.push_back(offsets(axes, *tensor));
    innerOffsets.push_back(offsets(inner, *tensor));
  }
  int64_t rows = countOf(axes), length = countOf(inner);
  llvm::SmallVector<int64_t, 3> where(operands.size());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < length; ++i) {
      for (size_t k = 0; k < operands.size(); ++k)
        where[k] = outerOffsets[k][row] + innerOffsets[k][i];
      apply(fn, operands, where, out, row * length + i);
    }
  return out;
}
