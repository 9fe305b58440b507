//===- Outer.cpp - sums of outer products of a tile's rows ------------------------------------===//
//
// What an entry has along one axis times what it has along another, added over entries: covariances
// and the like. Some entries of each side are computed into blocks on the stack, and the
// microkernel takes all pairs of them. How many is a matter of the extents alone, so sums have one
// order.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Conversion/Kernel.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

/// Numbers of a block: 64 KiB, which the second level of cache holds twice.
static constexpr int64_t kBlock = 16384;

/// The outer products that a sum is of, if rows and columns lie innermost in its buffer and its
/// condition holds for whole entries.
kvplan::Outer Kernel::outerOf(const Row &row, kvplan::AccumulateOp op, StringRef over) {
  kvplan::Outer outer = kvplan::outerOf(op.getValue(), over);
  if (!outer || op.getKind() != kvplan::Combine::Sum)
    return {};
  SmallVector<Range> ranges = bufferRanges(row, op.getBuffer(), "", {}, {});
  if (ranges.size() < 2 || ranges.back().axis != outer.column ||
      ranges[ranges.size() - 2].axis != outer.row)
    return {};
  if (op.getWhere())
    for (kvp::AxisAttr axis : op.getWhere().getType().getAxes())
      if (axis.getName() == outer.row || axis.getName() == outer.column)
        return {};
  return outer;
}

/// Entries [from, to) of `side` along `axis`, rows of `stride` numbers with zeros past the last;
/// entries outside `where` are zeros.
void Kernel::fillBlock(const Row &row, Value side, StringRef axis, Value where, StringRef over,
                       Value from, Value to, Value stride, Value block, const Indices &at) {
  Value n = extent(row, side, axis);
  e.call("kvpc_prim_zero_rows",
         {e.at(block, e.mul(n, 4)), e.mul(stride, 4), e.sub(to, from), e.mul(e.sub(stride, n), 4)});
  Range ranges[] = {{over.str(), from, to, std::nullopt},
                    {axis.str(), e.constant(0), n, staticExtent(side, axis)}};
  StringRef lane = laneAxis(side, {over, axis});
  forEach(ranges, lane == axis ? lane : StringRef(), at, [&](const Indices &here) {
    Value v = value(row, side, here);
    if (where) {
      Value inside = value(row, where, here);
      Type type = here.hasLanes() ? Type(e.vec(e.f32())) : e.f32();
      if (here.hasLanes()) {
        v = e.spread(v);
        inside = e.spread(inside);
      }
      v = e.select(inside, v, e.constantOf(type, 0));
    }
    Value place = e.add(e.mul(e.sub(here.find(over)->base, from), stride), here.find(axis)->base);
    Value address = e.at(block, e.mul(place, 4));
    if (here.hasLanes())
      e.storeVector(Storage::F32, v, address, here.mask);
    else
      e.store(Storage::F32, v, address);
  });
}

/// Fills the lower halves of finished sums of which only the upper were made.
void Kernel::mirrorOuter(const Row &row, kvplan::AccumulateOp op, StringRef over, Value target) {
  kvplan::Outer outer = outerOf(row, op, over);
  if (!outer || !outer.symmetric)
    return;
  Value n = extent(row, outer.left, outer.row), count = e.constant(1);
  for (const Range &r : ArrayRef(bufferRanges(row, op.getBuffer(), "", {}, {})).drop_back(2))
    count = e.mul(count, e.sub(r.to, r.from));
  e.loop(e.constant(0), count, 1, [&](Value i) {
    e.call("kvpc_prim_mirror", {e.at(target, e.mul(e.mul(i, e.mul(n, n)), 4)), n});
  });
}

bool Kernel::accumulateOuter(const Row &row, kvplan::AccumulateOp op, StringRef over, Value segment,
                             Value from, Value to, Value first) {
  kvplan::Outer outer = outerOf(row, op, over);
  if (!outer)
    return false;
  SmallVector<Range> beside = bufferRanges(row, op.getBuffer(), "", {}, {});
  beside.truncate(beside.size() - 2);

  Value rows = extent(row, outer.left, outer.row), columns = extent(row, outer.right, outer.column);
  Value stride = e.roundUp(e.max(rows, columns), 64);
  Value step = e.max(e.div(e.constant(kBlock), stride), e.constant(1));
  Value left = onStack(kBlock * 4), right = outer.symmetric ? left : onStack(kBlock * 4);
  Value symmetric = e.constant(outer.symmetric);
  forEach(beside, "", headIndex(row), [&](const Indices &at) {
    Value number = e.constant(0);
    for (const Range &r : beside)
      number = e.add(e.mul(number, e.sub(r.to, r.from)), e.sub(at.find(r.axis)->base, r.from));
    Value out = e.at(partialBase(row, op.getBuffer(), segment),
                     e.mul(e.mul(number, e.mul(rows, columns)), 4));
    e.loop(e.constant(0), e.ceilDiv(e.sub(to, from), step), 1, [&](Value part) {
      Value begin = e.add(from, e.mul(part, step)), end = e.min(e.add(begin, step), to);
      fillBlock(row, outer.left, outer.row, op.getWhere(), over, begin, end, stride, left, at);
      if (!outer.symmetric)
        fillBlock(row, outer.right, outer.column, op.getWhere(), over, begin, end, stride, right,
                  at);
      Value start = e.both(first, e.cmp(arith::CmpIPredicate::eq, part, e.constant(0)));
      e.call("kvpc_prim_outer", {left, right, stride, e.sub(end, begin), rows, columns, symmetric,
                                 arith::ExtUIOp::create(e, e.i64(), start), out});
    });
  });
  return true;
}
