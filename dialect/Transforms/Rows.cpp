//===- Rows.cpp - values over all queries and entries, a block of queries at a time -----------===//
//
// What has all queries of a pass beside entries is as large as both together, and is never held.
// Whatever is made of such values and has fewer axes leaves a loop over blocks of queries: reduced
// over queries it is merged from block to block; reduced over entries it is complete in its block.
// A loop has what leaves it and all that this is made of, copied where two loops need it: a value
// that takes a finished reduction over queries is made in a later loop than that reduction.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Transforms/Cut.h"

#include "mlir/IR/Matchers.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::cut;
using kvp::AxisAttr;
using kvp::Fn;
using kvp::NamedTensorType;
using kvp::tensorOf;

bool kvpc::cut::hasAllQueries(Value v) {
  NamedTensorType type = tensorOf(v);
  return type && llvm::any_of(type.getAxes(), kvp::isAllQueries);
}

bool kvpc::cut::isMatrix(Value v) {
  if (!hasAllQueries(v))
    return false;
  return llvm::any_of(tensorOf(v).getAxes(), [](AxisAttr axis) {
    return kvp::isEntryAxis(axis) && !kvp::isAllQueries(axis);
  });
}

/// Whether only the extents of its tensors are asked.
static bool asksShape(Operation *op) { return isa<kvp::ExtentOp, kvp::IndexOp, kvp::RotaryOp>(op); }

bool kvpc::cut::isOnlyAsked(Operation *op) {
  return !op->use_empty() && llvm::all_of(op->getUsers(), [](Operation *user) {
    return asksShape(user) || isOnlyAsked(user);
  });
}

/// Whether an operation needs all queries of an operand at once, and not as they come.
static bool takesWhole(Operation *op, Value operand) {
  auto all = [&](StringRef name) {
    AxisAttr axis = tensorOf(operand) ? tensorOf(operand).getAxis(name) : AxisAttr();
    return axis && kvp::isAllQueries(axis);
  };
  if (asksShape(op))
    return false;
  if (auto reduce = dyn_cast<kvp::ReduceOp>(op))
    return llvm::any_of(kvp::axisNames(reduce.getOver()), all);
  if (auto rank = dyn_cast<kvp::RankOp>(op))
    return llvm::any_of(kvp::axisNames(rank.getOver()), all);
  if (auto at = dyn_cast<kvp::AtOp>(op))
    return operand == at.getInput() && all(at.getAxis());
  auto axis = op->getAttrOfType<StringAttr>(isa<kvp::RenameOp>(op) ? "from" : "axis");
  return axis && all(axis.getValue());
}

static bool leavesQueries(Operation *op) {
  auto reduce = dyn_cast<kvp::ReduceOp>(op);
  return reduce && isMatrix(reduce.getInput()) && takesWhole(op, reduce.getInput());
}

/// Whether a value with all queries, but no entries, is needed where no block is.
static bool isNeededWhole(Operation *op) {
  return llvm::any_of(op->getUsers(), [](Operation *user) {
    if (asksShape(user) || leavesQueries(user))
      return false;
    if (user->getNumResults() != 1 || !tensorOf(user->getResult(0)))
      return true;
    Value result = user->getResult(0);
    if (isMatrix(result))
      return false;
    if (!hasAllQueries(result) ||
        llvm::any_of(user->getOperands(), [&](Value v) { return takesWhole(user, v); }))
      return true;
    return isNeededWhole(user);
  });
}

//===------------------------------------------------------------------------------------------===//
// Causal: what comes to nothing for entries after the query
//===------------------------------------------------------------------------------------------===//

static bool isConstant(Value v, double number) {
  Attribute value;
  if (!matchPattern(v, m_Constant(&value)))
    return false;
  if (auto real = dyn_cast<FloatAttr>(value))
    return real.getValueAsDouble() == number;
  auto whole = dyn_cast<IntegerAttr>(value);
  return whole && double(whole.getInt()) == number;
}

static bool isPositiveConstant(Value v) {
  Attribute value;
  if (!matchPattern(v, m_Constant(&value)))
    return false;
  if (auto real = dyn_cast<FloatAttr>(value))
    return real.getValueAsDouble() > 0 && std::isfinite(real.getValueAsDouble());
  auto whole = dyn_cast<IntegerAttr>(value);
  return whole && whole.getInt() > 0;
}

/// At least 0, and finite.
static bool isCount(Value v) {
  if (isPositiveConstant(v) || isConstant(v, 0))
    return true;
  Operation *op = v.getDefiningOp();
  if (isa_and_nonnull<kvp::IndexOp, kvp::PositionOp, kvp::DimOp, kvp::ExtentOp, kvp::IotaOp>(op))
    return true;
  auto map = dyn_cast_or_null<kvp::MapOp>(op);
  return map &&
         llvm::is_contained({Fn::Add, Fn::Float, Fn::Sqrt, Fn::Minimum, Fn::Maximum, Fn::Int},
                            map.getFn()) &&
         llvm::all_of(map.getOperands(), isCount);
}

static bool isPositive(Value v) {
  if (isPositiveConstant(v))
    return true;
  auto map = v.getDefiningOp<kvp::MapOp>();
  if (!map)
    return false;
  OperandRange in = map.getOperands();
  switch (map.getFn()) {
  case Fn::Add:
    return (isPositive(in[0]) && isCount(in[1])) || (isCount(in[0]) && isPositive(in[1]));
  case Fn::Maximum:
    return isCount(in[0]) && isCount(in[1]) && (isPositive(in[0]) || isPositive(in[1]));
  case Fn::Float:
  case Fn::Sqrt:
    return isPositive(in[0]);
  default:
    return false;
  }
}

static bool isFinite(Value v) {
  if (isCount(v) || isPositive(v) || isConstant(v, -1))
    return true;
  auto map = v.getDefiningOp<kvp::MapOp>();
  if (!map)
    return false;
  OperandRange in = map.getOperands();
  switch (map.getFn()) {
  case Fn::Div:
    return isFinite(in[0]) && isPositive(in[1]);
  case Fn::Where:
    return isFinite(in[1]) && isFinite(in[2]);
  case Fn::Add:
  case Fn::Sub:
  case Fn::Mul:
  case Fn::Neg:
  case Fn::Float:
  case Fn::Minimum:
  case Fn::Maximum:
    return llvm::all_of(in, isFinite);
  default:
    return false;
  }
}

static bool impliesCausal(Value condition) {
  Operation *op = condition.getDefiningOp();
  if (auto causal = dyn_cast_or_null<kvp::CausalOp>(op))
    return causal.getCache().getType().getState() == 0;
  auto map = dyn_cast_or_null<kvp::MapOp>(op);
  return map && map.getFn() == Fn::And && llvm::any_of(map.getOperands(), impliesCausal);
}

/// -inf where a query comes before the entry.
static bool isMasked(Value v) {
  auto map = v.getDefiningOp<kvp::MapOp>();
  return map && map.getFn() == Fn::Where && impliesCausal(map.getOperand(0)) &&
         isConstant(map.getOperand(2), -std::numeric_limits<double>::infinity());
}

/// 0 where a query comes before the entry.
static bool vanishes(Value v) {
  if (!isMatrix(v))
    return isConstant(v, 0);
  Operation *op = v.getDefiningOp();
  if (auto softmax = dyn_cast_or_null<kvp::SoftmaxOp>(op))
    return softmax.getAxis() == "token" && isMasked(softmax.getInput());
  if (auto reduce = dyn_cast_or_null<kvp::ReduceOp>(op))
    return !reduce.getWhere() && vanishes(reduce.getInput()) &&
           llvm::is_contained({kvp::Reduction::Sum, kvp::Reduction::Mean, kvp::Reduction::Max,
                               kvp::Reduction::Min},
                              reduce.getKind());
  auto map = dyn_cast_or_null<kvp::MapOp>(op);
  if (!map)
    return false;
  OperandRange in = map.getOperands();
  switch (map.getFn()) {
  case Fn::Mul:
    return (vanishes(in[0]) && (vanishes(in[1]) || isFinite(in[1]))) ||
           (vanishes(in[1]) && isFinite(in[0]));
  case Fn::Div:
    return vanishes(in[0]) && isPositive(in[1]);
  case Fn::Where:
    return vanishes(in[1]) && vanishes(in[2]);
  case Fn::Add:
  case Fn::Sub:
  case Fn::Minimum:
  case Fn::Maximum:
  case Fn::Neg:
  case Fn::Abs:
  case Fn::Relu:
  case Fn::Sqrt:
    return llvm::all_of(in, vanishes);
  default:
    return false;
  }
}

/// Whether a loop's sweeps may end where the last query of a block stands.
static bool endsCausally(ArrayRef<Operation *> loop) {
  using R = kvp::Reduction;
  for (Operation *op : loop) {
    if (op->getNumResults() != 1 || !tensorOf(op->getResult(0)))
      continue;
    for (AxisAttr axis : tensorOf(op->getResult(0)).getAxes())
      if (kvp::isEntryAxis(axis) && !kvp::isAllQueries(axis) &&
          (axis.getName() != "token" || axis.getState() != 0))
        return false;
    if (auto softmax = dyn_cast<kvp::SoftmaxOp>(op)) {
      if (!isMasked(softmax.getInput()))
        return false;
      continue;
    }
    if (auto reduce = dyn_cast<kvp::ReduceOp>(op)) {
      Value x = reduce.getInput();
      bool over = llvm::any_of(kvp::axisNames(reduce.getOver()), [&](StringRef name) {
        return kvp::isEntryAxis(tensorOf(x).getAxis(name));
      });
      if (!over || !isMatrix(x))
        continue;
      bool queries = takesWhole(op, x);
      R kind = reduce.getKind();
      bool nothing =
          vanishes(x) &&
          (kind == R::Sum || (queries && !reduce.getWhere() && (kind == R::Max || kind == R::Min)));
      bool weights = !queries && vanishes(x) && x.getDefiningOp<kvp::SoftmaxOp>();
      if (!nothing && !(kind == R::Max && (weights || isMasked(x))))
        return false;
      continue;
    }
    if (!isa<kvp::MapOp, kvp::DotOp, kvp::InputOp, kvp::CausalOp, kvp::PositionOp, kvp::IndexOp,
             kvp::RotaryOp, kvp::PairOp, kvp::RenameOp>(op))
      return false;
  }
  return true;
}

bool kvpc::cut::isVanishing(kvp::ReduceOp op) {
  return !isMasked(op.getInput()) && vanishes(op.getInput());
}

//===------------------------------------------------------------------------------------------===//
// Loops
//===------------------------------------------------------------------------------------------===//

LogicalResult Program::separateRows() {
  Block &block = press.getBody().front();
  auto resultOf = [](Operation &op) {
    return op.getNumResults() == 1 && tensorOf(op.getResult(0)) ? op.getResult(0) : Value();
  };
  if (llvm::none_of(block, [&](Operation &op) { return resultOf(op) && isMatrix(resultOf(op)); }))
    return success();

  // Extents are asked of what the host gives.
  for (Operation &op : block)
    if (isa<kvp::ExtentOp, kvp::IndexOp>(op) && isMatrix(op.getOperand(0))) {
      StringRef axis = op.getAttrOfType<StringAttr>("axis").getValue();
      auto [origin, name] = kvplan::originOf(op.getOperand(0), axis);
      bool apart = !isMatrix(origin) || origin.getDefiningOp<kvp::CausalOp>();
      if (name == axis && origin.getDefiningOp() && apart &&
          origin.getDefiningOp()->isBeforeInBlock(&op))
        op.setOperand(0, origin);
    }

  // How many loops must be over before a value can be made, and whether one was.
  llvm::DenseMap<Value, unsigned> level;
  llvm::DenseSet<Value> looped;
  for (Operation &op : block) {
    unsigned own = 0;
    bool after = false;
    for (Value u : op.getOperands()) {
      bool whole = takesWhole(&op, u);
      if (isMatrix(u) && whole && !isa<kvp::ReduceOp>(op))
        return op.emitError("`")
               << op.getName().stripDialect()
               << "` along all `query` of values that have entries too is not compiled yet; take "
                  "`queries.last(n)` [kv-not-implemented]";
      bool inside = isMatrix(u) || (hasAllQueries(u) && looped.contains(u));
      own = std::max(own, level.lookup(u) + (inside && whole));
      after |= looped.contains(u);
    }
    for (Value v : op.getResults()) {
      level[v] = own;
      if (after || isMatrix(v))
        looped.insert(v);
    }
  }

  // What leaves each loop.
  std::map<std::pair<unsigned, kvplan::Space>, SmallVector<Operation *>> exits;
  for (Operation &op : block) {
    Value v = resultOf(op);
    if (!v || isMatrix(v) || asksShape(&op) || llvm::none_of(op.getOperands(), isMatrix))
      continue;
    auto space = tensorOf(v).hasAxis("head") ? kvplan::Space::Head : kvplan::Space::Batch;
    if (leavesQueries(&op))
      exits[{level[cast<kvp::ReduceOp>(op).getInput()], space}].push_back(&op);
    else if (hasAllQueries(v) && isNeededWhole(&op))
      exits[{level[v], space}].push_back(&op);
  }

  struct Placed {
    unsigned level, loop; // loop 0: none
    Operation *op;
    size_t number = 0;
  };
  std::vector<Placed> order;
  for (Operation &op : block.without_terminator()) {
    Value v = resultOf(op);
    // What is made of a block is there for others once the loop is over.
    bool late = v && hasAllQueries(v) && !isMatrix(v) && looped.contains(v) &&
                llvm::none_of(op.getOperands(), [&](Value u) { return takesWhole(&op, u); });
    order.push_back({op.getNumResults() ? level[op.getResult(0)] + late : 0, 0, &op});
    if (!op.getNumResults())
      for (Value u : op.getOperands())
        order.back().level = std::max(order.back().level, level.lookup(u));
  }
  SmallVector<std::pair<Value, Value>> replaced;
  for (auto &[place, leaving] : exits) {
    auto [number, space] = place;
    llvm::DenseSet<Operation *> inside;
    SmallVector<Operation *> work(leaving.begin(), leaving.end());
    while (!work.empty()) {
      Operation *op = work.pop_back_val();
      if (!inside.insert(op).second)
        continue;
      for (Value u : op->getOperands()) {
        Operation *by = u.getDefiningOp();
        if (!by || !hasAllQueries(u) || asksShape(op))
          continue;
        bool whole = llvm::any_of(by->getOperands(), [&](Value w) { return takesWhole(by, w); });
        if (isMatrix(u) || !whole)
          work.push_back(by);
      }
    }
    rowLoops.push_back({space, false});
    unsigned loop = rowLoops.size();
    IRMapping map;
    SmallVector<Operation *> made;
    for (Operation &op : llvm::make_early_inc_range(block)) {
      if (!inside.contains(&op))
        continue;
      bool crosses = readsHeads(&op) && !op.getOperand(0).getDefiningOp<kvp::InputOp>();
      if (crosses || (space == kvplan::Space::Batch && isMatrix(op.getResult(0)) &&
                      tensorOf(op.getResult(0)).hasAxis("head")))
        return op.emitError("`head` is reduced before all `query`, of values that have entries "
                            "too, which is not compiled yet; reduce `query` first "
                            "[kv-not-implemented]");
      OpBuilder b(block.getTerminator());
      Operation *copy = b.clone(op, map);
      rowsOf[copy->getResult(0)] = loop;
      made.push_back(copy);
      order.push_back({number, loop, copy});
    }
    rowLoops.back().causal = !stored && endsCausally(made);
    for (Operation *op : leaving) {
      Value inner = map.lookup(op->getResult(0));
      if (!hasAllQueries(inner)) {
        replaced.emplace_back(op->getResult(0), inner);
        continue;
      }
      ImplicitLocOpBuilder b(op->getLoc(), block.getTerminator());
      bool condition = tensorOf(inner).getElementType().isInteger(1);
      Value whole =
          kvp::MapOp::create(b, condition ? Fn::Or : Fn::Maximum, ValueRange{inner, inner});
      rowsOf[whole] = loop;
      leavesRows.insert(whole);
      order.push_back({number, loop, whole.getDefiningOp()});
      replaced.emplace_back(op->getResult(0), whole);
    }
  }
  for (auto [old, with] : replaced)
    old.replaceAllUsesWith(with);
  for (auto [i, placed] : llvm::enumerate(order))
    placed.number = i;
  llvm::sort(order, [](const Placed &a, const Placed &c) {
    return std::tuple(a.level, a.loop, a.number) < std::tuple(c.level, c.loop, c.number);
  });
  for (const Placed &placed : order)
    placed.op->moveBefore(block.getTerminator());
  // What was copied into a loop and is of use nowhere else; of that some stand before their
  // operands.
  for (bool changed = true; changed;) {
    changed = false;
    for (Placed &placed : llvm::reverse(order)) {
      Value v = placed.op ? resultOf(*placed.op) : Value();
      if (!v || !placed.op->use_empty() || !isPure(placed.op) ||
          !(hasAllQueries(v) || looped.contains(v)))
        continue;
      rowsOf.erase(v);
      leavesRows.erase(v);
      placed.op->erase();
      placed.op = nullptr;
      changed = true;
    }
  }
  return success();
}
