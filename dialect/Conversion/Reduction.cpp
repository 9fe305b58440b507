//===- Reduction.cpp - reductions inside an expression, and which axis runs on lanes ----------===//
//
// Order of a sum: along the lane axis four accumulators take whole vectors in turn (one where the
// extent is not known), folded as (0 + 1) + (2 + 3); other axes add in ascending order; lanes are
// folded last. It depends on the variant and on the extents alone.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

Value Kernel::identity(Fold fold, Type type) {
  bool floats = getElementTypeOrSelf(type).isF32();
  constexpr double inf = std::numeric_limits<double>::infinity();
  switch (fold) {
  case Fold::Sum:
  case Fold::Any:
    return e.constantOf(type, 0);
  case Fold::All:
    return e.constantOf(type, 1);
  case Fold::Max:
  case Fold::Min: {
    if (floats)
      return e.constantOf(type, fold == Fold::Max ? -inf : inf);
    int64_t limit = fold == Fold::Max ? std::numeric_limits<int64_t>::min()
                                      : std::numeric_limits<int64_t>::max();
    Value v = e.constant(limit);
    return isa<VectorType>(type) ? e.spread(v) : v;
  }
  }
  llvm_unreachable("fold");
}

Value Kernel::foldPair(Fold fold, Value a, Value b) {
  if (e.isVector(a) || e.isVector(b)) {
    a = e.spread(a);
    b = e.spread(b);
  }
  bool floats = getElementTypeOrSelf(a.getType()).isF32();
  switch (fold) {
  case Fold::Sum:
    return floats ? e.createOrFold<arith::AddFOp>(a, b) : e.add(a, b);
  case Fold::Max:
    return floats ? arith::MaximumFOp::create(e, a, b).getResult() : e.max(a, b);
  case Fold::Min:
    return floats ? arith::MinimumFOp::create(e, a, b).getResult() : e.min(a, b);
  case Fold::Any:
    return e.createOrFold<arith::OrIOp>(a, b);
  case Fold::All:
    return e.createOrFold<arith::AndIOp>(a, b);
  }
  llvm_unreachable("fold");
}

/// Folds lanes by halves: lane i with lane i + lanes / 2, and so on.
Value Kernel::foldLanes(Fold fold, Value v) {
  for (int64_t half = e.lanes() / 2; half >= 1; half /= 2) {
    auto part = [&](int64_t from) -> Value {
      auto order = llvm::to_vector(llvm::seq<int64_t>(from, from + half));
      return vector::ShuffleOp::create(e, v, v, order);
    };
    Value low = part(0), high = part(half);
    v = foldPair(fold, low, high);
  }
  return vector::ExtractOp::create(e, v, ArrayRef<int64_t>{0});
}

//===------------------------------------------------------------------------------------------===//
// Which axis runs on lanes
//===------------------------------------------------------------------------------------------===//

namespace {
/// Innermost axes of the memory an expression reads; `blocked` if a reduction inside it already
/// uses the lanes.
struct Contiguous {
  SmallVector<StringRef> axes;
  bool blocked = false;

  void join(const Contiguous &other) {
    for (StringRef a : other.axes)
      if (!llvm::is_contained(axes, a))
        axes.push_back(a);
    blocked |= other.blocked;
  }
  void replace(StringRef from, StringRef to) {
    for (StringRef &a : axes)
      if (a == from)
        a = to;
  }
  void erase(StringRef name) { llvm::erase(axes, name); }
};
} // namespace

/// Rows so few that they fill no vector: entries run on lanes instead.
static bool isShort(Value v, StringRef name) {
  kvp::AxisAttr axis = cast<kvp::NamedTensorType>(v.getType()).getAxis(name);
  return axis && !kvp::isEntryAxis(axis) &&
         (name.rtrim('\'') == "group" || (axis.isStatic() && axis.getExtent() < 8));
}

static Contiguous contiguousAxes(Value v, llvm::DenseMap<Value, Contiguous> &seen) {
  if (auto it = seen.find(v); it != seen.end())
    return it->second;
  Contiguous out;
  Operation *op = v.getDefiningOp();
  auto operands = [&] {
    for (Value operand : op->getOperands())
      if (isa<kvp::NamedTensorType>(operand.getType()))
        out.join(contiguousAxes(operand, seen));
  };
  auto reduced = [&](ArrayRef<StringRef> over) {
    operands();
    bool inside = llvm::any_of(over, [&](StringRef a) {
      return llvm::is_contained(out.axes, a) && !isShort(op->getOperand(0), a);
    });
    // Slots end where their part does, so a part is one scalar index when they are reduced.
    if (inside || llvm::any_of(over, [](StringRef a) { return a.rtrim('\'') == "slot"; }))
      out.blocked = true;
    for (StringRef a : over)
      out.erase(a);
  };
  if (!op) { // weights: row-major
    auto type = cast<kvp::NamedTensorType>(v.getType());
    if (!type.getAxes().empty())
      out.axes.push_back(type.getAxes().back().getName());
  } else {
    TypeSwitch<Operation *>(op)
        .Case([&](kvp::InputOp input) {
          if (input.getInput() == kvp::Input::Output_weight) {
            out.axes.push_back("channel"); // as a linear layer has it
            return;
          }
          out.axes.push_back(input.getResult().getType().getAxes().back().getName());
        })
        .Case([&](kvplan::LoadOp load) {
          auto axes = load.getBuffer().getType().getTensor().getAxes();
          if (!axes.empty() && axes.back().getName() != "head")
            out.axes.push_back(axes.back().getName());
        })
        .Case([&](kvp::RotaryOp table) { out.axes.push_back(table.getAxis()); })
        .Case<kvp::PositionOp, kvp::CausalOp, kvp::IndexOp, kvp::IotaOp, kvp::UniformOp>(
            [](auto) {})
        .Case([&](kvp::RenameOp rename) {
          operands();
          out.replace(rename.getFrom(), rename.getTo());
        })
        .Case([&](kvp::PartitionOp partition) {
          operands();
          out.replace(partition.getAxis(), "slot");
        })
        .Case([&](kvp::JoinOp join) {
          out = contiguousAxes(join.getInput(), seen);
          out.replace("slot", join.getAxis());
          out.erase("part");
        })
        .Case([&](kvp::ReduceOp reduce) { reduced(kvp::axisNames(reduce.getOver())); })
        .Case([&](kvp::DotOp dot) { reduced({dot.getOver()}); })
        .Default([&](Operation *) { operands(); });
  }
  return seen[v] = out;
}

StringRef Kernel::laneAxis(Value v, ArrayRef<StringRef> axes) {
  llvm::DenseMap<Value, Contiguous> seen;
  Contiguous found = contiguousAxes(v, seen);
  if (found.blocked || axes.empty())
    return "";
  for (StringRef axis : llvm::reverse(axes))
    if (llvm::is_contained(found.axes, axis) && axis != "head" && !isShort(v, axis))
      return axis;
  llvm::erase_if(found.axes, [&](StringRef axis) { return isShort(v, axis); });
  if (!found.axes.empty() || axes.back() == "head")
    return "";
  return axes.back();
}

//===------------------------------------------------------------------------------------------===//
// Reductions
//===------------------------------------------------------------------------------------------===//

Value Kernel::reduceRanges(const Row &row, Value of, ArrayRef<Range> ranges, Fold fold,
                           Type element, const Indices &at, ElementAt elementAt) {
  SmallVector<StringRef> names =
      llvm::map_to_vector(ranges, [](const Range &r) -> StringRef { return r.axis; });
  StringRef lane = at.hasLanes() ? StringRef() : laneAxis(of, names);
  bool vectors = at.hasLanes() || !lane.empty();
  Type type = vectors ? Type(e.vec(element)) : element;
  SmallVector<Range> order;
  for (const Range &r : ranges)
    if (r.axis != lane)
      order.push_back(r);
  auto shaped = [&](Value v) { return vectors ? e.spread(v) : v; };

  std::function<Value(size_t, const Indices &, Value)> along =
      [&](size_t depth, const Indices &here, Value carried) -> Value {
    if (depth < order.size()) {
      const Range &r = order[depth];
      return e.loop(r.from, r.to, 1, carried, [&](Value i, ValueRange acc) {
        return SmallVector<Value>{along(depth + 1, here.with(r.axis, Index{i, {}, false}), acc[0])};
      })[0];
    }
    if (lane.empty())
      return foldPair(fold, carried, shaped(elementAt(here)));
    const Range &r = *llvm::find_if(ranges, [&](const Range &x) { return x.axis == lane; });
    int64_t width = e.lanes();
    auto vectorAt = [&](Value i, Value mask) {
      Indices inner = here.with(lane, Index{i, {}, true});
      inner.mask = mask;
      Value v = e.spread(elementAt(inner));
      return mask ? e.select(mask, v, identity(fold, type)) : v;
    };
    std::optional<int64_t> fixed = r.extent;
    if (fixed && *fixed % width == 0 && *fixed / width <= 16) {
      int64_t steps = *fixed / width, n = std::min<int64_t>(4, steps);
      SmallVector<Value> acc;
      for (int64_t s = 0; s < steps; ++s) {
        Value v = vectorAt(e.add(r.from, s * width), {});
        if (s < n)
          acc.push_back(v);
        else
          acc[s % n] = foldPair(fold, acc[s % n], v);
      }
      while (acc.size() > 1) {
        SmallVector<Value> next;
        for (size_t i = 0; i + 1 < acc.size(); i += 2)
          next.push_back(foldPair(fold, acc[i], acc[i + 1]));
        if (acc.size() % 2)
          next.push_back(acc.back());
        acc = next;
      }
      return foldPair(fold, carried, acc[0]);
    }
    Value rest = e.rem(e.sub(r.to, r.from), e.constant(width));
    Value main = e.sub(r.to, rest);
    Value sum = e.loop(r.from, main, width, carried, [&](Value i, ValueRange acc) {
      return SmallVector<Value>{foldPair(fold, acc[0], vectorAt(i, {}))};
    })[0];
    if (auto c = getConstantIntValue(rest); c && *c == 0)
      return sum;
    return e.choose(
        e.less(e.constant(0), rest),
        [&] { return foldPair(fold, sum, vectorAt(main, e.lanesBelow(rest))); },
        [&] { return sum; });
  };
  Value result = along(0, at, identity(fold, type));
  return lane.empty() ? result : foldLanes(fold, result);
}

/// Ranges of the reduced axes; `slot` ends where its part does.
SmallVector<Kernel::Range> Kernel::rangesOf(const Row &row, Value tensor, ArrayRef<StringRef> axes,
                                            const Indices &at) {
  SmallVector<Range> ranges;
  for (StringRef axis : axes) {
    kvp::AxisAttr attr = cast<kvp::NamedTensorType>(tensor.getType()).getAxis(axis);
    if (row.block && attr && kvp::isAllQueries(attr)) {
      ranges.push_back({axis.str(), row.block, row.blockEnd, std::nullopt});
      continue;
    }
    Range r{axis.str(), e.constant(0), extent(row, tensor, axis), staticExtent(tensor, axis)};
    if (auto slots = kvplan::slotsAlong(tensor, axis)) {
      const Index *part = at.find(slots.part);
      if (part && !part->lanes) {
        r.to = slotsOf(row, slots.partition, part->base);
        r.extent = std::nullopt;
      }
    }
    ranges.push_back(r);
  }
  return ranges;
}

Value Kernel::slotsOf(const Row &row, kvp::PartitionOp op, Value part) {
  Value to = op.getTo() ? host(row, op.getTo()) : extent(row, op.getInput(), op.getAxis());
  Value from = op.getFrom() ? host(row, op.getFrom()) : e.constant(0);
  Value size = e.constant(op.getSize()), whole = e.sub(to, from), none = e.constant(0);
  if (e.isVector(part)) {
    size = e.spread(size);
    whole = e.spread(whole);
    none = e.spread(none);
  }
  return e.max(e.min(e.sub(whole, e.mul(part, size)), size), none);
}

Value Kernel::reduceOp(const Row &row, kvp::ReduceOp op, const Indices &at) {
  using R = kvp::Reduction;
  SmallVector<StringRef> over = kvp::axisNames(op.getOver());
  // Parts are indexed before their slots are counted: reduce slots inside parts.
  if (llvm::is_contained(over, "slot") && llvm::is_contained(over, "part")) {
    error(op, "reduces over `part` and `slot` at once");
    return e.constantOf(op.getResult().getType().getElementType(), 0);
  }
  SmallVector<Range> ranges = rangesOf(row, op.getInput(), over, at);
  R kind = op.getKind();
  Fold fold = kind == R::Max   ? Fold::Max
              : kind == R::Min ? Fold::Min
              : kind == R::Any ? Fold::Any
              : kind == R::All ? Fold::All
                               : Fold::Sum;
  Type element = op.getResult().getType().getElementType();
  // Parts on lanes end at different slots: those past the end are kept out one by one.
  Value limit;
  StringRef slot;
  for (StringRef axis : over)
    if (auto slots = kvplan::slotsAlong(op.getInput(), axis))
      if (const Index *part = at.find(slots.part); part && part->lanes) {
        limit = slotsOf(row, slots.partition, indexValue(*part));
        slot = axis;
      }
  auto run = [&](Fold f, Type type, function_ref<Value(const Indices &)> one) {
    return reduceRanges(row, op.getInput(), ranges, f, type, at, [&](const Indices &here) {
      Value v = one(here);
      if (!op.getWhere() && !limit)
        return v;
      Value inside = op.getWhere() ? value(row, op.getWhere(), here) : Value();
      if (limit)
        inside = e.both(inside, e.cmp(arith::CmpIPredicate::slt,
                                      e.spread(indexValue(*here.find(slot))), limit));
      Type t = e.isVector(v) || e.isVector(inside) ? Type(e.vec(type)) : type;
      return e.select(inside, v, identity(f, t));
    });
  };
  auto operand = [&](const Indices &here) { return value(row, op.getInput(), here); };
  switch (kind) {
  case R::Sum:
  case R::Max:
  case R::Min:
  case R::Any:
  case R::All:
    return run(fold, element, operand);
  case R::Count:
    return run(Fold::Sum, e.i64(), [&](const Indices &here) {
      Value c = operand(here);
      Type t = e.isVector(c) ? Type(e.vec(e.i64())) : e.i64();
      return e.select(c, e.constantOf(t, 1), e.constantOf(t, 0));
    });
  case R::Mean: {
    Value sum =
        run(Fold::Sum, e.f32(), [&](const Indices &here) { return e.toFloat(operand(here)); });
    Value count;
    if (op.getWhere() || limit) {
      count = run(Fold::Sum, e.f32(), [&](const Indices &) { return e.constantF32(1); });
    } else {
      count = e.constant(1);
      for (const Range &r : ranges)
        count = e.mul(count, e.sub(r.to, r.from));
      count = e.toFloat(count);
    }
    if (e.isVector(sum))
      count = e.spread(count);
    else if (e.isVector(count))
      sum = e.spread(sum);
    Value quotient = arith::DivFOp::create(e, sum, count);
    Value zero = e.constantOf(sum.getType(), 0);
    Value none = arith::CmpFOp::create(e, arith::CmpFPredicate::OEQ, count,
                                       e.constantOf(count.getType(), 0));
    return e.select(none, zero, quotient);
  }
  default:
    error(op, "`" + kvp::stringifyReduction(kind) + "` was not decomposed");
    return e.constantOf(element, 0);
  }
}
