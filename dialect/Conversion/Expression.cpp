//===- Expression.cpp - one element of a tensor, on demand ------------------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "kvpc/abi.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

const Index *Indices::find(StringRef axis) const {
  for (auto &[name, index] : axes)
    if (name == axis)
      return &index;
  return nullptr;
}

Indices Indices::with(StringRef axis, Index index) const {
  Indices out = *this;
  for (auto &[name, old] : out.axes)
    if (name == axis) {
      old = index;
      return out;
    }
  out.axes.emplace_back(axis.str(), index);
  return out;
}

bool Indices::hasLanes() const {
  return llvm::any_of(axes, [](auto &entry) { return entry.second.lanes; });
}

Value Kernel::indexValue(const Index &index) {
  if (!index.lanes)
    return index.base;
  if (index.vector)
    return index.vector;
  return e.add(e.spread(index.base), e.iota());
}

/// An index of lanes that are not neighbours.
static Index scattered(Value vector) { return Index{{}, vector, true}; }

Value Kernel::value(const Row &row, Value v, const Indices &at) {
  if (!isa<kvp::NamedTensorType>(v.getType()))
    return host(row, v);
  std::vector<const void *> key{v.getAsOpaquePointer()};
  bool lanes = false;
  for (kvp::AxisAttr axis : cast<kvp::NamedTensorType>(v.getType()).getAxes()) {
    const Index *index = at.find(axis.getName());
    if (!index) {
      error(v.getDefiningOp(), "axis `" + axis.getName() + "` is evaluated outside its loop");
      return e.constantOf(cast<kvp::NamedTensorType>(v.getType()).getElementType(), 0);
    }
    key.push_back(index->base.getAsOpaquePointer());
    key.push_back(index->vector.getAsOpaquePointer());
    key.push_back(reinterpret_cast<const void *>(uintptr_t(index->lanes)));
    lanes |= index->lanes;
  }
  if (lanes)
    key.push_back(at.mask.getAsOpaquePointer());
  return remember(key, [&] { return compute(row, v, at); });
}

Value Kernel::compute(const Row &row, Value v, const Indices &at) {
  if (auto arg = dyn_cast<BlockArgument>(v))
    return weights(row, arg, at);
  Operation *op = v.getDefiningOp();
  return TypeSwitch<Operation *, Value>(op)
      .Case([&](kvp::InputOp o) { return input(row, o, at); })
      .Case([&](kvplan::LoadOp o) { return load(row, o.getBuffer(), at); })
      .Case([&](kvp::MapOp o) { return map(row, o, at); })
      .Case([&](kvp::ReduceOp o) { return reduceOp(row, o, at); })
      .Case([&](kvp::DotOp o) {
        SmallVector<Range> ranges = rangesOf(row, o.getLhs(), {o.getOver()}, at);
        Value of = laneAxis(o.getLhs(), {o.getOver()}).empty() ? o.getRhs() : o.getLhs();
        return reduceRanges(row, of, ranges, Fold::Sum, e.f32(), at, [&](const Indices &here) {
          Value a = value(row, o.getLhs(), here), b = value(row, o.getRhs(), here);
          return applyFn(kvp::Fn::Mul, {a, b}, e.f32());
        });
      })
      .Case([&](kvp::PositionOp o) {
        return o.getOriginal() ? originalPosition(row, o.getCache(), at)
                               : indexValue(*at.find("token"));
      })
      .Case([&](kvp::CausalOp o) {
        // Query i of the w given stands at original position seen - w + i.
        Value w = extent(row, v, "query");
        Value first = e.sub(perRow(row, offsetof(kvpc_call, seen)), w);
        Value query = indexValue(*at.find("query"));
        Value token = originalPosition(row, o.getCache(), at);
        if (e.isVector(query) || e.isVector(token)) {
          query = e.spread(query);
          token = e.spread(token);
          first = e.spread(first);
        }
        return e.cmp(arith::CmpIPredicate::sle, token, e.add(first, query));
      })
      .Case([&](kvp::IndexOp o) { return indexValue(*at.find(o.getAxis())); })
      .Case([&](kvp::IotaOp o) { return indexValue(*at.find(o.getAxis())); })
      .Case([&](kvp::UniformOp o) { return uniform(row, o, at); })
      .Case([&](kvp::RotaryOp o) { return rotary(row, o, at); })
      .Case([&](kvp::PairOp o) {
        return value(row, o.getInput(), at.with(o.getAxis(), partner(row, *at.find(o.getAxis()))));
      })
      .Case([&](kvp::RenameOp o) {
        return value(row, o.getInput(), at.with(o.getFrom(), *at.find(o.getTo())));
      })
      .Case([&](kvp::PartitionOp o) {
        const Index part = *at.find("part"), slot = *at.find("slot");
        Value from = o.getFrom() ? host(row, o.getFrom()) : e.constant(0);
        Value size = e.constant(o.getSize());
        // A short last part has no entries past the end; what is read there counts nowhere.
        Value last = e.sub(extent(row, o.getInput(), o.getAxis()), e.constant(1));
        Index token;
        Indices there = at;
        if (!part.lanes && !slot.vector) {
          token = slot;
          token.aligned = false;
          token.base = e.add(e.add(from, e.mul(part.base, size)), slot.base);
          if (!slot.lanes && !o.getWhole())
            token.base = e.max(e.min(token.base, last), e.constant(0));
          else if (!o.getWhole())
            there.mask = e.both(
                at.mask, e.cmp(arith::CmpIPredicate::sle, indexValue(token), e.spread(last)));
        } else {
          Value p = e.spread(indexValue(part)), s = e.spread(indexValue(slot));
          Value i = e.add(e.add(e.spread(from), e.mul(p, e.spread(size))), s);
          token = scattered(e.max(e.min(i, e.spread(last)), e.spread(e.constant(0))));
        }
        return value(row, o.getInput(), there.with(o.getAxis(), token));
      })
      .Case([&](kvp::JoinOp o) {
        // Entries outside every part read the first element and take the fill instead.
        const Index token = *at.find(o.getAxis());
        Value i = indexValue(token);
        auto like = [&](Value x) { return e.isVector(i) ? e.spread(x) : x; };
        Value from = o.getFrom() ? host(row, o.getFrom()) : e.constant(0);
        Value to = o.getTo() ? host(row, o.getTo()) : extent(row, o.getLike(), o.getAxis());
        Value size = e.constant(o.getSize());
        if (o.getWhole()) {
          Value whole = e.div(e.max(e.sub(to, from), e.constant(0)), size);
          to = e.add(from, e.mul(whole, size));
        }
        Value inside = e.both(e.cmp(arith::CmpIPredicate::sge, i, like(from)),
                              e.cmp(arith::CmpIPredicate::slt, i, like(to)));
        Value offset = e.select(inside, e.sub(i, like(from)), like(e.constant(0)));
        auto index = [&](Value x) { return e.isVector(x) ? scattered(x) : Index{x, {}, false}; };
        Indices inner = at.with("part", index(e.div(offset, like(size))))
                            .with("slot", index(e.rem(offset, like(size))));
        Value fill = host(row, o.getFill());
        Type element = o.getResult().getType().getElementType();
        if (element.isF32())
          fill = e.toFloat(fill);
        bool lanes = at.hasLanes(); // of this axis or another
        // Where no part exists at all, nothing may be read.
        Value any = e.less(from, to);
        Value read = e.choose(
            any,
            [&] {
              Value x = value(row, o.getInput(), inner);
              return lanes ? e.spread(x) : x;
            },
            [&] { return lanes ? e.spread(fill) : fill; });
        return e.select(inside, read, lanes ? e.spread(fill) : fill);
      })
      .Case([&](kvp::AtOp o) {
        Value index = value(row, o.getIndex(), at);
        Value n = extent(row, o.getInput(), o.getAxis());
        // A short last part ends earlier.
        if (auto slots = kvplan::slotsAlong(o.getInput(), o.getAxis()))
          n = slotsOf(row, slots.partition, indexValue(*at.find(slots.part)));
        if (e.isVector(index) || e.isVector(n)) {
          index = e.spread(index);
          n = e.spread(n);
        }
        auto like = [&](int64_t c) {
          return e.isVector(n) ? e.spread(e.constant(c)) : e.constant(c);
        };
        Value last = e.sub(n, like(1)), zero = like(0);
        Value clamped = e.max(e.min(index, last), zero);
        Index where = e.isVector(clamped) ? scattered(clamped) : Index{clamped, {}, false};
        Indices inner = at.with(o.getAxis(), where);
        auto partition = kvplan::originOf(o.getInput(), o.getAxis());
        auto range = partition.first.getDefiningOp<kvp::PartitionOp>();
        if (!range || partition.second != "part" ||
            !(range.getFrom() || range.getTo() || range.getWhole()))
          return value(row, o.getInput(), inner);
        // A range may hold no part: nothing may be read.
        Value none = e.constantOf(o.getResult().getType().getElementType(), 0);
        bool lanes = inner.hasLanes();
        auto spread = [&](Value x) { return lanes ? e.spread(x) : x; };
        Value parts = extent(row, o.getInput(), o.getAxis());
        return e.choose(
            e.less(e.constant(0), parts), [&] { return spread(value(row, o.getInput(), inner)); },
            [&] { return spread(none); });
      })
      .Case<kvp::AvgPoolOp, kvp::MaxPoolOp, kvp::ShiftOp>(
          [&](auto o) { return pool(row, o.getOperation(), at); })
      .Case([&](kvplan::WeightOp o) {
        Value x = value(row, o.getValue(), at), m = value(row, o.getMaximum(), at),
              rz = value(row, o.getInverse(), at);
        if (e.isVector(x) || e.isVector(m)) {
          x = e.spread(x);
          m = e.spread(m);
          rz = e.spread(rz);
        }
        Value weight = unary(kvp::Fn::Exp, arith::SubFOp::create(e, x, m));
        weight = arith::MulFOp::create(e, weight, rz);
        Value masked = arith::CmpFOp::create(
            e, arith::CmpFPredicate::OEQ, x,
            e.constantOf(x.getType(), -std::numeric_limits<double>::infinity()));
        return e.select(masked, e.constantOf(x.getType(), 0), weight);
      })
      .Case([&](kvplan::RescaleOp o) {
        Value x = value(row, o.getExponents(), at), w = value(row, o.getFactors(), at);
        if (e.isVector(x) || e.isVector(w)) {
          x = e.spread(x);
          w = e.spread(w);
        }
        // What is masked, -0, stays 0 where the row's sum is NaN.
        Type bits = e.getI32Type();
        if (auto vector = dyn_cast<VectorType>(x.getType()))
          bits = vector.clone(bits);
        Value masked = arith::CmpIOp::create(
            e, arith::CmpIPredicate::eq, arith::BitcastOp::create(e, bits, x),
            arith::BitcastOp::create(e, bits, e.constantOf(x.getType(), -0.0)));
        return e.select(masked, e.constantOf(x.getType(), 0), arith::MulFOp::create(e, x, w));
      })
      .Default([&](Operation *other) {
        error(other, "`" + other->getName().getStringRef() + "` cannot stand inside an expression");
        return e.constantOf(cast<kvp::NamedTensorType>(v.getType()).getElementType(), 0);
      });
}

//===------------------------------------------------------------------------------------------===//
// Functions
//===------------------------------------------------------------------------------------------===//

/// The symbol of an elementary function.
static std::string primitive(StringRef name, Type element, bool vector) {
  return ((element.isF64() ? "kvpc_prim_f64_" : "kvpc_prim_") + name + (vector ? "_v" : "")).str();
}

Value Kernel::unary(kvp::Fn fn, Value x) {
  Type element = getElementTypeOrSelf(x.getType());
  return e.call(primitive(kvp::stringifyFn(fn), element, e.isVector(x)), x.getType(), x);
}

Value Kernel::applyFn(kvp::Fn fn, ArrayRef<Value> in, Type element) {
  using F = kvp::Fn;
  SmallVector<Value> x(in);
  bool vectors = llvm::any_of(x, [&](Value v) { return e.isVector(v); });
  if (vectors)
    for (Value &v : x)
      v = e.spread(v);
  auto like = [&](Type t) -> Type { return vectors ? Type(e.vec(t)) : t; };
  Type operand = getElementTypeOrSelf(x.back().getType());
  bool floats = isa<FloatType>(operand);
  auto constant = [&](double c) { return e.constantOf(x.back().getType(), c); };
  switch (fn) {
  case F::Add:
    return floats ? e.createOrFold<arith::AddFOp>(x[0], x[1]) : e.add(x[0], x[1]);
  case F::Sub:
    return floats ? e.createOrFold<arith::SubFOp>(x[0], x[1]) : e.sub(x[0], x[1]);
  case F::Mul:
    return floats ? e.createOrFold<arith::MulFOp>(x[0], x[1]) : e.mul(x[0], x[1]);
  case F::Div:
    return arith::DivFOp::create(e, x[0], x[1]);
  case F::Mod: {
    if (floats)
      return e.call(primitive("mod", operand, vectors), x[0].getType(), {x[0], x[1]});
    Value zero = constant(0), one = constant(1);
    Value none = e.cmp(arith::CmpIPredicate::eq, x[1], zero);
    Value divisor = e.select(none, one, x[1]);
    Value r = arith::RemSIOp::create(e, x[0], divisor);
    Value opposite = e.cmp(arith::CmpIPredicate::slt, arith::XOrIOp::create(e, r, divisor), zero);
    Value wrong = e.both(e.cmp(arith::CmpIPredicate::ne, r, zero), opposite);
    return e.select(none, zero, e.select(wrong, e.add(r, divisor), r));
  }
  case F::Minimum:
    return floats ? arith::MinimumFOp::create(e, x[0], x[1]).getResult() : e.min(x[0], x[1]);
  case F::Maximum:
    return floats ? arith::MaximumFOp::create(e, x[0], x[1]).getResult() : e.max(x[0], x[1]);
  case F::Relu:
    return floats ? arith::MaximumFOp::create(e, x[0], constant(0)).getResult()
                  : e.max(x[0], constant(0));
  case F::Neg:
    return floats ? arith::NegFOp::create(e, x[0]).getResult() : e.sub(constant(0), x[0]);
  case F::Abs:
    return floats ? math::AbsFOp::create(e, x[0]).getResult()
                  : e.max(x[0], e.sub(constant(0), x[0]));
  case F::Sqrt:
    return math::SqrtOp::create(e, x[0]);
  case F::Rsqrt:
    return arith::DivFOp::create(e, constant(1), math::SqrtOp::create(e, x[0]));
  case F::Exp:
  case F::Log:
  case F::Tanh:
  case F::Sigmoid:
  case F::Gelu:
    return unary(fn, x[0]);
  case F::Pow: {
    APFloat power(0.0);
    if (matchPattern(in[1], m_ConstantFloat(&power)) && power.isInteger()) {
      double p = power.convertToDouble();
      if (p >= 0 && p <= 8) {
        Value product = constant(1);
        for (int i = 0; i < p; ++i)
          product = i ? arith::MulFOp::create(e, product, x[0]).getResult() : x[0];
        return product;
      }
    }
    if (floats)
      return e.call(primitive("pow", operand, vectors), x[0].getType(), {x[0], x[1]});
    // Integers: square and multiply over the bits of the exponent; negative exponents give 0 or 1.
    Value result = constant(1), base = x[0], exponent = e.max(x[1], constant(0));
    for (int bit = 0; bit < 63; ++bit) {
      Value set = arith::TruncIOp::create(e, like(e.i1()),
                                          arith::ShRUIOp::create(e, exponent, constant(bit)));
      result = e.select(set, e.mul(result, base), result);
      base = e.mul(base, base);
    }
    Value one = e.cmp(arith::CmpIPredicate::eq, x[0], constant(1));
    Value negative = e.cmp(arith::CmpIPredicate::slt, x[1], constant(0));
    return e.select(negative, e.select(one, constant(1), constant(0)), result);
  }
  case F::Floor:
  case F::Round:
  case F::Int: {
    if (!floats)
      return x[0];
    Value r = fn == F::Floor   ? math::FloorOp::create(e, x[0]).getResult()
              : fn == F::Round ? math::RoundEvenOp::create(e, x[0]).getResult()
                               : math::TruncOp::create(e, x[0]).getResult();
    // Saturates; NaN gives 0.
    return LLVM::CallIntrinsicOp::create(e, like(e.i64()), e.getStringAttr("llvm.fptosi.sat"),
                                         ValueRange{r})
        .getResult(0);
  }
  case F::Float:
    return element.isF64() && !floats
               ? (operand.isInteger(1)
                      ? arith::UIToFPOp::create(e, like(e.f64()), x[0]).getResult()
                      : arith::SIToFPOp::create(e, like(e.f64()), x[0]).getResult())
           : element.isF64() ? x[0]
                             : e.toFloat(x[0]);
  case F::Lt:
  case F::Le:
  case F::Eq:
  case F::Ne: {
    if (floats) {
      auto p = fn == F::Lt   ? arith::CmpFPredicate::OLT
               : fn == F::Le ? arith::CmpFPredicate::OLE
               : fn == F::Eq ? arith::CmpFPredicate::OEQ
                             : arith::CmpFPredicate::UNE;
      return e.createOrFold<arith::CmpFOp>(p, x[0], x[1]);
    }
    auto p = fn == F::Lt   ? arith::CmpIPredicate::slt
             : fn == F::Le ? arith::CmpIPredicate::sle
             : fn == F::Eq ? arith::CmpIPredicate::eq
                           : arith::CmpIPredicate::ne;
    return e.cmp(p, x[0], x[1]);
  }
  case F::And:
    return e.createOrFold<arith::AndIOp>(x[0], x[1]);
  case F::Or:
    return e.createOrFold<arith::OrIOp>(x[0], x[1]);
  case F::Not:
    return arith::XOrIOp::create(e, x[0], constant(1));
  case F::Where:
    return e.select(x[0], x[1], x[2]);
  }
  llvm_unreachable("function");
}

Value Kernel::map(const Row &row, kvp::MapOp op, const Indices &at) {
  SmallVector<Value> x;
  for (Value operand : op.getOperands())
    x.push_back(value(row, operand, at));
  auto isFloat = [](Value v) { return isa<FloatType>(getElementTypeOrSelf(v.getType())); };
  Type element = cast<kvp::NamedTensorType>(op.getResult().getType()).getElementType();
  bool floats = element.isF32() || llvm::any_of(x, isFloat);
  kvp::Fn fn = op.getFn();
  bool numbers = fn != kvp::Fn::And && fn != kvp::Fn::Or && fn != kvp::Fn::Not;
  if (floats && numbers && fn != kvp::Fn::Float)
    for (auto [i, v] : llvm::enumerate(x))
      if (!(fn == kvp::Fn::Where && i == 0))
        x[i] = e.toFloat(v);
  return applyFn(fn, x, element);
}

/// Neighbours along an axis: avg_pool, max_pool, shift.
Value Kernel::pool(const Row &row, Operation *op, const Indices &at) {
  Value of = op->getOperand(0);
  auto axisName = op->getAttrOfType<StringAttr>("axis").getValue();
  const Index center = *at.find(axisName);
  Value n = extent(row, of, axisName);
  // Nothing lies past the end of a short last part.
  if (auto slots = kvplan::slotsAlong(of, axisName))
    n = slotsOf(row, slots.partition, indexValue(*at.find(slots.part)));
  // Along parts, the last may lack the slot at hand.
  kvplan::Slots slots;
  StringRef slot;
  for (kvp::AxisAttr axis : cast<kvp::NamedTensorType>(of.getType()).getAxes())
    if (auto found = kvplan::slotsAlong(of, axis.getName()); found && found.part == axisName) {
      slots = found;
      slot = axis.getName();
    }
  Value where;
  auto shift = dyn_cast<kvp::ShiftOp>(op);
  auto maxPool = dyn_cast<kvp::MaxPoolOp>(op);
  if (auto avg = dyn_cast<kvp::AvgPoolOp>(op))
    where = avg.getWhere();
  else if (maxPool)
    where = maxPool.getWhere();
  Type element = cast<kvp::NamedTensorType>(op->getResult(0).getType()).getElementType();

  // The operand `distance` entries away; `outside` where there is none.
  auto neighbour = [&](Value distance, Value outside) {
    Index index = center;
    index.aligned = false;
    Value position = indexValue(center);
    bool vectors = e.isVector(position) || e.isVector(n);
    auto like = [&](Value x) { return vectors ? e.spread(x) : x; };
    position = like(position);
    Value moved = e.add(position, like(distance));
    Value inside = e.both(e.cmp(arith::CmpIPredicate::sge, moved, like(e.constant(0))),
                          e.cmp(arith::CmpIPredicate::slt, moved, like(n)));
    Indices there = at;
    if (!vectors) {
      Value last = e.sub(n, e.constant(1));
      index.base = e.max(e.min(moved, last), e.constant(0));
    } else if (center.vector || !center.lanes) {
      index = scattered(e.select(inside, moved, position));
    } else {
      index.base = e.add(center.base, distance);
    }
    if (vectors)
      there.mask = e.both(at.mask, inside);
    there = there.with(axisName, index);
    Value x = value(row, of, there);
    if (element.isF32())
      x = e.toFloat(x);
    auto both = [&](Value a, Value b) {
      return e.isVector(a) || e.isVector(b) ? e.both(e.spread(a), e.spread(b)) : e.both(a, b);
    };
    if (slots) {
      Value s = indexValue(*at.find(slot)), count = slotsOf(row, slots.partition, moved);
      bool lanes = e.isVector(s) || e.isVector(count);
      inside = both(inside, e.cmp(arith::CmpIPredicate::slt, lanes ? e.spread(s) : s,
                                  lanes ? e.spread(count) : count));
    }
    if (where) {
      Value c = value(row, where, there);
      inside = both(inside, c);
    }
    if (!e.isVector(inside) && e.isVector(x))
      return e.select(inside, x, e.spread(outside));
    return e.select(inside, x, outside);
  };

  if (shift) {
    Value fill = host(row, shift.getFill());
    if (element.isF32())
      fill = e.toFloat(fill);
    return neighbour(e.sub(e.constant(0), host(row, shift.getBy())), fill);
  }
  int64_t size = op->getAttrOfType<IntegerAttr>("size").getInt(), half = size / 2;
  Fold fold = maxPool ? Fold::Max : Fold::Sum;
  bool lanes = at.hasLanes();
  Type type = lanes ? Type(e.vec(e.f32())) : e.f32();
  Value outside =
      maxPool ? e.constantF32(-std::numeric_limits<double>::infinity()) : e.constantF32(0);
  auto tap = [&](Value distance) {
    Value x = neighbour(distance, outside);
    return lanes ? e.spread(x) : x;
  };
  Value sum;
  if (size <= 15) {
    for (int64_t d = -half; d <= half; ++d)
      sum = sum ? foldPair(fold, sum, tap(e.constant(d))) : tap(e.constant(d));
  } else {
    Value from = e.constant(-half), to = e.constant(half + 1);
    if (!e.isVector(n)) { // as many as there are on either side at most
      from = e.max(from, e.sub(e.constant(1), n));
      to = e.min(to, n);
    }
    sum = e.loop(from, to, 1, identity(fold, type), [&](Value d, ValueRange acc) {
      return SmallVector<Value>{foldPair(fold, acc[0], tap(d))};
    })[0];
  }
  if (!maxPool)
    sum = arith::DivFOp::create(e, sum, e.constantOf(sum.getType(), size));
  if (where)
    sum = e.select(value(row, where, at), sum, e.constantOf(sum.getType(), 0));
  return sum;
}

/// Calls one(lane) for every lane and puts the results together.
static Value eachLane(Emitter &e, function_ref<Value(int64_t)> one) {
  Value out = e.constantOf(e.vec(e.f32()), 0);
  for (int64_t lane = 0; lane < e.lanes(); ++lane)
    out = vector::InsertOp::create(e, one(lane), out, ArrayRef<int64_t>{lane});
  return out;
}

Value Kernel::uniform(const Row &row, kvp::UniformOp op, const Indices &at) {
  Value seed = host(row, op.getSeed());
  Value layer = field(row, offsetof(kvpc_call, layer));
  Value head = e.constant(0), position = e.constant(0), extra = e.constant(0);
  for (Attribute attr : op.getAxes()) {
    auto axis = cast<kvp::AxisAttr>(attr);
    if (axis.getName() == "head")
      head = indexValue(*at.find("head"));
    else if (axis.getName() == "token")
      position = originalPosition(row, op.getCache(), at);
    else {
      Index own = *at.find(axis.getName());
      Value extent = e.constant(axis.getExtent());
      if (axis.getName() == "channel") { // as the keys had it before any went
        const CacheState &state = states[op.getCache()];
        extent = field(row, offsetof(kvpc_call, channels));
        if (state.channels)
          own = mapThrough(row, state.channels, state.channelsPerHead, own, at, extent);
      }
      Value i = indexValue(own);
      Value scaled = e.mul(extra, e.isVector(extra) ? e.spread(extent) : extent);
      extra = e.isVector(i) || e.isVector(scaled) ? e.add(e.spread(scaled), e.spread(i))
                                                  : e.add(scaled, i);
    }
  }
  auto one = [&](std::optional<int64_t> lane) {
    auto pick = [&](Value v) -> Value {
      return e.isVector(v) ? vector::ExtractOp::create(e, v, ArrayRef<int64_t>{*lane}).getResult()
                           : v;
    };
    return e.call("kvpc_prim_uniform", e.f32(),
                  {seed, layer, pick(head), pick(position), pick(extra)});
  };
  if (!e.isVector(head) && !e.isVector(position) && !e.isVector(extra))
    return one({});
  if (e.isVector(position) && !e.isVector(head) && !e.isVector(extra)) {
    Value positions = onStack(8 * e.lanes()), numbers = onStack(8 * e.lanes());
    e.storeVector(Storage::I64, position, positions, {});
    e.call("kvpc_prim_uniform_row",
           {seed, layer, head, positions, e.constant(0), extra, e.constant(e.lanes()), numbers});
    return e.loadVector(Storage::F32, numbers, {});
  }
  return eachLane(e, one);
}

//===------------------------------------------------------------------------------------------===//
// Rotary embedding
//===------------------------------------------------------------------------------------------===//

Value Kernel::rotary(const Row &row, kvp::RotaryOp op, const Indices &at) {
  const Index channel = *at.find(op.getAxis());
  Value kind = e.constant((op.getWave() == kvp::Wave::Sin ? 1 : 0) + (op.getBack() ? 2 : 0));
  Value frequencies = fieldPtr(row, offsetof(kvpc_call, rope_frequencies));
  Value width = field(row, offsetof(kvpc_call, rope_width));
  Value interleaved = field(row, offsetof(kvpc_call, rope_interleaved));
  Value scaling = e.loadScalar(e.f64(), e.at(row.call, offsetof(kvpc_call, rope_scaling)));
  auto pick = [&](Value v, int64_t lane) -> Value {
    return e.isVector(v) ? vector::ExtractOp::create(e, v, ArrayRef<int64_t>{lane}).getResult() : v;
  };
  bool neighbours = channel.lanes && !channel.vector;
  if (op.getMean()) {
    // Sums of double, one a lane, in memory.
    int64_t lanes = at.hasLanes() ? e.lanes() : 1;
    Value sums = onStack(lanes * 8);
    auto each = [&](function_ref<void(Value, int64_t)> one) {
      for (int64_t lane = 0; lane < lanes; ++lane)
        one(e.at(sums, 8 * lane), lane);
    };
    each([&](Value sum, int64_t) { e.storeScalar(e.constantF64(0), sum); });
    SmallVector<Range> ranges = rangesOf(row, op.getBy(), kvp::axisNames(*op.getMean()), at);
    Value count = e.constant(1);
    for (const Range &r : ranges)
      count = e.mul(count, e.sub(r.to, r.from));
    forEach(ranges, "", at, [&](const Indices &here) {
      Value by = value(row, op.getBy(), here);
      auto add = [&](Value position, Value of, Value to, int64_t channels) {
        e.call("kvpc_prim_rotary_add", {kind, position, of, frequencies, width, interleaved,
                                        scaling, to, e.constant(channels)});
      };
      if (neighbours && !e.isVector(by))
        return add(by, channel.base, sums, lanes);
      Value channels = indexValue(channel);
      each([&](Value sum, int64_t lane) { add(pick(by, lane), pick(channels, lane), sum, 1); });
    });
    Value divisor = arith::SIToFPOp::create(e, e.f64(), count);
    auto mean = [&](int64_t lane) -> Value {
      Value sum = e.loadScalar(e.f64(), e.at(sums, 8 * lane));
      return e.toFloat(arith::DivFOp::create(e, sum, divisor));
    };
    return at.hasLanes() ? eachLane(e, mean) : mean(0);
  }
  Value by = value(row, op.getBy(), at);
  auto table = [&](StringRef name, Type type, Value position, Value of) {
    return e.call(name, type, {kind, position, of, frequencies, width, interleaved, scaling});
  };
  if (!channel.lanes && !e.isVector(by))
    return table("kvpc_prim_rotary", e.f32(), by, channel.base);
  if (neighbours && !e.isVector(by))
    return table("kvpc_prim_rotary_v", e.vec(e.f32()), by, channel.base);
  Value channels = indexValue(channel);
  return eachLane(e, [&](int64_t lane) {
    return table("kvpc_prim_rotary", e.f32(), pick(by, lane), pick(channels, lane));
  });
}

/// The channel that turns together with one, itself where it does not turn.
Index Kernel::partner(const Row &row, const Index &channel) {
  Value c = indexValue(channel);
  auto like = [&](Value x) { return e.isVector(c) ? e.spread(x) : x; };
  Value width = field(row, offsetof(kvpc_call, rope_width));
  Value half = like(e.div(width, e.constant(2)));
  Value other = e.select(e.cmp(arith::CmpIPredicate::slt, c, half), e.add(c, half), e.sub(c, half));
  Value next = arith::XOrIOp::create(e, c, like(e.constant(1)));
  Value neighbours = e.cmp(arith::CmpIPredicate::ne,
                           field(row, offsetof(kvpc_call, rope_interleaved)), e.constant(0));
  other = e.select(like(neighbours), next, other);
  Value turns = e.cmp(arith::CmpIPredicate::slt, c, like(width));
  Value out = e.select(turns, other, c);
  return channel.lanes ? scattered(out) : Index{out, {}, false};
}

//===------------------------------------------------------------------------------------------===//
// Memory
//===------------------------------------------------------------------------------------------===//

Value Kernel::loadFrom(Storage storage, Value base, ArrayRef<std::pair<Index, Value>> terms,
                       Value mask) {
  Value scalar = e.constant(0), vector;
  unsigned lanes = 0;
  bool neighbours = true;
  for (auto &[index, stride] : terms) {
    if (!index.lanes) {
      scalar = e.add(scalar, e.mul(index.base, stride));
      continue;
    }
    auto unit = getConstantIntValue(stride);
    neighbours &= ++lanes == 1 && !index.vector && unit && *unit == 1;
  }
  if (!lanes)
    return e.load(storage, e.at(base, e.mul(scalar, bytesOf(storage))));
  if (neighbours) {
    for (auto &[index, stride] : terms)
      if (index.lanes)
        scalar = e.add(scalar, index.base);
    return e.loadVector(storage, e.at(base, e.mul(scalar, bytesOf(storage))), mask);
  }
  vector = e.spread(scalar);
  for (auto &[index, stride] : terms)
    if (index.lanes)
      vector = e.add(vector, e.mul(indexValue(index), e.spread(stride)));
  return e.gather(storage, base, vector, mask);
}

Storage Kernel::inputStorage() const {
  return variant.dtype == KVPC_F32    ? Storage::F32
         : variant.dtype == KVPC_BF16 ? Storage::BF16
                                      : Storage::F16;
}

/// An index through a table of i32 ids.
Index Kernel::mapThrough(const Row &row, unsigned slot, bool perHead, const Index &index,
                         const Indices &at, Value width) {
  Value table = e.mul(row.batch, perHead ? field(row, offsetof(kvpc_call, heads)) : e.constant(1));
  SmallVector<std::pair<Index, Value>> terms{{index, e.constant(1)}};
  const Index *head = perHead ? at.find("head") : nullptr;
  bool heads = head && head->lanes; // lanes may pick heads of their own
  if (heads)
    terms.push_back({*head, width});
  else if (head)
    table = e.add(table, head->base);
  Value base = e.at(slotPtr(row, slot), e.mul(e.mul(table, width), 4));
  Value id = loadFrom(Storage::I32, base, terms, at.mask);
  return index.lanes || heads ? scattered(id) : Index{id, {}, false};
}

Index Kernel::absoluteToken(const Row &row, Value cache, const Indices &at) {
  const Index token = *at.find("token");
  const CacheState &state = states[cache];
  if (!state.tokens)
    return token;
  return mapThrough(row, state.tokens, state.tokensPerHead, token, at,
                    field(row, offsetof(kvpc_call, tokens)));
}

Value Kernel::originalPosition(const Row &row, Value cache, const Indices &at) {
  Index token = absoluteToken(row, cache, at);
  Value given = fieldPtr(row, offsetof(kvpc_call, original_positions));
  const int64_t strides = offsetof(kvpc_call, original_positions) + offsetof(kvpc_tensor, stride);
  Value index = indexValue(token);
  return e.choose(
      e.isNull(given), [&] { return index; },
      [&] {
        const Index *head = at.find("head");
        Value offset = e.mul(row.batch, field(row, strides));
        if (head)
          offset = e.add(offset, e.mul(head->base, field(row, strides + 8)));
        offset =
            e.add(offset, e.mul(perRow(row, offsetof(kvpc_call, start)), field(row, strides + 16)));
        Value base = e.at(given, e.mul(offset, 8));
        return loadFrom(Storage::I64, base, {{token, field(row, strides + 16)}}, at.mask);
      });
}

Value Kernel::input(const Row &row, kvp::InputOp op, const Indices &at) {
  const CacheState &state = states[op.getCache()];
  auto channelIndex = [&]() -> Index {
    const Index channel = *at.find("channel");
    if (!state.channels || op.getInput() == kvp::Input::Values ||
        op.getInput() == kvp::Input::Output_weight)
      return channel;
    return mapThrough(row, state.channels, state.channelsPerHead, channel, at,
                      field(row, offsetof(kvpc_call, channels)));
  };
  int64_t tensor;
  switch (op.getInput()) {
  case kvp::Input::Keys:
    tensor = offsetof(kvpc_call, keys);
    break;
  case kvp::Input::Values:
    tensor = offsetof(kvpc_call, values);
    break;
  case kvp::Input::Queries:
    tensor = offsetof(kvpc_call, queries_rotated);
    break;
  case kvp::Input::Unrotated_queries:
    tensor = offsetof(kvpc_call, queries_unrotated);
    break;
  case kvp::Input::Output_weight:
    tensor = offsetof(kvpc_call, output_weight);
    break;
  default:
    error(op, "`" + kvp::stringifyInput(op.getInput()) + "` is not an input that kernels take yet");
    return e.constantF32(0);
  }
  auto stride = [&](unsigned i) {
    return field(row, tensor + offsetof(kvpc_tensor, stride) + 8 * i);
  };
  const Index head = *at.find("head");
  SmallVector<std::pair<Index, Value>> terms;
  if (op.getInput() == kvp::Input::Output_weight) { // the same for all rows
    terms = {{head, stride(0)},
             {*at.find("group"), stride(1)},
             {channelIndex(), stride(2)},
             {*at.find("feature"), stride(3)}};
    return loadFrom(inputStorage(), fieldPtr(row, tensor), terms, at.mask);
  }
  Value offset = e.mul(row.batch, stride(0));
  if (!head.lanes) // lanes may pick heads of their own
    offset = e.add(offset, e.mul(head.base, stride(1)));
  if (op.getInput() == kvp::Input::Queries || op.getInput() == kvp::Input::Unrotated_queries) {
    // The last w of the given queries.
    Value skip =
        e.sub(field(row, offsetof(kvpc_call, queries)), extent(row, op.getResult(), "query"));
    offset = e.add(offset, e.mul(skip, stride(3)));
    terms = {{*at.find("group"), stride(2)},
             {*at.find("query"), stride(3)},
             {channelIndex(), e.constant(1)}};
  } else {
    offset = e.add(offset, e.mul(perRow(row, offsetof(kvpc_call, start)), stride(2)));
    terms = {{absoluteToken(row, op.getCache(), at), stride(2)}, {channelIndex(), e.constant(1)}};
  }
  if (head.lanes)
    terms.insert(terms.begin(), {head, stride(1)});
  Storage storage = inputStorage();
  Value base = e.at(fieldPtr(row, tensor), e.mul(offset, bytesOf(storage)));
  return loadFrom(storage, base, terms, at.mask);
}

Value Kernel::weights(const Row &row, BlockArgument arg, const Indices &at) {
  Value base = e.loadPtr(fieldPtr(row, offsetof(kvpc_call, weights)),
                         weightIndex(arg) * sizeof(kvpc_tensor) + offsetof(kvpc_tensor, data));
  SmallVector<std::pair<Index, Value>> terms;
  Value stride = e.constant(1);
  for (kvp::AxisAttr axis : llvm::reverse(cast<kvp::NamedTensorType>(arg.getType()).getAxes())) {
    terms.push_back({*at.find(axis.getName()), stride});
    stride = e.mul(stride, extent(row, arg, axis.getName()));
  }
  return loadFrom(Storage::F32, base, terms, at.mask);
}

/// An index along an axis of a buffer that may hold a block of queries.
Index Kernel::blockIndex(const Row &row, Value buffer, kvp::AxisAttr axis, Index index) {
  if (!kvp::isAllQueries(axis) || !kvplan::holdsBlock(buffer.getDefiningOp<kvplan::BufferOp>()))
    return index;
  if (index.base)
    index.base = e.sub(index.base, row.block);
  if (index.vector)
    index.vector = e.sub(index.vector, e.spread(row.block));
  return index;
}

Value Kernel::load(const Row &row, Value buffer, const Indices &at) {
  if (blocks.contains(buffer))
    return loadBlock(buffer, at);
  SmallVector<std::pair<Index, Value>> terms;
  for (auto [i, axis] :
       llvm::enumerate(cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()))
    terms.push_back(
        {blockIndex(row, buffer, axis, *at.find(axis.getName())), axisStride(row, buffer, i)});
  if (auto every = buffer.getDefiningOp<kvplan::BufferOp>().getEvery())
    for (auto &&[term, axis] :
         llvm::zip(terms, cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()))
      if (kvplan::isEntryAxis(buffer.getDefiningOp<kvplan::BufferOp>(), axis)) {
        Value tile = term.first.aligned ? term.first.base : indexValue(term.first);
        if (!e.isVector(tile)) {
          term.first = Index{e.div(tile, e.constant(*every)), {}, false};
          continue;
        }
        assert(llvm::isPowerOf2_64(*every) && "tiles are");
        Value shift = e.spread(e.constant(llvm::Log2_64(*every)));
        term.first = scattered(arith::ShRUIOp::create(e, tile, shift));
      }
  return loadFrom(storageOf(buffer), bufferBase(row, buffer), terms, at.mask);
}
