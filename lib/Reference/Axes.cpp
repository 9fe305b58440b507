//===- Axes.cpp - rename, partition, join and picking along an axis ---------------------------===//
#include "lib/Reference/Operations.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>

using namespace kvpc;
using namespace kvpc::reference;
using llvm::StringRef;

std::pair<int64_t, int64_t> Cut::parts(int64_t extent) const {
  int64_t first = std::clamp<int64_t>(from.value_or(0), 0, extent);
  int64_t n = std::max<int64_t>(end(extent) - first, 0);
  return {first, whole ? n / size : (n + size - 1) / size};
}

int64_t Cut::end(int64_t extent) const {
  return std::clamp<int64_t>(to.value_or(extent), 0, extent);
}

Tensor kvpc::reference::rename(const Tensor &input, StringRef from, StringRef to) {
  Tensor out = input;
  for (Axis &axis : out.axes)
    if (axis.name == from)
      axis.name = to.str();
  if (input.present && input.present->has(from))
    out.present = std::make_shared<Tensor>(rename(*input.present, from, to));
  return out;
}

std::shared_ptr<const Tensor> Cut::slots(int64_t extent, StringRef part, StringRef slot) const {
  int64_t last = end(extent);
  auto [first, n] = parts(extent);
  if (n == 0 || first + n * size <= last)
    return nullptr;
  Tensor there({{part.str(), n}, {slot.str(), size}}, Element::Bool);
  std::fill_n(there.bools.begin(), last - first, 1);
  return std::make_shared<Tensor>(std::move(there));
}

/// Leaves out the parts of which a slot is missing: a head of fewer tokens has not the last one.
static void keepWhole(Tensor &there) {
  Rows rows(there, StringRef("slot"));
  for (int64_t row = 0; row < rows.count(); ++row) {
    bool whole = true;
    for (int64_t i = 0; i < rows.length(); ++i)
      whole &= there.bools[rows.at(row, i)] != 0;
    for (int64_t i = 0; i < rows.length(); ++i)
      there.bools[rows.at(row, i)] = whole;
  }
}

Tensor kvpc::reference::partition(const Tensor &input, StringRef name, const Cut &cut) {
  int64_t extent = input.extent(name), end = cut.end(extent);
  auto [first, parts] = cut.parts(extent);
  Axes axes;
  for (const Axis &axis : input.axes) {
    if (axis.name != name) {
      axes.push_back(axis);
      continue;
    }
    axes.push_back({"part", parts});
    axes.push_back({"slot", cut.size});
  }
  Tensor out(axes, input.element);

  Axes others = without(input.axes, name), line{{name.str(), extent}},
       grid{{"part", parts}, {"slot", cut.size}};
  std::vector<int64_t> fromOther = offsets(others, input), fromLine = offsets(line, input);
  std::vector<int64_t> toOther = offsets(others, out), toGrid = offsets(grid, out);
  for (int64_t i = 0; i < parts * cut.size && first + i < end; ++i)
    for (size_t other = 0; other < fromOther.size(); ++other)
      out.copy(toOther[other] + toGrid[i], input, fromOther[other] + fromLine[first + i]);
  std::shared_ptr<const Tensor> old = input.present;
  if (old && old->has(name)) {
    Tensor split = partition(*old, name, cut);
    split.present = nullptr; // its missing slots read as false
    if (cut.whole)
      keepWhole(split);
    old = std::make_shared<Tensor>(std::move(split));
  }
  out.present = both(old, cut.slots(extent, "part", "slot"));
  return out;
}

Tensor kvpc::reference::join(const Tensor &input, const Tensor &like, StringRef name,
                             const Cut &cut, double fill) {
  int64_t extent = like.extent(name), end = cut.end(extent);
  auto [first, parts] = cut.parts(extent);
  parts = std::min(parts, input.extent("part"));
  Axes axes;
  for (const Axis &axis : input.axes)
    if (axis.name == "part")
      axes.push_back({name.str(), extent});
    else if (axis.name != "slot")
      axes.push_back(axis);
  Tensor out(axes, input.element);

  Axes others = without(out.axes, name), line{{name.str(), extent}};
  Axes grid{{"part", input.extent("part")}, {"slot", cut.size}};
  std::vector<int64_t> fromOther = offsets(others, input), fromGrid = offsets(grid, input);
  std::vector<int64_t> toOther = offsets(others, out), toLine = offsets(line, out);
  // Of a part that was picked some slots may not be there.
  std::vector<int64_t> thereOther, thereGrid;
  if (input.present) {
    thereOther = offsets(others, *input.present);
    thereGrid = offsets(grid, *input.present);
  }
  for (int64_t i = 0; i < extent; ++i) {
    bool inside = i >= first && i < std::min(end, first + parts * cut.size);
    for (size_t other = 0; other < toOther.size(); ++other)
      if (inside &&
          (!input.present || input.present->bools[thereOther[other] + thereGrid[i - first]]))
        out.copy(toOther[other] + toLine[i], input, fromOther[other] + fromGrid[i - first]);
      else
        out.set(toOther[other] + toLine[i], fill);
  }
  if (like.present) {
    llvm::SmallVector<StringRef> extra;
    for (const Axis &axis : like.present->axes)
      if (!out.has(axis.name))
        extra.push_back(axis.name);
    out.present =
        std::make_shared<Tensor>(reduce(kvp::Reduction::Any, *like.present, extra, nullptr));
  }
  return out;
}

Tensor kvpc::reference::at(const Tensor &input, StringRef name, const Tensor &index, bool within) {
  Axes others = without(input.axes, name), line{*input.find(name)};
  int64_t extent = line[0].extent;
  Tensor out(unite(others, index.axes), input.element);
  // An index that has the axis too places entries along it: not the input's axis any more.
  std::vector<int64_t> fromLine = offsets(line, input), fromIndex = offsets(out.axes, index);
  Tensor base(others, Element::Bool);
  std::vector<int64_t> row = offsets(out.axes, base), fromOther = offsets(others, input);
  const Tensor *there =
      within && input.present && input.present->has(name) ? &*input.present : nullptr;
  std::vector<int64_t> thereLine, thereOther;
  if (there) {
    thereLine = offsets(line, *there);
    thereOther = offsets(others, *there);
  }
  for (size_t i = 0; i < row.size(); ++i) {
    if (extent == 0)
      break;
    int64_t k = std::clamp<int64_t>(index.ints[fromIndex[i]], 0, extent - 1);
    while (there && k > 0 && !there->bools[thereOther[row[i]] + thereLine[k]])
      --k;
    out.copy(i, input, fromOther[row[i]] + fromLine[k]);
  }
  out.present = there ? nullptr : input.present;
  if (!there && input.present && input.present->has(name))
    out.present = std::make_shared<Tensor>(at(*input.present, name, index));
  out.present = both(out.present, index.present);
  return out;
}
