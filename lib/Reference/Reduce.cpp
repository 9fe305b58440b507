//===- Reduce.cpp - operations that remove axes -----------------------------------------------===//
#include "lib/Reference/Operations.h"

#include "llvm/ADT/STLExtras.h"

#include <cmath>
#include <limits>

using namespace kvpc;
using namespace kvpc::reference;
using kvp::Reduction;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Mean and the sum of squared distances from it.
struct Moments {
  int64_t count = 0;
  double mean = 0, squares = 0;
};

Moments moments(const Tensor &input, const Rows &rows, int64_t row) {
  Moments m;
  double sum = 0;
  for (int64_t i = 0; i < rows.length(); ++i)
    if (rows.admits(row, i)) {
      sum += input.number(rows.at(row, i));
      ++m.count;
    }
  m.mean = m.count ? sum / m.count : 0;
  for (int64_t i = 0; i < rows.length(); ++i)
    if (rows.admits(row, i)) {
      double distance = input.number(rows.at(row, i)) - m.mean;
      m.squares += distance * distance;
    }
  return m;
}

double norm(const Tensor &input, const Rows &rows, int64_t row) {
  double sum = 0;
  for (int64_t i = 0; i < rows.length(); ++i)
    if (rows.admits(row, i)) {
      double x = input.number(rows.at(row, i));
      sum += x * x;
    }
  return std::sqrt(sum);
}

/// The sum, or the highest or lowest entry (a NaN wins over both).
double fold(Reduction kind, const Tensor &input, const Rows &rows, int64_t row) {
  double x = kind == Reduction::Sum ? 0 : kind == Reduction::Max ? -kInfinity : kInfinity;
  for (int64_t i = 0; i < rows.length(); ++i) {
    if (!rows.admits(row, i))
      continue;
    double y = input.number(rows.at(row, i));
    if (kind == Reduction::Sum)
      x += y;
    else if (std::isnan(y) || (kind == Reduction::Max ? y > x : y < x))
      x = y;
    if (std::isnan(x))
      return x;
  }
  return x;
}

int64_t foldInts(Reduction kind, const Tensor &input, const Rows &rows, int64_t row) {
  using Limits = std::numeric_limits<int64_t>;
  int64_t x = kind == Reduction::Sum ? 0 : kind == Reduction::Max ? Limits::min() : Limits::max();
  for (int64_t i = 0; i < rows.length(); ++i) {
    if (!rows.admits(row, i))
      continue;
    int64_t y = input.ints[rows.at(row, i)];
    if (kind == Reduction::Sum)
      x = static_cast<int64_t>(static_cast<uint64_t>(x) + static_cast<uint64_t>(y));
    else
      x = kind == Reduction::Max ? std::max(x, y) : std::min(x, y);
  }
  return x;
}

/// The earliest of the highest entries that are numbers.
int64_t argmax(const Tensor &input, const Rows &rows, int64_t row) {
  int64_t best = -1;
  for (int64_t i = 0; i < rows.length(); ++i)
    if (rows.admits(row, i) && !std::isnan(input.number(rows.at(row, i))) &&
        (best < 0 || input.number(rows.at(row, i)) > input.number(rows.at(row, best))))
      best = i;
  return std::max<int64_t>(best, 0);
}

int64_t countTrue(const Tensor &input, const Rows &rows, int64_t row, int64_t &admitted) {
  int64_t n = 0;
  for (int64_t i = 0; i < rows.length(); ++i)
    if (rows.admits(row, i)) {
      ++admitted;
      n += input.bools[rows.at(row, i)] != 0;
    }
  return n;
}

void reduceRow(Reduction kind, const Tensor &input, const Rows &rows, int64_t row, Tensor &out) {
  int64_t admitted = 0;
  switch (kind) {
  case Reduction::Sum:
  case Reduction::Max:
  case Reduction::Min:
    if (input.element == Element::Int)
      out.ints[row] = foldInts(kind, input, rows, row);
    else
      out.set(row, fold(kind, input, rows, row));
    return;
  case Reduction::Mean:
    out.set(row, moments(input, rows, row).mean);
    return;
  case Reduction::Var:
  case Reduction::Std: {
    Moments m = moments(input, rows, row);
    // Over n - 1: one entry has no spread to tell, as with torch it is 0 / 0.
    double var = m.count ? m.squares / (m.count - 1) : 0;
    out.set(row, kind == Reduction::Var ? var : std::sqrt(var));
    return;
  }
  case Reduction::Norm:
    out.set(row, norm(input, rows, row));
    return;
  case Reduction::Count:
    out.ints[row] = countTrue(input, rows, row, admitted);
    return;
  case Reduction::Any:
    out.bools[row] = countTrue(input, rows, row, admitted) > 0;
    return;
  case Reduction::All:
    out.bools[row] = countTrue(input, rows, row, admitted) == admitted;
    return;
  case Reduction::Argmax:
    out.ints[row] = argmax(input, rows, row);
    return;
  }
}

Element resultOf(Reduction kind, Element input) {
  switch (kind) {
  case Reduction::All:
  case Reduction::Any:
    return Element::Bool;
  case Reduction::Count:
  case Reduction::Argmax:
    return Element::Int;
  case Reduction::Sum:
  case Reduction::Max:
  case Reduction::Min:
    return input;
  default:
    return Element::Float;
  }
}

/// A result is there if anything that went into it was.
std::shared_ptr<const Tensor> presentAfter(const Tensor &input,
                                           llvm::ArrayRef<llvm::StringRef> over) {
  if (!input.present)
    return nullptr;
  llvm::SmallVector<llvm::StringRef> shared;
  for (llvm::StringRef name : over)
    if (input.present->has(name))
      shared.push_back(name);
  if (shared.empty())
    return input.present;
  return std::make_shared<Tensor>(reduce(Reduction::Any, *input.present, shared, nullptr));
}

} // namespace

Tensor kvpc::reference::reduce(Reduction kind, const Tensor &input,
                               llvm::ArrayRef<llvm::StringRef> over, const Tensor *where) {
  Rows rows(input, over, where);
  Tensor out(rows.kept, resultOf(kind, input.element));
  out.present = presentAfter(input, over);
  for (int64_t row = 0; row < rows.count(); ++row)
    reduceRow(kind, input, rows, row, out);
  return out;
}

Tensor kvpc::reference::dot(const Tensor &lhs, const Tensor &rhs, llvm::StringRef over) {
  Axes axes = without(unite(lhs.axes, rhs.axes), over);
  Axes along{*lhs.find(over)};
  Tensor out(axes, Element::Float);
  std::shared_ptr<const Tensor> present = both(lhs.present, rhs.present);
  if (present && present->has(over)) {
    Tensor shape(unite(axes, along), Element::Bool);
    shape.present = present;
    out.present = presentAfter(shape, over);
  } else {
    out.present = present;
  }
  Axes last;
  if (!axes.empty()) {
    last.push_back(axes.back());
    axes.pop_back();
  }
  std::vector<int64_t> leftOuter = offsets(axes, lhs), leftLast = offsets(last, lhs),
                       left = offsets(along, lhs);
  std::vector<int64_t> rightOuter = offsets(axes, rhs), rightLast = offsets(last, rhs),
                       right = offsets(along, rhs);
  std::vector<int64_t> thereOuter, thereLast, there;
  if (present) {
    thereOuter = offsets(axes, *present);
    thereLast = offsets(last, *present);
    there = offsets(along, *present);
  }
  int64_t to = 0;
  for (size_t row = 0; row < leftOuter.size(); ++row)
    for (size_t column = 0; column < leftLast.size(); ++column) {
      double sum = 0;
      for (size_t i = 0; i < left.size(); ++i) {
        if (present && !present->bools[thereOuter[row] + thereLast[column] + there[i]])
          continue;
        sum += static_cast<double>(lhs.floats[leftOuter[row] + leftLast[column] + left[i]]) *
               rhs.floats[rightOuter[row] + rightLast[column] + right[i]];
      }
      out.floats[to++] = static_cast<float>(sum);
    }
  return out;
}
