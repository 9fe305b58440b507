//===- Along.cpp - operations along an axis that stays ----------------------------------------===//
#include "lib/Reference/Operations.h"

#include <cmath>
#include <limits>

using namespace kvpc::reference;
using llvm::StringRef;

namespace {

/// A result of the input's axes, all 0.
Tensor like(const Tensor &input, Element element) {
  Tensor out(input.axes, element);
  out.present = input.present;
  return out;
}

/// Sum or maximum of the admitted neighbours of every admitted entry.
template <typename Fold>
Tensor pool(const Tensor &input, StringRef axis, int64_t size, const Tensor *where, double start,
            Fold fold) {
  Rows rows(input, axis, where);
  Tensor out = like(input, Element::Float);
  for (int64_t row = 0; row < rows.count(); ++row)
    for (int64_t i = 0; i < rows.length(); ++i) {
      if (!rows.admits(row, i))
        continue;
      double x = start;
      int64_t from = std::max<int64_t>(i - size / 2, 0);
      int64_t to = std::min<int64_t>(i + size / 2, rows.length() - 1);
      for (int64_t j = from; j <= to; ++j)
        if (rows.admits(row, j))
          x = fold(x, input.number(rows.at(row, j)));
      out.set(rows.at(row, i), x);
    }
  return out;
}

} // namespace

Tensor kvpc::reference::softmax(const Tensor &input, StringRef axis, const Tensor *where) {
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  Rows rows(input, axis, where);
  Tensor out = like(input, Element::Float);
  for (int64_t row = 0; row < rows.count(); ++row) {
    // An entry of -inf is one that is not admitted, also where there is nothing else.
    auto taken = [&](int64_t i) {
      return rows.admits(row, i) && input.number(rows.at(row, i)) != kNothing;
    };
    double top = kNothing, sum = 0;
    for (int64_t i = 0; i < rows.length(); ++i)
      if (taken(i))
        top = std::max(top, input.number(rows.at(row, i))); // a NaN is left out here
    for (int64_t i = 0; i < rows.length(); ++i)
      if (taken(i))
        sum += std::exp(input.number(rows.at(row, i)) - top);
    for (int64_t i = 0; i < rows.length(); ++i)
      if (taken(i))
        out.set(rows.at(row, i), std::exp(input.number(rows.at(row, i)) - top) / sum);
  }
  return out;
}

Tensor kvpc::reference::normalize(const Tensor &input, StringRef axis, const Tensor *where) {
  Rows rows(input, axis, where);
  Tensor out = like(input, Element::Float);
  for (int64_t row = 0; row < rows.count(); ++row) {
    double squares = 0;
    for (int64_t i = 0; i < rows.length(); ++i)
      if (rows.admits(row, i))
        squares += input.number(rows.at(row, i)) * input.number(rows.at(row, i));
    if (squares == 0)
      continue;
    for (int64_t i = 0; i < rows.length(); ++i)
      if (rows.admits(row, i))
        out.set(rows.at(row, i), input.number(rows.at(row, i)) / std::sqrt(squares));
  }
  return out;
}

Tensor kvpc::reference::cumsum(const Tensor &input, StringRef axis, const Tensor *where) {
  Rows rows(input, axis, where);
  Tensor out = like(input, input.element);
  for (int64_t row = 0; row < rows.count(); ++row) {
    double sum = 0;
    int64_t integers = 0;
    for (int64_t i = 0; i < rows.length(); ++i) {
      if (!rows.admits(row, i))
        continue;
      int64_t at = rows.at(row, i);
      if (input.element == Element::Int)
        out.ints[at] = integers += input.ints[at];
      else
        out.set(at, sum += input.number(at));
    }
  }
  return out;
}

Tensor kvpc::reference::averagePool(const Tensor &input, StringRef axis, int64_t size,
                                    const Tensor *where) {
  return pool(input, axis, size, where, 0, [=](double a, double b) { return a + b / size; });
}

Tensor kvpc::reference::maxPool(const Tensor &input, StringRef axis, int64_t size,
                                const Tensor *where) {
  return pool(input, axis, size, where, -std::numeric_limits<double>::infinity(),
              [](double a, double b) { return std::isnan(a) || a > b ? a : b; });
}

Tensor kvpc::reference::shift(const Tensor &input, StringRef axis, int64_t by, double fill) {
  Rows rows(input, axis);
  Tensor out = like(input, input.element);
  for (int64_t row = 0; row < rows.count(); ++row)
    for (int64_t i = 0; i < rows.length(); ++i) {
      // `by` may be anything: no i - by before it is known to be small.
      bool inside = by <= i && by > i - rows.length() && rows.admits(row, i - by);
      if (inside)
        out.copy(rows.at(row, i), input, rows.at(row, i - by));
      else
        out.set(rows.at(row, i), fill);
    }
  return out;
}
