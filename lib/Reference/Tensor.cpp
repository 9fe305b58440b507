//===- Tensor.cpp - values over named axes ----------------------------------------------------===//
#include "lib/Reference/Tensor.h"

#include "llvm/ADT/STLExtras.h"

#include <cassert>

using namespace kvpc::reference;
using llvm::ArrayRef;
using llvm::StringRef;

int64_t kvpc::reference::countOf(ArrayRef<Axis> axes) {
  int64_t n = 1;
  for (const Axis &axis : axes)
    n *= axis.extent;
  return n;
}

Axes kvpc::reference::unite(ArrayRef<Axis> a, ArrayRef<Axis> b) {
  Axes axes(a.begin(), a.end());
  for (const Axis &axis : b) {
    auto it = llvm::find_if(axes, [&](const Axis &x) { return x.name == axis.name; });
    if (it == axes.end())
      axes.push_back(axis);
    else
      assert(it->extent == axis.extent && "shared axes have one extent");
  }
  return axes;
}

Axes kvpc::reference::without(ArrayRef<Axis> axes, ArrayRef<StringRef> names) {
  Axes rest;
  for (const Axis &axis : axes)
    if (!llvm::is_contained(names, axis.name))
      rest.push_back(axis);
  return rest;
}

Tensor::Tensor(Axes givenAxes, Element givenElement)
    : axes(std::move(givenAxes)), element(givenElement) {
  size_t n = countOf(axes);
  if (element == Element::Float)
    floats.resize(n);
  else if (element == Element::Int)
    ints.resize(n);
  else
    bools.resize(n);
}

Tensor Tensor::ofFloats(Axes axes, std::vector<float> values) {
  assert(static_cast<int64_t>(values.size()) == countOf(axes));
  Tensor t;
  t.axes = std::move(axes);
  t.element = Element::Float;
  t.floats = std::move(values);
  return t;
}

Tensor Tensor::ofInts(Axes axes, std::vector<int64_t> values) {
  assert(static_cast<int64_t>(values.size()) == countOf(axes));
  Tensor t;
  t.axes = std::move(axes);
  t.element = Element::Int;
  t.ints = std::move(values);
  return t;
}

Tensor Tensor::ofBools(Axes axes, std::vector<uint8_t> values) {
  assert(static_cast<int64_t>(values.size()) == countOf(axes));
  Tensor t;
  t.axes = std::move(axes);
  t.element = Element::Bool;
  t.bools = std::move(values);
  return t;
}

const Axis *Tensor::find(StringRef name) const {
  auto it = llvm::find_if(axes, [&](const Axis &axis) { return axis.name == name; });
  return it == axes.end() ? nullptr : &*it;
}

int64_t Tensor::extent(StringRef name) const {
  const Axis *axis = find(name);
  assert(axis && "no such axis");
  return axis->extent;
}

double Tensor::number(int64_t offset) const {
  if (element == Element::Float)
    return floats[offset];
  return element == Element::Int ? static_cast<double>(ints[offset]) : bools[offset];
}

void Tensor::set(int64_t offset, double x) {
  if (element == Element::Float)
    floats[offset] = static_cast<float>(x);
  else if (element == Element::Int)
    ints[offset] = static_cast<int64_t>(x);
  else
    bools[offset] = x != 0;
}

void Tensor::copy(int64_t offset, const Tensor &from, int64_t fromOffset) {
  assert(element == from.element);
  if (element == Element::Float)
    floats[offset] = from.floats[fromOffset];
  else if (element == Element::Int)
    ints[offset] = from.ints[fromOffset];
  else
    bools[offset] = from.bools[fromOffset];
}

Tensor Tensor::permuted(ArrayRef<StringRef> names) const {
  assert(names.size() == axes.size());
  Axes order;
  for (StringRef name : names)
    order.push_back({name.str(), extent(name)});
  Tensor out(order, element);
  out.present = present;
  std::vector<int64_t> from = offsets(order, *this);
  for (size_t i = 0; i < from.size(); ++i)
    out.copy(i, *this, from[i]);
  return out;
}

std::vector<int64_t> kvpc::reference::offsets(ArrayRef<Axis> axes, const Tensor &tensor) {
  std::vector<int64_t> out{0};
  for (const Axis &axis : axes) {
    int64_t stride = 0, below = 1;
    for (const Axis &own : llvm::reverse(tensor.axes)) {
      if (own.name == axis.name)
        stride = below;
      below *= own.extent;
    }
    std::vector<int64_t> next;
    next.reserve(out.size() * axis.extent);
    for (int64_t base : out)
      for (int64_t i = 0; i < axis.extent; ++i)
        next.push_back(base + i * stride);
    out = std::move(next);
  }
  return out;
}

std::shared_ptr<const Tensor> kvpc::reference::both(std::shared_ptr<const Tensor> a,
                                                    std::shared_ptr<const Tensor> b) {
  if (!a || !b || a == b)
    return a ? a : b;
  auto out = std::make_shared<Tensor>(unite(a->axes, b->axes), Element::Bool);
  std::vector<int64_t> fromA = offsets(out->axes, *a), fromB = offsets(out->axes, *b);
  for (size_t i = 0; i < out->bools.size(); ++i)
    out->bools[i] = a->bools[fromA[i]] && b->bools[fromB[i]];
  return out;
}

Rows::Rows(const Tensor &input, ArrayRef<StringRef> names, const Tensor *where)
    : kept(without(input.axes, names)) {
  for (StringRef name : names)
    along.push_back(*input.find(name));
  outer = offsets(kept, input);
  inner = offsets(along, input);
  for (const Tensor *tensor : {where, input.present.get()})
    if (tensor)
      conditions.push_back({tensor, offsets(kept, *tensor), offsets(along, *tensor)});
}

bool Rows::admits(int64_t row, int64_t i) const {
  return llvm::all_of(conditions, [&](const Condition &c) {
    return c.tensor->bools[c.outer[row] + c.inner[i]] != 0;
  });
}
