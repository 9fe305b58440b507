//===- Host.cpp - the call's fields, host scalars, extents of axes ----------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "kvpc/abi.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/IR/Matchers.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

Value Kernel::remember(std::vector<const void *> key, function_ref<Value()> compute) {
  for (auto &scope : llvm::reverse(memo))
    if (auto it = scope.find(key); it != scope.end())
      return it->second;
  Value v = compute();
  memo.back()[std::move(key)] = v;
  return v;
}

Value Kernel::slotI64(const Row &row, unsigned slot) { return e.loadI64(row.frame, 8 * slot); }
Value Kernel::slotPtr(const Row &row, unsigned slot) { return e.loadPtr(row.frame, 8 * slot); }
void Kernel::setSlot(const Row &row, unsigned slot, Value value) {
  e.storeScalar(value, e.at(row.frame, 8 * slot));
}

Value Kernel::perRow(const Row &row, int64_t offset) {
  return e.loadScalar(e.i64(), e.at(fieldPtr(row, offset), e.mul(row.batch, 8)));
}

int64_t Kernel::weightIndex(BlockArgument arg) {
  int64_t index = 0;
  for (BlockArgument other : arg.getOwner()->getArguments().take_front(arg.getArgNumber()))
    index += isa<kvp::NamedTensorType>(other.getType());
  return index;
}

Value Kernel::cacheOfState(int64_t state) {
  for (auto &[cache, info] : states)
    if (cast<kvp::CacheType>(cache.getType()).getState() == state)
      return cache;
  llvm_unreachable("every cache state has a value");
}

Value Kernel::length(const Row &row, Value cache) {
  return remember(
      {cache.getAsOpaquePointer(), row.batch.getAsOpaquePointer(), row.head.getAsOpaquePointer(),
       "length"},
      [&] {
        const CacheState &state = states[cache];
        if (!state.selection)
          return perRow(row, offsetof(kvpc_call, length));
        if (!state.tokens || state.before == cache)
          return length(row, state.before);
        if (row.planning) {
          auto op = dyn_cast<kvplan::SelectOp>(state.selection);
          Value n = length(row, state.before);
          if (!op)
            return n;
          if (op.getJoint())
            return jointBound(row, op);
          if (!op.getPartSize())
            return op.getScore().getType().getTensor().hasAxis("channel") ? n : keptOf(row, op);
          // Where a range has no parts the newest stays.
          Value kept = e.mul(keptOf(row, op), *op.getPartSize());
          return e.min(op.getPartFrom() || op.getPartTo() ? e.max(kept, e.constant(1)) : kept, n);
        }
        Value index = row.batch;
        if (state.tokensPerHead) {
          index = e.mul(index, field(row, offsetof(kvpc_call, heads)));
          if (row.head)
            index = e.add(index, row.head);
        }
        return e.loadScalar(e.i64(), e.at(slotPtr(row, state.counts), e.mul(index, 8)));
      });
}

Value Kernel::channels(const Row &row, Value cache) {
  const CacheState &state = states[cache];
  if (!state.selection)
    return variant.channels ? e.constant(variant.channels)
                            : field(row, offsetof(kvpc_call, channels));
  auto op = dyn_cast<kvplan::SelectOp>(state.selection);
  if (op && op.getScore().getType().getTensor().hasAxis("channel"))
    return keptOf(row, op);
  return channels(row, state.before);
}

Value Kernel::keptOf(const Row &row, kvplan::SelectOp op) {
  return remember(
      {op.getOperation(), row.batch.getAsOpaquePointer(), row.head.getAsOpaquePointer(), "kept"},
      [&] {
        auto tensor = op.getScore().getType().getTensor();
        Value n;
        if (tensor.hasAxis("channel"))
          n = channels(row, op.getCache());
        else if (tensor.hasAxis("token"))
          n = length(row, op.getCache());
        else
          n = extent(row, kvplan::writtenTo(op.getScore()), "part");
        if (row.planning && (op.countsData() || !ascends(op.getCount())))
          return n;
        Value count = op.countsData() ? e.load(Storage::I64, elementBase(row, op.getCount()))
                                      : host(row, op.getCount());
        return e.min(e.max(count, e.constant(1)), n);
      });
}

/// Whether only the data say how many entries a state has.
bool Kernel::countsData(Value cache) {
  for (; states[cache].selection; cache = states[cache].before) {
    auto op = dyn_cast<kvplan::SelectOp>(states[cache].selection);
    if (!op || op.getJoint() || op.countsData() || op.getPartSize().value_or(1) > 1)
      return true;
  }
  return false;
}

/// Whether a count can only grow with lengths that the data decide, so that upper bounds of those
/// give one of it.
bool Kernel::ascends(Value scalar) {
  Operation *op = scalar.getDefiningOp();
  if (!op)
    return true;
  std::function<bool(Value)> follows = [&](Value v) {
    Operation *by = v.getDefiningOp();
    if (!by)
      return false;
    if (auto dim = dyn_cast<kvp::DimOp>(by))
      return dim.getDim() == kvp::Dim::Length && countsData(dim.getCache());
    if (auto extent = dyn_cast<kvp::ExtentOp>(by)) {
      kvp::AxisAttr axis = extent.getLike().getType().getAxis(extent.getAxis());
      return countsData(cacheOfState(axis.getState()));
    }
    return llvm::any_of(by->getOperands(), follows);
  };
  if (!follows(scalar) || isa<kvp::DimOp, kvp::ExtentOp>(op))
    return true;
  if (auto of = dyn_cast<kvp::BudgetOfOp>(op))
    return !follows(of.getBudget()) && ascends(of.getN());
  if (auto share = dyn_cast<kvp::BudgetShareOp>(op))
    return !follows(share.getBudget()) && ascends(share.getN());
  auto map = dyn_cast<kvp::MapOp>(op);
  if (!map)
    return false;
  auto all = [&](OperandRange operands) {
    return llvm::all_of(operands, [&](Value v) { return ascends(v); });
  };
  switch (map.getFn()) {
  case kvp::Fn::Add:
  case kvp::Fn::Minimum:
  case kvp::Fn::Maximum:
  case kvp::Fn::Int:
  case kvp::Fn::Float:
    return all(map.getOperands());
  case kvp::Fn::Where:
    return !follows(map.getOperand(0)) && all(map.getOperands().drop_front());
  case kvp::Fn::Div: {
    Attribute by;
    if (!ascends(map.getOperand(0)) || !matchPattern(map.getOperand(1), m_Constant(&by)))
      return false;
    auto whole = dyn_cast<IntegerAttr>(by);
    return whole && whole.getInt() > 0;
  }
  default:
    return false;
  }
}

/// What each head is certain of, of the count that would be its even share.
Value Kernel::floorOf(const Row &row, kvplan::SelectOp op, Value kept) {
  Value certain = e.constant(1);
  if (op.getAtLeast()) {
    Value share = arith::MulFOp::create(e, arith::SIToFPOp::create(e, e.f64(), kept),
                                        host(row, op.getAtLeast()));
    certain = e.max(arith::FPToSIOp::create(e, e.i64(), share), certain);
  }
  return e.min(certain, kept);
}

/// The most that one head can win: what the others are not certain of.
Value Kernel::jointBound(const Row &row, kvplan::SelectOp op) {
  Value n = length(row, op.getCache());
  if (op.countsData() || countsData(op.getCache()))
    return n;
  Value kept = keptOf(row, op), heads = field(row, offsetof(kvpc_call, heads));
  Value others = e.mul(e.sub(heads, e.constant(1)), e.sub(kept, floorOf(row, op, kept)));
  return e.min(e.add(kept, others), n);
}

//===------------------------------------------------------------------------------------------===//
// Host scalars
//===------------------------------------------------------------------------------------------===//

Value Kernel::parameter(const Row &row, BlockArgument arg, int64_t offset, Type type) {
  int64_t index = 0;
  for (BlockArgument other : arg.getOwner()->getArguments().slice(1)) {
    if (other == arg)
      break;
    index += !isa<kvp::NamedTensorType>(other.getType());
  }
  Value base = fieldPtr(row, offsetof(kvpc_call, parameters));
  return e.loadScalar(type, e.at(base, index * sizeof(kvpc_scalar) + offset));
}

/// int(n (1 - r)) in double.
static Value dropped(Emitter &e, Value n, Value ratio) {
  Value kept = arith::SubFOp::create(e, e.constantF64(1), ratio);
  Value share = arith::MulFOp::create(e, arith::SIToFPOp::create(e, e.f64(), n), kept);
  return arith::FPToSIOp::create(e, e.i64(), share);
}

Value Kernel::budgetOf(const Row &row, Value budget, Value n) {
  Value count;
  if (auto op = budget.getDefiningOp<kvp::BudgetOp>()) {
    Value amount = host(row, op.getAmount());
    count = amount.getType().isF64() ? dropped(e, n, amount) : amount;
  } else {
    auto arg = cast<BlockArgument>(budget);
    Value keep = parameter(row, arg, offsetof(kvpc_scalar, i), e.i64());
    Value ratio = parameter(row, arg, offsetof(kvpc_scalar, f), e.f64());
    Value drops = e.less(keep, e.constant(0));
    count = e.select(drops, dropped(e, n, ratio), keep);
  }
  return e.min(e.max(count, e.constant(1)), n);
}

Value Kernel::host(const Row &row, Value scalar) {
  return remember(
      {scalar.getAsOpaquePointer(), row.batch.getAsOpaquePointer(), row.head.getAsOpaquePointer()},
      [&]() -> Value {
        if (auto arg = dyn_cast<BlockArgument>(scalar))
          return arg.getType().isF64() ? parameter(row, arg, offsetof(kvpc_scalar, f), e.f64())
                                       : parameter(row, arg, offsetof(kvpc_scalar, i), e.i64());
        Operation *op = scalar.getDefiningOp();
        return TypeSwitch<Operation *, Value>(op)
            .Case([&](arith::ConstantOp c) { return arith::ConstantOp::create(e, c.getValue()); })
            .Case([&](kvp::MapOp m) { return hostMap(row, m); })
            .Case([&](kvp::ScaleOp) {
              return e.loadScalar(e.f64(), e.at(row.call, offsetof(kvpc_call, scale)));
            })
            .Case([&](kvp::ExtentOp x) { return extent(row, x.getLike(), x.getAxis()); })
            .Case([&](kvp::BudgetOfOp b) {
              return budgetOf(row, b.getBudget(), host(row, b.getN()));
            })
            .Case([&](kvp::BudgetIsDropOp b) -> Value {
              if (auto made = b.getBudget().getDefiningOp<kvp::BudgetOp>())
                return e.constantBool(made.getAmount().getType().isF64());
              Value keep = parameter(row, cast<BlockArgument>(b.getBudget()), 0, e.i64());
              return e.less(keep, e.constant(0));
            })
            .Case([&](kvp::BudgetShareOp b) -> Value {
              Value n = arith::SIToFPOp::create(e, e.f64(), host(row, b.getN()));
              auto share = [&](Value ratio) -> Value {
                Value kept = arith::SubFOp::create(e, e.constantF64(1), ratio);
                return arith::MulFOp::create(e, n, kept);
              };
              if (auto made = b.getBudget().getDefiningOp<kvp::BudgetOp>()) {
                Value amount = host(row, made.getAmount());
                return amount.getType().isF64()
                           ? share(amount)
                           : arith::SIToFPOp::create(e, e.f64(), amount).getResult();
              }
              auto arg = cast<BlockArgument>(b.getBudget());
              Value keep = parameter(row, arg, offsetof(kvpc_scalar, i), e.i64());
              Value ratio = parameter(row, arg, offsetof(kvpc_scalar, f), e.f64());
              return e.select(e.less(keep, e.constant(0)), share(ratio),
                              arith::SIToFPOp::create(e, e.f64(), keep));
            })
            .Case([&](kvp::DimOp d) {
              switch (d.getDim()) {
              case kvp::Dim::Length:
                return length(row, d.getCache());
              case kvp::Dim::Channels:
                return channels(row, d.getCache());
              case kvp::Dim::Seen:
                return perRow(row, offsetof(kvpc_call, seen));
              case kvp::Dim::Layer:
                return field(row, offsetof(kvpc_call, layer));
              case kvp::Dim::Layers:
                return field(row, offsetof(kvpc_call, layers));
              case kvp::Dim::Heads:
                return field(row, offsetof(kvpc_call, heads));
              case kvp::Dim::Groups:
                return field(row, offsetof(kvpc_call, groups));
              }
              llvm_unreachable("dimension");
            })
            .Default([&](Operation *other) {
              error(other, "is not a host scalar that kernels know");
              return e.constantOf(scalar.getType(), 0);
            });
      });
}

Value Kernel::hostMap(const Row &row, kvp::MapOp op) {
  SmallVector<Value> x;
  for (Value operand : op.getOperands())
    x.push_back(host(row, operand));
  bool compares = op.getResult().getType().isInteger(1);
  bool floats = op.getResult().getType().isF64() ||
                (compares && llvm::any_of(x, [](Value v) { return v.getType().isF64(); }));
  if (floats)
    for (auto [i, v] : llvm::enumerate(x))
      if (v.getType().isInteger(64))
        x[i] = arith::SIToFPOp::create(e, e.f64(), v);
  return applyFn(op.getFn(), x, op.getResult().getType());
}

//===------------------------------------------------------------------------------------------===//
// Extents
//===------------------------------------------------------------------------------------------===//

Value Kernel::partsOf(const Row &row, Value n, kvp::PartitionOp op) {
  Value size = e.constant(op.getSize());
  return op.getWhole() ? e.div(n, size) : e.ceilDiv(n, size);
}

/// Whether the channels of an input are those of values, which no selection thins.
static bool hasValueChannels(kvp::InputOp input) {
  return input &&
         (input.getInput() == kvp::Input::Values || input.getInput() == kvp::Input::Output_weight);
}

/// Entries that a partition divides: to - from, never below 0.
static Value partitioned(Emitter &e, Value from, Value to) {
  return e.max(e.sub(to, from), e.constant(0));
}

/// All queries of the pass: as many as the row has, where more are given.
Value Kernel::queryCount(const Row &row) {
  return e.min(field(row, offsetof(kvpc_call, queries)), perRow(row, offsetof(kvpc_call, length)));
}

Value Kernel::isCounted(const Row &row) {
  return e.isNull(fieldPtr(row, offsetof(kvpc_call, original_positions)));
}

Value Kernel::extent(const Row &row, Value tensor, StringRef name) {
  if (auto fixed = staticExtent(tensor, name))
    return e.constant(*fixed);
  auto [origin, axis] = kvplan::originOf(tensor, name);
  if (auto op = origin.getDefiningOp<kvp::PartitionOp>(); op && axis == "part") {
    Value to = op.getTo() ? host(row, op.getTo()) : extent(row, op.getInput(), op.getAxis());
    Value from = op.getFrom() ? host(row, op.getFrom()) : e.constant(0);
    return partsOf(row, partitioned(e, from, to), op);
  }
  kvp::AxisAttr attr = cast<kvp::NamedTensorType>(origin.getType()).getAxis(axis);
  StringRef base = axis.rtrim('\'');
  if (base == "token")
    return length(row, cacheOfState(attr.getState()));
  if (base == "channel") {
    if (hasValueChannels(origin.getDefiningOp<kvp::InputOp>()))
      return variant.channels ? e.constant(variant.channels)
                              : field(row, offsetof(kvpc_call, value_channels));
    return channels(row, cacheOfState(attr.getState()));
  }
  if (base == "head")
    return field(row, offsetof(kvpc_call, heads));
  if (base == "group")
    return field(row, offsetof(kvpc_call, groups));
  if (base == "feature")
    return field(row, offsetof(kvpc_call, features));
  if (base == "layer")
    return field(row, offsetof(kvpc_call, layers));
  if (base == "query")
    return attr.isStatic()
               ? e.min(e.constant(attr.getExtent()), perRow(row, offsetof(kvpc_call, length)))
               : queryCount(row);
  if (auto weight = dyn_cast<BlockArgument>(origin)) {
    ArrayRef<kvp::AxisAttr> axes = cast<kvp::NamedTensorType>(weight.getType()).getAxes();
    int64_t place = weightIndex(weight) * 5 + (llvm::find(axes, attr) - axes.begin());
    return e.loadScalar(e.i64(), e.at(fieldPtr(row, offsetof(kvpc_call, weight_sizes)), place * 8));
  }
  error(origin.getDefiningOp() ? origin.getDefiningOp() : pipeline.getOperation(),
        "axis `" + name + "` has no extent that kernels know");
  return e.constant(1);
}

std::optional<int64_t> Kernel::staticExtent(Value tensor, StringRef name) {
  auto [origin, axis] = kvplan::originOf(tensor, name);
  if (auto op = origin.getDefiningOp<kvp::PartitionOp>())
    if (axis == "slot")
      return op.getSize();
  kvp::AxisAttr attr = cast<kvp::NamedTensorType>(origin.getType()).getAxis(axis);
  StringRef base = axis.rtrim('\'');
  if (base == "channel" && variant.channels) {
    bool whole = attr.getState() == 0 || hasValueChannels(origin.getDefiningOp<kvp::InputOp>());
    for (int64_t s = attr.getState(); !whole; --s) {
      const CacheState &state = states[cacheOfState(s)];
      if (state.channels && states[state.before].channels != state.channels)
        break;
      whole = s == 1;
    }
    if (whole)
      return variant.channels;
    return std::nullopt;
  }
  if (base != "query" && attr && attr.isStatic())
    return attr.getExtent();
  return std::nullopt;
}

Value Kernel::bound(const Row &row, Value tensor, StringRef name) {
  if (auto fixed = staticExtent(tensor, name))
    return e.constant(*fixed);
  auto [origin, axis] = kvplan::originOf(tensor, name);
  if (auto op = origin.getDefiningOp<kvp::PartitionOp>(); op && axis == "part")
    return e.ceilDiv(bound(row, op.getInput(), op.getAxis()), e.constant(op.getSize()));
  StringRef base = axis.rtrim('\'');
  if (base == "token")
    return field(row, offsetof(kvpc_call, tokens));
  if (base == "channel") {
    return field(row, hasValueChannels(origin.getDefiningOp<kvp::InputOp>())
                          ? offsetof(kvpc_call, value_channels)
                          : offsetof(kvpc_call, channels));
  }
  if (base == "query") {
    kvp::AxisAttr attr = cast<kvp::NamedTensorType>(origin.getType()).getAxis(axis);
    return attr.isStatic() ? e.constant(attr.getExtent()) : field(row, offsetof(kvpc_call, tokens));
  }
  return extent(row, tensor, name);
}
