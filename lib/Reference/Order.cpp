//===- Order.cpp - sort, rank and the order of selections -------------------------------------===//
#include "lib/Reference/Operations.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <cmath>
#include <numeric>

using namespace kvpc::reference;
using llvm::ArrayRef;
using llvm::StringRef;

bool kvpc::reference::better(float a, float b) {
  if (std::isnan(a))
    return false;
  return std::isnan(b) || a > b;
}

/// Below 0 if the entry at `a` stands before the one at `b`, 0 if they are equal.
static int compare(const Tensor &t, int64_t a, int64_t b) {
  if (t.element == Element::Int)
    return t.ints[a] == t.ints[b] ? 0 : t.ints[a] > t.ints[b] ? -1 : 1;
  return better(t.floats[a], t.floats[b]) ? -1 : better(t.floats[b], t.floats[a]) ? 1 : 0;
}

Tensor kvpc::reference::sort(const Tensor &input, StringRef axis, StringRef to,
                             const Tensor *where) {
  Rows rows(input, axis, where);
  Tensor out(input.axes, input.element);
  for (Axis &own : out.axes)
    if (own.name == axis)
      own.name = to.str();
  if (input.present)
    out.present = std::make_shared<Tensor>(
        input.present->has(axis) ? rename(*input.present, axis, to) : *input.present);
  std::vector<int64_t> admitted;
  for (int64_t row = 0; row < rows.count(); ++row) {
    admitted.clear();
    for (int64_t i = 0; i < rows.length(); ++i)
      if (rows.admits(row, i))
        admitted.push_back(rows.at(row, i));
    llvm::sort(admitted, [&](int64_t a, int64_t b) {
      int order = compare(input, a, b);
      return order ? order < 0 : a < b;
    });
    for (auto [i, from] : llvm::enumerate(admitted))
      out.copy(rows.at(row, i), input, from);
  }
  return out;
}

Tensor kvpc::reference::rank(const Tensor &input, ArrayRef<StringRef> over, const Tensor *protect,
                             const Tensor *where) {
  // Ties go to the earlier token and then to the earlier head, however the axes were listed.
  std::vector<StringRef> order;
  auto lateness = [](StringRef name) {
    return name == "layer" ? 3 : name == "head" ? 2 : name.rtrim('\'') == "slot" ? 1 : 0;
  };
  for (int when : {0, 1, 2, 3})
    llvm::copy_if(over, std::back_inserter(order),
                  [&](StringRef name) { return lateness(name) == when; });
  Rows rows(input, order, where);
  std::vector<int64_t> shieldOuter, shieldInner;
  if (protect) {
    shieldOuter = offsets(rows.kept, *protect);
    shieldInner = offsets(rows.along, *protect);
  }
  Tensor out(input.axes, Element::Int);
  out.present = input.present;
  std::vector<int64_t> entries(rows.length());
  for (int64_t row = 0; row < rows.count(); ++row) {
    auto shielded = [&](int64_t i) {
      return protect && protect->bools[shieldOuter[row] + shieldInner[i]];
    };
    std::iota(entries.begin(), entries.end(), 0);
    llvm::sort(entries, [&](int64_t a, int64_t b) {
      bool admitsA = rows.admits(row, a), admitsB = rows.admits(row, b);
      if (!admitsA || !admitsB)
        return admitsA == admitsB ? a < b : admitsA;
      if (shielded(a) != shielded(b))
        return shielded(a);
      int order = compare(input, rows.at(row, a), rows.at(row, b));
      return order ? order < 0 : shielded(a) ? a > b : a < b; // of equal protected ones the newest
    });
    for (auto [place, i] : llvm::enumerate(entries))
      out.ints[rows.at(row, i)] = place;
  }
  return out;
}

std::vector<int64_t> kvpc::reference::selectBest(ArrayRef<float> scores, ArrayRef<uint8_t> protect,
                                                 int64_t count) {
  int64_t n = scores.size();
  if (n == 0)
    return {};
  std::vector<int64_t> entries(n);
  std::iota(entries.begin(), entries.end(), 0);
  llvm::sort(entries, [&](int64_t a, int64_t b) {
    bool shieldA = !protect.empty() && protect[a], shieldB = !protect.empty() && protect[b];
    if (shieldA != shieldB)
      return shieldA;
    if (better(scores[a], scores[b]) || better(scores[b], scores[a]))
      return better(scores[a], scores[b]);
    return shieldA ? a > b : a < b; // of equal protected ones the newest
  });
  entries.resize(std::clamp<int64_t>(count, 1, n));
  llvm::sort(entries);
  return entries;
}
