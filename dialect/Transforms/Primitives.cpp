//===- Primitives.cpp - decompose reductions and maps along an axis ---------------------------===//
#include "dialect/IR/Kvplan.h"
#include "dialect/Transforms/Passes.h"

#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/IR/Matchers.h"
#include "llvm/ADT/TypeSwitch.h"

namespace kvpc {
#define GEN_PASS_DEF_KVPPRIMITIVES
#include "dialect/Transforms/Passes.h.inc"
} // namespace kvpc

using namespace mlir;
using namespace kvpc;
using kvp::Fn;
using kvp::NamedTensorType;
using kvp::Reduction;

namespace {

struct Decompose {
  ImplicitLocOpBuilder b;
  explicit Decompose(Operation *op) : b(op->getLoc(), op) {}

  NamedTensorType typeOf(Value v) { return cast<NamedTensorType>(v.getType()); }
  Value map(Fn fn, ValueRange operands) { return kvp::MapOp::create(b, fn, operands); }
  Value real(double x) { return arith::ConstantOp::create(b, b.getF64FloatAttr(x)); }
  Value integer(int64_t x) { return arith::ConstantOp::create(b, b.getI64IntegerAttr(x)); }
  Value reduce(Reduction kind, Value x, ArrayRef<StringRef> over, Value where = {}) {
    return kvp::ReduceOp::create(b, kind, x, b.getStrArrayAttr(over), where);
  }
  /// Whether an axis runs along slots of a part, under whatever name.
  bool isSlot(Value x, StringRef axis) {
    return axis.rtrim('\'') == "slot" || kvplan::slotsAlong(x, axis);
  }
  bool isEntryAxis(Value x, StringRef name) { return kvp::isEntryAxis(typeOf(x).getAxis(name)); }
  /// Whether an axis is that of all queries, beside entries: such values come in blocks of queries.
  bool runsAlongQueries(Value x, StringRef name) {
    return kvp::isAllQueries(typeOf(x).getAxis(name)) &&
           llvm::any_of(typeOf(x).getAxes(), [](kvp::AxisAttr axis) {
             return kvp::isEntryAxis(axis) && !kvp::isAllQueries(axis);
           });
  }
  Value isNaN(Value x) { return map(Fn::Ne, {x, x}); }

  /// How many entries a reduction takes, as a number or tensor of integers.
  Value count(Value x, ArrayRef<StringRef> over, Value where) {
    bool ragged = llvm::any_of(over, [&](StringRef a) { return isSlot(x, a); });
    if (!where && !ragged) {
      Value n = integer(1);
      for (StringRef axis : over)
        n = map(Fn::Mul, {n, kvp::ExtentOp::create(b, x, axis)});
      return n;
    }
    bool heads = llvm::is_contained(over, "head"); // which may hold different numbers
    if (!ragged && !heads) {
      // Where the condition holds, times the extents that it does not tell.
      SmallVector<StringRef> own;
      Value n = integer(1);
      for (StringRef axis : over)
        if (typeOf(where).hasAxis(axis))
          own.push_back(axis);
        else
          n = map(Fn::Mul, {n, kvp::ExtentOp::create(b, x, axis)});
      Value held = own.empty() ? map(Fn::Where, {where, integer(1), integer(0)})
                               : reduce(Reduction::Count, where, own);
      return own.size() == over.size() ? held : map(Fn::Mul, {held, n});
    }
    // A condition over all axes of x: never x < x.
    Value never = map(Fn::Lt, {x, x});
    Value inside = where ? map(Fn::Or, {where, never}) : map(Fn::Not, never);
    return reduce(Reduction::Count, inside, over);
  }

  Value squares(Value x, ArrayRef<StringRef> over, Value where) {
    return reduce(Reduction::Sum, map(Fn::Mul, {x, x}), over, where);
  }

  /// a / b, 0 where b is 0.
  Value guarded(Value a, Value divisor) {
    Value zero = map(Fn::Eq, {divisor, integer(0)});
    return map(Fn::Where, {zero, real(0), map(Fn::Div, {a, divisor})});
  }

  Value mean(Value x, ArrayRef<StringRef> over, Value where) {
    Value sum = reduce(Reduction::Sum, asFloat(x), over, where);
    return guarded(sum, count(x, over, where));
  }

  Value asFloat(Value x) { return typeOf(x).getElementType().isF32() ? x : map(Fn::Float, x); }

  Value variance(Value x, ArrayRef<StringRef> over, Value where) {
    Value far = map(Fn::Sub, {x, mean(x, over, where)});
    Value n = count(x, over, where);
    Value rest = map(Fn::Sub, {n, integer(1)});
    // Of one entry it is 0 / 0, as in torch; of nothing 0.
    Value v = map(Fn::Div, {squares(far, over, where), rest});
    return map(Fn::Where, {map(Fn::Eq, {n, integer(0)}), real(0), v});
  }

  Value argmax(Value x, StringRef axis, Value where) {
    constexpr int64_t none = std::numeric_limits<int64_t>::max();
    // NaN is left out: it equals nothing.
    Value numbers = map(Fn::Eq, {x, x});
    Value inside = where ? map(Fn::And, {numbers, where}) : numbers;
    Value best = reduce(Reduction::Max, x, {axis}, inside);
    Value index = kvp::IndexOp::create(b, x, axis);
    Value hit = map(Fn::And, {map(Fn::Eq, {x, best}), inside});
    Value first = reduce(Reduction::Min, map(Fn::Where, {hit, index, integer(none)}), {axis});
    return map(Fn::Where, {map(Fn::Eq, {first, integer(none)}), integer(0), first});
  }

  Value normalize(Value x, StringRef axis, Value where) {
    Value norm = map(Fn::Sqrt, squares(x, {axis}, where));
    Value inverse = guarded(real(1), norm);
    Value y = map(Fn::Mul, {x, inverse});
    return where ? map(Fn::Where, {where, y, real(0)}) : y;
  }

  /// Whether a buffer holds the entries of an axis one after another, each with its rows: what the
  /// primitive of softmax sweeps over.
  bool hasStatistics(Value x, StringRef axis) {
    return isEntryAxis(x, axis) && llvm::none_of(typeOf(x).getAxes(), [&](kvp::AxisAttr other) {
             StringRef name = other.getName();
             return name != axis && name != "head" &&
                    (name.rtrim('\'') == "head" ||
                     (kvp::isEntryAxis(other) && !kvp::isAllQueries(other)));
           });
  }

  Value softmaxShort(Value x, StringRef axis, Value where) {
    Value top = reduce(Reduction::Max, x, {axis}, where);
    Value e = map(Fn::Exp, map(Fn::Sub, {x, top}));
    Value weight = guarded(e, reduce(Reduction::Sum, e, {axis}, where));
    Value nothing = map(Fn::Eq, {top, real(-std::numeric_limits<double>::infinity())});
    weight = map(Fn::Where, {nothing, real(0), weight});
    return where ? map(Fn::Where, {where, weight, real(0)}) : weight;
  }

  /// x with `axis` under a name that nothing here has.
  Value other(Value x, StringRef axis, StringRef fresh) {
    if (!x || !typeOf(x).hasAxis(axis))
      return x;
    return kvp::RenameOp::create(b, x, axis, fresh);
  }
  std::string fresh(Value x, StringRef axis) {
    std::string name = axis.str() + "'";
    while (typeOf(x).hasAxis(name))
      name += "'";
    return name;
  }

  /// How many entries of a short axis come before each.
  Value rankShort(Value x, StringRef axis, Value protect, Value where) {
    std::string name = fresh(x, axis);
    Value y = other(x, axis, name);
    Value i = kvp::IndexOp::create(b, x, axis), j = kvp::IndexOp::create(b, y, name);
    Value earlier = map(Fn::Lt, {j, i});
    auto both = [&](Value a, Value c) { return map(Fn::And, {a, c}); };
    auto either = [&](Value a, Value c) { return map(Fn::Or, {a, c}); };
    Value nanX = isNaN(x), nanY = isNaN(y);
    Value higher = either(map(Fn::Lt, {x, y}), both(nanX, map(Fn::Not, nanY)));
    Value equal = either(map(Fn::Eq, {x, y}), both(nanX, nanY));
    Value before = either(higher, both(equal, earlier));
    if (protect) {
      Value p = protect, q = other(protect, axis, name);
      Value newer = either(higher, both(equal, map(Fn::Lt, {i, j})));
      before = either(both(q, map(Fn::Not, p)),
                      either(both(both(p, q), newer), both(map(Fn::Not, either(p, q)), before)));
    }
    if (where) {
      Value w = where, v = other(where, axis, name);
      before = either(both(v, map(Fn::Not, w)),
                      either(both(both(w, v), before), both(map(Fn::Not, either(w, v)), earlier)));
    }
    return reduce(Reduction::Count, before, {name});
  }

  /// A rotary table along the channels of x, averaged over `mean`.
  Value table(kvp::Wave wave, bool back, Value by, Value x, ArrayRef<StringRef> mean) {
    auto [like, axis] = kvplan::originOf(x, "channel");
    ArrayAttr over = mean.empty() ? ArrayAttr() : b.getStrArrayAttr(mean);
    Value out =
        kvp::RotaryOp::create(b, kvp::WaveAttr::get(b.getContext(), wave), by, like,
                              b.getStringAttr(axis), over, back ? b.getUnitAttr() : UnitAttr());
    return axis == "channel" ? out : kvp::RenameOp::create(b, out, axis, "channel").getResult();
  }

  /// Each channel by one table, and its partner by another.
  Value turn(Value x, Value by, bool back, ArrayRef<StringRef> mean) {
    Value own = map(Fn::Mul, {x, table(kvp::Wave::Cos, back, by, x, mean)});
    Value pair = kvp::PairOp::create(b, x, "channel");
    return map(Fn::Add, {own, map(Fn::Mul, {pair, table(kvp::Wave::Sin, back, by, x, mean)})});
  }

  Value unrotatedKeys(kvp::InputOp op) {
    Value keys = kvp::InputOp::create(b, kvp::Input::Keys, op.getCache(), nullptr);
    Value by = kvp::PositionOp::create(b, op.getCache(), /*original=*/true);
    return turn(keys, by, /*back=*/true, {});
  }

  Value cumsumShort(Value x, StringRef axis, Value where) {
    std::string name = fresh(x, axis);
    Value y = other(x, axis, name), w = other(where, axis, name);
    Value i = kvp::IndexOp::create(b, x, axis), j = kvp::IndexOp::create(b, y, name);
    Value upTo = map(Fn::Le, {j, i});
    if (w)
      upTo = map(Fn::And, {upTo, w});
    Value zero = typeOf(x).getElementType().isF32() ? real(0) : integer(0);
    Value sum = reduce(Reduction::Sum, map(Fn::Where, {upTo, y, zero}), {name});
    return where ? map(Fn::Where, {where, sum, zero}) : sum;
  }

  /// Whether a part has a slot.
  Value present(kvp::PartitionOp p, Value part, Value slot) {
    Value from = p.getFrom() ? p.getFrom() : integer(0);
    Value to = p.getTo() ? p.getTo() : kvp::ExtentOp::create(b, p.getInput(), p.getAxis());
    Value i = map(Fn::Add, {map(Fn::Mul, {part, integer(p.getSize())}), slot});
    return map(Fn::Lt, {i, map(Fn::Sub, {to, from})});
  }

  /// Keeps what a short last part has not out of an operation along parts: `where` becomes a
  /// condition that holds for slots that are there.
  void admitPresent(Operation *op, ArrayRef<StringRef> along, MutableOperandRange where) {
    Value x = op->getOperand(0);
    for (kvp::AxisAttr axis : typeOf(x).getAxes()) {
      StringRef slot = axis.getName();
      kvplan::Slots slots = kvplan::slotsAlong(x, slot);
      // Reductions know which slots there are; what is sorted lies in memory.
      bool inside = llvm::is_contained(along, slot);
      Value there;
      if (slots && !slots.partition.getWhole() &&
          (inside ? isa<kvp::SortOp>(op) : llvm::is_contained(along, slots.part)))
        there = present(slots.partition, kvp::IndexOp::create(b, x, slots.part),
                        kvp::IndexOp::create(b, x, slot));
      else if (kvp::PartitionOp one = inside && !slots ? slotsOfNoPart(x, slot) : nullptr)
        there = present(one, integer(0), kvp::IndexOp::create(b, x, slot));
      if (there)
        where.assign(where.empty() ? there : map(Fn::And, {where[0].get(), there}));
    }
  }

  /// The partition of slots that are left of parts: a row shorter than a part has fewer of them.
  static kvp::PartitionOp slotsOfNoPart(Value x, StringRef slot) {
    bool picked = false;
    auto [from, name] = kvplan::originOf(x, slot, &picked);
    auto partition = from.getDefiningOp<kvp::PartitionOp>();
    return partition && name == "slot" && !picked && !partition.getWhole() ? partition : nullptr;
  }

  /// What is put in order or selected has a condition for each of its elements: one over fewer axes
  /// is spread.
  void spreadConditions(Operation *op) {
    auto spread = [&](MutableOperandRange condition, Value x, ArrayRef<StringRef> along) {
      if (condition.empty() ||
          llvm::all_of(along, [&](StringRef a) { return typeOf(condition[0].get()).hasAxis(a); }))
        return;
      condition.assign(map(Fn::Or, {condition[0].get(), map(Fn::Lt, {x, x})}));
    };
    TypeSwitch<Operation *>(op)
        .Case([&](kvp::RankOp rank) {
          auto over = kvp::axisNames(rank.getOver());
          spread(rank.getWhereMutable(), rank.getInput(), over);
          spread(rank.getProtectMutable(), rank.getInput(), over);
        })
        .Case<kvp::SortOp, kvp::CumsumOp>(
            [&](auto o) { spread(o.getWhereMutable(), o.getInput(), {o.getAxis()}); })
        .Case([&](kvp::TopkOp topk) {
          spread(topk.getProtectMutable(), topk.getScore(), {topk.getElementAxis()});
        })
        .Case([&](kvp::ReturnOp done) {
          if (done.getScore())
            for (kvp::AxisAttr axis : typeOf(done.getScore()).getAxes())
              if (axis.getName() != "head")
                spread(done.getProtectMutable(), done.getScore(), {axis.getName()});
        });
  }

  void admitPresent(Operation *op) {
    TypeSwitch<Operation *>(op)
        .Case<kvp::ReduceOp, kvp::RankOp>(
            [&](auto o) { admitPresent(op, kvp::axisNames(o.getOver()), o.getWhereMutable()); })
        .Case<kvp::SoftmaxOp, kvp::NormalizeOp, kvp::CumsumOp, kvp::SortOp, kvp::AvgPoolOp,
              kvp::MaxPoolOp>(
            [&](auto o) { admitPresent(op, {o.getAxis()}, o.getWhereMutable()); });
  }

  /// Removes slots and features first, then short axes, entries one axis at a time, heads last.
  Value staged(Reduction kind, Value x, ArrayRef<StringRef> over, Value where) {
    SmallVector<SmallVector<StringRef>> stages(1);
    for (StringRef axis : over)
      if (isSlot(x, axis) || axis == "feature")
        stages.insert(stages.begin(), SmallVector<StringRef>{axis});
      else if (axis != "head" && !isEntryAxis(x, axis))
        stages.back().push_back(axis);
    for (StringRef axis : over)
      if (isEntryAxis(x, axis))
        stages.push_back({axis});
    if (llvm::is_contained(over, "head"))
      stages.push_back({"head"});
    for (auto &stage : stages) {
      if (stage.empty())
        continue;
      x = reduce(kind, x, stage, where);
      where = {};
      if (kind == Reduction::Count)
        kind = Reduction::Sum;
    }
    return x;
  }

  Value reduction(kvp::ReduceOp op) {
    Value x = op.getInput(), where = op.getWhere();
    SmallVector<StringRef> over = kvp::axisNames(op.getOver());
    bool wide = llvm::any_of(
        over, [&](StringRef a) { return a == "head" || a == "feature" || isEntryAxis(x, a); });
    // Parts are indexed before their slots are counted.
    bool slots = over.size() > 1 && llvm::any_of(over, [&](StringRef a) { return isSlot(x, a); });
    switch (op.getKind()) {
    case Reduction::Norm:
      return map(Fn::Sqrt, squares(x, over, where));
    case Reduction::Var:
      return variance(x, over, where);
    case Reduction::Std:
      return map(Fn::Sqrt, variance(x, over, where));
    case Reduction::Argmax:
      return argmax(x, over.front(), where);
    case Reduction::Mean:
      return wide || slots ? mean(x, over, where) : Value();
    default:
      return over.size() > 1 && (wide || slots) ? staged(op.getKind(), x, over, where) : Value();
    }
  }

  Value replacement(Operation *op) {
    return TypeSwitch<Operation *, Value>(op)
        .Case([&](kvp::ReduceOp r) { return reduction(r); })
        .Case([&](kvp::DotOp d) -> Value {
          if (!isEntryAxis(d.getLhs(), d.getOver()) && !isSlot(d.getLhs(), d.getOver()) &&
              !isSlot(d.getRhs(), d.getOver()))
            return {};
          Value product = map(Fn::Mul, {d.getLhs(), d.getRhs()});
          return reduce(Reduction::Sum, product, {d.getOver()});
        })
        .Case([&](kvp::MapOp m) -> Value {
          // x ** 2 is x * x, so that both spellings are one value.
          Attribute power;
          if (m.getFn() != Fn::Pow || !matchPattern(m.getOperand(1), m_Constant(&power)))
            return {};
          auto real = dyn_cast<FloatAttr>(power);
          auto whole = dyn_cast<IntegerAttr>(power);
          if (!(real && real.getValueAsDouble() == 2) && !(whole && whole.getInt() == 2))
            return {};
          Value square = map(Fn::Mul, {m.getOperand(0), m.getOperand(0)});
          return square.getType() == m.getResult().getType() ? square : Value();
        })
        .Case(
            [&](kvp::NormalizeOp n) { return normalize(n.getInput(), n.getAxis(), n.getWhere()); })
        .Case([&](kvp::SoftmaxOp s) -> Value {
          if (!hasStatistics(s.getInput(), s.getAxis()) ||
              runsAlongQueries(s.getInput(), s.getAxis()))
            return softmaxShort(asFloat(s.getInput()), s.getAxis(), s.getWhere());
          if (!s.getWhere())
            return {};
          Value low = real(-std::numeric_limits<double>::infinity());
          Value x = map(Fn::Where, {s.getWhere(), asFloat(s.getInput()), low});
          return kvp::SoftmaxOp::create(b, x, s.getAxisAttr(), Value());
        })
        .Case([&](kvp::RankOp r) -> Value {
          auto over = kvp::axisNames(r.getOver());
          if (over.size() != 1 || isEntryAxis(r.getInput(), over.front()))
            return {};
          return rankShort(r.getInput(), over.front(), r.getProtect(), r.getWhere());
        })
        .Case([&](kvp::RotateOp r) {
          SmallVector<StringRef> mean;
          if (r.getMean())
            mean = kvp::axisNames(*r.getMean());
          return turn(r.getInput(), r.getBy(), /*back=*/false, mean);
        })
        .Case([&](kvp::InputOp input) {
          return input.getInput() == kvp::Input::Unrotated_keys ? unrotatedKeys(input) : Value();
        })
        .Case([&](kvp::CumsumOp c) -> Value {
          return isEntryAxis(c.getInput(), c.getAxis())
                     ? Value()
                     : cumsumShort(c.getInput(), c.getAxis(), c.getWhere());
        })
        .Default([](Operation *) { return Value(); });
  }
};

/// Keeps what a picked part has not out of what is made of it: `x.at(part, i)` has the slots of a
/// part, and of the last there may be fewer. Parts that a tensor still has are known by its axes.
class PickedParts {
public:
  void visit(Operation *op) {
    if (auto pick = dyn_cast<kvp::AtOp>(op))
      return at(pick);
    Value met = ofOtherParts(op);
    if (there.empty() && !met)
      return;
    TypeSwitch<Operation *>(op)
        .Case([&](kvp::ReduceOp reduce) {
          Value kept = narrow(reduce, reduce.getInput(), kvp::axisNames(reduce.getOver()),
                              reduce.getWhereMutable());
          set(reduce.getResult(), any(op, kept, kvp::axisNames(reduce.getOver())));
        })
        .Case([&](kvp::RankOp rank) {
          set(rank.getResult(), narrow(rank, rank.getInput(), kvp::axisNames(rank.getOver()),
                                       rank.getWhereMutable()));
        })
        .Case([&](kvp::SortOp sort) {
          Value kept = narrow(sort, sort.getInput(), {sort.getAxis()}, sort.getWhereMutable());
          set(sort.getResult(), renamed(op, kept, sort.getAxis(), sort.getTo()));
        })
        .Case<kvp::SoftmaxOp, kvp::NormalizeOp, kvp::CumsumOp, kvp::AvgPoolOp, kvp::MaxPoolOp>(
            [&](auto o) {
              set(o.getResult(), narrow(o, o.getInput(), {o.getAxis()}, o.getWhereMutable()));
            })
        .Case([&](kvp::ShiftOp shift) {
          Value kept = there.lookup(shift.getInput());
          if (has(kept, shift.getAxis()))
            shift.getInputMutable().assign(
                before(op).map(Fn::Where, {kept, shift.getInput(), shift.getFill()}));
          set(shift.getResult(), kept);
        })
        .Case([&](kvp::DotOp dot) {
          Value kept =
              both(op, met, both(op, there.lookup(dot.getLhs()), there.lookup(dot.getRhs())));
          if (!has(kept, dot.getOver())) {
            set(dot.getResult(), kept);
            return;
          }
          Decompose b = before(op);
          Value product = b.map(Fn::Mul, {dot.getLhs(), dot.getRhs()});
          Value sum = b.reduce(Reduction::Sum, product, {dot.getOver()}, kept);
          set(sum, any(op, kept, {dot.getOver()}));
          op->getResult(0).replaceAllUsesWith(sum);
          op->erase();
        })
        .Case([&](kvp::JoinOp join) {
          if (Value kept = there.lookup(join.getInput()))
            join.getInputMutable().assign(
                before(op).map(Fn::Where, {kept, join.getInput(), join.getFill()}));
        })
        .Case([&](kvp::RenameOp rename) {
          Value kept = there.lookup(rename.getInput());
          set(rename.getResult(), renamed(op, kept, rename.getFrom(), rename.getTo()));
        })
        .Default([&](Operation *other) {
          if (other->getNumResults() != 1 || !isa<NamedTensorType>(other->getResult(0).getType()))
            return;
          Value kept = met;
          for (Value operand : other->getOperands())
            kept = both(other, kept, there.lookup(operand));
          set(other->getResult(0), kept);
        });
  }

private:
  /// Value -> which of its elements are there.
  llvm::DenseMap<Value, Value> there;

  static bool has(Value condition, StringRef axis) {
    return condition && cast<NamedTensorType>(condition.getType()).hasAxis(axis);
  }
  static Decompose before(Operation *op) { return Decompose(op); }
  static Decompose after(Operation *op) {
    Decompose out(op);
    out.b.setInsertionPointAfter(op);
    return out;
  }
  void set(Value v, Value condition) {
    if (condition)
      there[v] = condition;
  }
  /// Slots of the parts of `x`, if some may be missing: null, or which are there.
  static Value slotsThere(Operation *op, Value x, StringRef slot) {
    kvplan::Slots slots = kvplan::slotsAlong(x, slot);
    if (!slots || slots.partition.getWhole())
      return {};
    Decompose b = before(op);
    return b.present(slots.partition, kvp::IndexOp::create(b.b, x, slots.part),
                     kvp::IndexOp::create(b.b, x, slot));
  }
  /// Where slots of two axes of parts meet under one name, a value's axes tell those of the first
  /// operand: null, or which the others have.
  static Value ofOtherParts(Operation *op) {
    if (!isa<kvp::MapOp, kvp::DotOp, kvp::RotateOp>(op))
      return {};
    Value met;
    llvm::StringMap<StringRef> partsOf;
    for (Value x : op->getOperands()) {
      auto type = dyn_cast<NamedTensorType>(x.getType());
      for (kvp::AxisAttr axis : type ? type.getAxes() : ArrayRef<kvp::AxisAttr>())
        if (kvplan::Slots slots = kvplan::slotsAlong(x, axis.getName()))
          if (partsOf.try_emplace(axis.getName(), slots.part).first->second != slots.part)
            met = both(op, met, slotsThere(op, x, axis.getName()));
    }
    return met;
  }
  static Value both(Operation *op, Value a, Value c) {
    return !a || !c || a == c ? (a ? a : c) : before(op).map(Fn::And, {a, c});
  }
  static Value renamed(Operation *op, Value condition, StringRef from, StringRef to) {
    return has(condition, from) && from != to ? before(op).other(condition, from, to) : condition;
  }
  static Value any(Operation *op, Value condition, ArrayRef<StringRef> over) {
    SmallVector<StringRef> own;
    for (StringRef axis : over)
      if (has(condition, axis))
        own.push_back(axis);
    if (own.empty())
      return condition;
    if (own.size() == cast<NamedTensorType>(condition.getType()).getAxes().size())
      return {};
    return before(op).reduce(Reduction::Any, condition, own);
  }
  /// Narrows `where` to what is there, if that differs along the axes; gives what is there.
  Value narrow(Operation *op, Value x, ArrayRef<StringRef> along, MutableOperandRange where) {
    Value kept = there.lookup(x);
    if (llvm::any_of(along, [&](StringRef axis) { return has(kept, axis); }))
      where.assign(where.empty() ? kept : both(op, where[0].get(), kept));
    return kept;
  }

  void at(kvp::AtOp pick) {
    Operation *op = pick;
    Value x = pick.getInput(), index = pick.getIndex(), kept = there.lookup(x);
    StringRef axis = pick.getAxis();
    Decompose b = before(op);
    if (has(kept, axis)) {
      bool slot = kvplan::originOf(x, axis).second == "slot";
      if (slot) { // the last that is there stands for those behind
        Value last = b.map(Fn::Sub, {b.reduce(Reduction::Count, kept, {axis}), b.integer(1)});
        pick.getIndexMutable().assign(index = b.map(Fn::Minimum, {index, last}));
        kept = any(op, kept, {axis});
      } else {
        kept = kvp::AtOp::create(b.b, kept, axis, index);
      }
    }
    for (kvp::AxisAttr own : cast<NamedTensorType>(x.getType()).getAxes()) {
      kvplan::Slots slots = kvplan::slotsAlong(x, own.getName());
      if (!slots || slots.part != axis || slots.partition.getWhole())
        continue;
      Value last = b.map(Fn::Sub, {kvp::ExtentOp::create(b.b, x, axis), b.integer(1)});
      Value part = b.map(Fn::Maximum, {b.map(Fn::Minimum, {index, last}), b.integer(0)});
      kept = both(op, kept,
                  b.present(slots.partition, part, kvp::IndexOp::create(b.b, x, own.getName())));
    }
    if (auto type = dyn_cast<NamedTensorType>(index.getType())) {
      kept = both(op, kept, there.lookup(index));
      for (kvp::AxisAttr own : type.getAxes()) // as many as parts of the index have
        if (cast<NamedTensorType>(x.getType()).hasAxis(own.getName()))
          kept = both(op, kept, slotsThere(op, index, own.getName()));
    }
    set(pick.getResult(), kept);
  }
};

struct Primitives : kvpc::impl::KvpPrimitivesBase<Primitives> {
  void runOnOperation() override {
    PickedParts picked;
    for (Operation &op : llvm::make_early_inc_range(getOperation().getBody().front()))
      picked.visit(&op);
    for (Operation &op : llvm::make_early_inc_range(getOperation().getBody().front())) {
      Operation *here = &op;
      if (isa<kvp::DotOp>(op)) // that along parts or slots is a sum, which knows what is there
        if (Value sum = replace(op))
          here = sum.getDefiningOp();
      Decompose(here).admitPresent(here), Decompose(here).spreadConditions(here);
    }
    // What a decomposition makes may need one itself (mean of several axes).
    for (bool changed = true; changed;) {
      changed = false;
      for (Operation &op : llvm::make_early_inc_range(getOperation().getBody().front()))
        changed |= bool(replace(op));
    }
  }

  static Value replace(Operation &op) {
    Value with = Decompose(&op).replacement(&op);
    if (!with)
      return {};
    // Axes may stand in another order now; names are what counts.
    op.getResult(0).replaceAllUsesWith(with);
    op.erase();
    return with;
  }
};

} // namespace
