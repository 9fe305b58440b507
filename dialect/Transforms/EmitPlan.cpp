//===- EmitPlan.cpp - scheduled roots as a kvplan pipeline ------------------------------------===//
#include "dialect/Transforms/Cut.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::cut;
using kvp::AxisAttr;
using kvp::NamedTensorType;
using kvp::tensorOf;

/// Queries of a block.
static constexpr int64_t kBlock = 64;

/// Whether a root's buffers hold a block of queries.
static bool isOfRows(const Root &root) {
  return root.key.rows && root.kind != Root::Merge && !root.leavesRows;
}

NamedTensorType kvpc::cut::memoryOrder(NamedTensorType type, const Root &root) {
  SmallVector<AxisAttr> head, entries, slots, rest;
  // All rows of a contraction lie together, those of other heads among them.
  bool rows = root.kind == Root::Contract || root.kind == Root::Fold;
  if (root.ownOfHeads)
    head.push_back(AxisAttr::get(type.getContext(), "head", AxisAttr::kDynamic, 0));
  for (AxisAttr axis : type.getAxes()) {
    StringRef base = axis.getName().rtrim('\'');
    bool row = isOfRows(root) && kvp::isAllQueries(axis);
    ((rows ? axis.getName() : base) == "head" ? head
     : kvp::isEntryAxis(axis) && !row         ? entries
     : base == "slot"                         ? slots
                                              : rest)
        .push_back(axis);
  }
  SmallVector<AxisAttr> axes(head);
  llvm::append_range(axes, entries);
  llvm::append_range(axes, slots);
  llvm::append_range(axes, rest);
  // Along rows of whole-row operations elements are neighbours.
  auto last = llvm::find_if(axes, [&](AxisAttr axis) { return axis.getName() == root.last; });
  if (last != axes.end())
    std::rotate(last, last + 1, axes.end());
  return NamedTensorType::get(type.getContext(), axes, type.getElementType());
}

bool kvpc::cut::isWide(NamedTensorType type) {
  unsigned entries = 0;
  bool inside = false;
  for (AxisAttr axis : type.getAxes()) {
    bool entry = kvp::isEntryAxis(axis);
    entries += entry;
    inside |= !entry && axis.getName() != "head" && axis.getName() != "slot";
  }
  return entries > 1 || (entries && inside);
}

/// Whether a buffer is filled entry by entry in a pass, and used nowhere else.
static bool isOfOnePass(kvplan::BufferOp buffer) {
  Value memory = buffer.getResult();
  kvplan::PassOp pass;
  for (Operation *user : memory.getUsers()) {
    auto own = user->getParentOfType<kvplan::PassOp>();
    if (!own || (pass && own != pass))
      return false;
    pass = own;
    auto statistics = dyn_cast<kvplan::StatisticsOp>(user);
    if (isa<kvplan::AccumulateOp, kvplan::MergeOp, kvplan::FoldOp>(user) ||
        (statistics && statistics.getBuffer() != memory))
      return false;
  }
  return bool(pass);
}

//===------------------------------------------------------------------------------------------===//
// Expressions
//===------------------------------------------------------------------------------------------===//

/// A host scalar or cache of the press, at the pipeline's top level.
Value Program::atTop(ImplicitLocOpBuilder &b, Value v) {
  if (top.contains(v))
    return top.lookup(v);
  Operation *op = v.getDefiningOp();
  // The extent of an axis is asked of a tensor; the tensor itself is never evaluated.
  for (Value operand : op->getOperands())
    atTop(b, operand);
  b.clone(*op, top);
  return top.lookup(v);
}

/// Everything of the expression that stands outside the tasks.
void Program::hostOperands(ImplicitLocOpBuilder &b, const Root &root) {
  llvm::DenseSet<Value> seen;
  std::function<void(Value)> visit = [&](Value v) {
    if (!seen.insert(v).second)
      return;
    if (!isa<NamedTensorType>(v.getType())) {
      atTop(b, v);
      return;
    }
    if (auto it = rootOf.find(v); it != rootOf.end() && v != root.value) {
      // Softmax reads what it is of once more.
      const Root &leaf = roots[it->second];
      if (leaf.kind == Root::Statistics)
        visit(v.getDefiningOp()->getOperand(0));
      else if (leaf.again)
        hostOperands(b, leaf);
      return;
    }
    if (Operation *op = v.getDefiningOp())
      for (Value operand : op->getOperands())
        visit(operand);
  };
  for (Value operand : root.operands())
    if (operand)
      visit(operand);
}

/// The expression of `v` inside a step; held values are loaded.
Value Program::evaluate(ImplicitLocOpBuilder &b, Value v, IRMapping &here, const Root &root) {
  if (here.contains(v))
    return here.lookup(v);
  if (!isa<NamedTensorType>(v.getType()) || isa<BlockArgument>(v)) {
    Value outer = top.lookup(v);
    here.map(v, outer);
    return outer;
  }
  auto it = rootOf.find(v), softmax = statisticsOf.find(v);
  bool held = it != rootOf.end() && v != root.value;
  if (held || softmax != statisticsOf.end()) {
    Root &leaf = roots[held ? it->second : softmax->second];
    auto load = [&](kvplan::BufferOp buffer, NamedTensorType type) -> Value {
      return kvplan::LoadOp::create(b, kvp::inCanonicalOrder(type), buffer.getResult());
    };
    Value loaded;
    if (leaf.kind == Root::Statistics) {
      Value x = evaluate(b, v.getDefiningOp()->getOperand(0), here, root);
      NamedTensorType rows = leaf.buffer.getType().getTensor();
      if (leaf.ownOfHeads)
        rows = rows.without({"head"});
      loaded = leaf.factors
                   ? kvplan::RescaleOp::create(b, x, load(leaf.factors, tensorOf(v))).getResult()
                   : kvplan::WeightOp::create(b, v.getType(), x, load(leaf.buffer, rows),
                                              load(leaf.second, rows));
    } else {
      loaded = load(leaf.buffer, tensorOf(v));
    }
    here.map(v, loaded);
    return loaded;
  }
  Operation *op = v.getDefiningOp();
  for (Value operand : op->getOperands())
    evaluate(b, operand, here, root);
  b.clone(*op, here);
  return here.lookup(v);
}

//===------------------------------------------------------------------------------------------===//
// Buffers, roots, selections
//===------------------------------------------------------------------------------------------===//

kvplan::BufferOp Program::declareBuffer(ImplicitLocOpBuilder &b, NamedTensorType type,
                                        kvplan::Scope scope, IntegerAttr every) {
  return kvplan::BufferOp::create(b, kvplan::BufferType::get(b.getContext(), type),
                                  b.getStringAttr("b" + std::to_string(buffers++)),
                                  kvplan::ScopeAttr::get(b.getContext(), scope), every);
}

void Program::declare(ImplicitLocOpBuilder &b) {
  auto buffer = [&](NamedTensorType type, kvplan::Scope scope, IntegerAttr every = {}) {
    return declareBuffer(b, type, scope, every);
  };
  for (Root &root : roots) {
    if (root.kind == Root::Select || root.again)
      continue;
    kvplan::Scope scope = isOfRows(root) ? kvplan::Scope::Rows : kvplan::Scope::Call;
    if (root.kind == Root::Pack) {
      root.buffer = buffer(tensorOf(root.rows), scope);
    } else if (root.kind == Root::Fold) {
      Root shape = root;
      shape.last = root.along;
      root.block = buffer(memoryOrder(tensorOf(root.contraction), shape), kvplan::Scope::Tile);
      root.buffer = buffer(memoryOrder(tensorOf(root.value), root), scope);
    } else if (root.kind == Root::Statistics) {
      NamedTensorType type = tensorOf(root.value).without({root.key.over.getName()});
      root.buffer = buffer(memoryOrder(type, root), scope);
      root.second = buffer(memoryOrder(type, root), scope);
      if (root.keepsExponents)
        root.factors = buffer(memoryOrder(tensorOf(root.value), root), scope,
                              b.getI64IntegerAttr(root.tile()));
      if (root.keepsExponents && roots[rootOf[root.value.getDefiningOp()->getOperand(0)]].again)
        root.references =
            buffer(root.factors.getType().getTensor(), scope, b.getI64IntegerAttr(root.tile()));
    } else if (root.inPlace) {
      root.buffer = roots[rootOf[root.value.getDefiningOp()->getOperand(1)]].buffer;
    } else {
      root.buffer = buffer(memoryOrder(tensorOf(root.value), root), scope);
    }
  }
}

/// Keys or values where they lie, though a whole-row operation may hold them in another order.
Value Program::streamed(ImplicitLocOpBuilder &b, Value input, IRMapping &here, const Root &root) {
  if (!rootOf.contains(input))
    return evaluate(b, input, here, root);
  IRMapping own = here;
  for (Value operand : input.getDefiningOp()->getOperands())
    evaluate(b, operand, own, root);
  return b.clone(*input.getDefiningOp(), own)->getResult(0);
}

static kvplan::Combine combineOf(kvp::Reduction kind) {
  switch (kind) {
  case kvp::Reduction::Max:
    return kvplan::Combine::Max;
  case kvp::Reduction::Min:
    return kvplan::Combine::Min;
  case kvp::Reduction::Any:
    return kvplan::Combine::Any;
  case kvp::Reduction::All:
    return kvplan::Combine::All;
  default:
    return kvplan::Combine::Sum;
  }
}

/// How a reduction combines, what it takes and where.
std::tuple<kvplan::Combine, Value, Value> Program::emitCombine(ImplicitLocOpBuilder &b, Root &root,
                                                               IRMapping &here) {
  auto reduce = cast<kvp::ReduceOp>(root.value.getDefiningOp());
  Value x = evaluate(b, reduce.getInput(), here, root);
  Value where = reduce.getWhere() ? evaluate(b, reduce.getWhere(), here, root) : Value();
  if (reduce.getKind() == kvp::Reduction::Count) {
    auto number = [&](int64_t n) -> Value {
      return arith::ConstantOp::create(b, b.getI64IntegerAttr(n));
    };
    x = kvp::MapOp::create(b, kvp::Fn::Where, ValueRange{x, number(1), number(0)});
  }
  return {combineOf(reduce.getKind()), x, where};
}

/// The contraction of a root that stands for it and a factor of the host.
static Value productOf(Value scaled) {
  Operation *op = scaled.getDefiningOp();
  return op->getOperand(isa<NamedTensorType>(op->getOperand(0).getType()) ? 0 : 1);
}

/// What kvp-algebra says of a contraction stays with it.
static void tellMoved(Value contraction, Operation *made) {
  if (Attribute moved = contraction.getDefiningOp()->getAttr("kvp.moved"))
    made->setAttr("kvp.moved", moved);
}

void Program::emitRoot(ImplicitLocOpBuilder &b, Root &root, IRMapping &here) {
  if (root.value)
    b.setLoc(root.value.getLoc());
  switch (root.kind) {
  case Root::Store:
    kvplan::StoreOp::create(b, evaluate(b, root.value, here, root), root.buffer);
    here.erase(root.value); // what comes next in the step loads it
    break;
  case Root::Accumulate: {
    auto [kind, x, where] = emitCombine(b, root, here);
    kvplan::AccumulateOp::create(b, kind, x, where, root.buffer);
    break;
  }
  case Root::Merge: {
    auto reduce = cast<kvp::ReduceOp>(root.value.getDefiningOp());
    Value made = evaluate(b, root.value, here, root);
    here.erase(root.value);
    kvplan::Combine kind = combineOf(reduce.getKind());
    bool vanishing = (kind == kvplan::Combine::Max || kind == kvplan::Combine::Min) &&
                     rowLoops[root.key.rows - 1].causal && isVanishing(reduce);
    kvplan::MergeOp::create(b, kind, made, root.buffer, vanishing);
    break;
  }
  case Root::Fold: {
    // What is made of the block is of no use to others.
    IRMapping own = here;
    own.map(root.contraction,
            kvplan::LoadOp::create(b, kvp::inCanonicalOrder(tensorOf(root.contraction)),
                                   root.block.getResult())
                .getResult());
    auto [kind, x, where] = emitCombine(b, root, own);
    kvplan::FoldOp::create(b, kind, x, root.along, where, streamed(b, root.stream, own, root),
                           roots[root.after.front()].buffer, root.block, root.buffer);
    break;
  }
  case Root::Pack:
    if (root.form) {
      // Weights are read where they are given, except by this.
      Value matrix = isa<BlockArgument>(root.rows)
                         ? kvplan::LoadOp::create(b, tensorOf(root.rows),
                                                  roots[rootOf[root.rows]].buffer.getResult())
                               .getResult()
                         : evaluate(b, root.rows, here, root);
      kvplan::PackFormOp::create(b, matrix, root.form.getRow(), root.form.getColumn(), root.buffer);
      break;
    }
    kvplan::PackOp::create(b, evaluate(b, root.rows, here, root), root.buffer,
                           root.along.empty() ? StringAttr() : b.getStringAttr(root.along));
    break;
  case Root::Contract: {
    Value scale = root.scale ? top.lookup(root.scale)
                             : arith::ConstantOp::create(b, b.getF64FloatAttr(1)).getResult();
    auto contract =
        kvplan::ContractOp::create(b, streamed(b, root.stream, here, root),
                                   roots[root.after.front()].buffer, scale, root.buffer);
    tellMoved(root.scale ? productOf(root.value) : root.value, contract);
    break;
  }
  case Root::Form:
    tellMoved(root.value, kvplan::FormOp::create(b, streamed(b, root.stream, here, root),
                                                 roots[root.after.front()].buffer, root.buffer));
    break;
  case Root::Statistics: {
    Value x = root.value.getDefiningOp()->getOperand(0);
    auto memory = [](kvplan::BufferOp buffer) { return buffer ? buffer.getResult() : Value(); };
    kvplan::StatisticsOp::create(b, roots[rootOf[x]].buffer, root.buffer, root.second,
                                 memory(root.factors), memory(root.references));
    break;
  }
  case Root::Order: {
    Operation *op = root.value.getDefiningOp();
    auto bufferOf = [&](Value v) -> Value {
      return v ? roots[rootOf[v]].buffer.getResult() : Value();
    };
    if (auto rank = dyn_cast<kvp::RankOp>(op)) {
      // Of equals the earlier token comes first, then the earlier head, then the earlier layer.
      SmallVector<StringRef> over;
      auto lateness = [](StringRef name) {
        return name == "layer" ? 3 : name == "head" ? 2 : name.rtrim('\'') == "slot" ? 1 : 0;
      };
      for (int when : {0, 1, 2, 3})
        for (StringRef axis : kvp::axisNames(rank.getOver()))
          if (lateness(axis) == when)
            over.push_back(axis);
      kvplan::OrderOp::create(b, kvplan::Order::Rank, bufferOf(rank.getInput()),
                              bufferOf(rank.getProtect()), bufferOf(rank.getWhere()), root.buffer,
                              takenTogether(op).empty() ? ArrayAttr() : b.getStrArrayAttr(over));
    } else if (auto sort = dyn_cast<kvp::SortOp>(op)) {
      kvplan::OrderOp::create(b, kvplan::Order::Sort, bufferOf(sort.getInput()), Value(),
                              bufferOf(sort.getWhere()), root.buffer,
                              takenTogether(op).empty() ? ArrayAttr()
                                                        : b.getStrArrayAttr(takenTogether(op)));
    } else {
      kvplan::OrderOp::create(b, kvplan::Order::Cumsum, bufferOf(op->getOperand(0)), Value(),
                              bufferOf(cast<kvp::CumsumOp>(op).getWhere()), root.buffer,
                              ArrayAttr());
    }
    break;
  }
  case Root::Select:
    llvm_unreachable("selections stand outside tasks");
  }
}

void Program::emitSelection(ImplicitLocOpBuilder &b, Root &root) {
  b.setLoc(root.selection->getLoc());
  auto bufferOf = [&](Value v) -> Value {
    return v ? roots[rootOf[v]].buffer.getResult() : Value();
  };
  IntegerAttr leader = root.reuse ? b.getI64IntegerAttr(root.reuse) : IntegerAttr();
  Value cache;
  if (auto topk = dyn_cast<kvp::TopkOp>(root.selection)) {
    Value count = topk.countsData() ? bufferOf(topk.getCount()) : atTop(b, topk.getCount());
    auto host = [&](Value v) { return v ? atTop(b, v) : Value(); };
    Value atLeast = host(topk.getAtLeast());
    Value from = host(topk.getPartFrom()), to = host(topk.getPartTo());
    cache = kvplan::SelectOp::create(
        b, kvp::CacheType::get(b.getContext(), topk.getResult().getType().getState()),
        atTop(b, topk.getCache()), bufferOf(topk.getScore()), count, bufferOf(topk.getProtect()),
        atLeast, from, to, topk.getJointAttr(), topk.getPartSizeAttr(), leader);
  } else {
    auto mask = cast<kvp::MaskOp>(root.selection);
    cache = kvplan::FilterOp::create(
        b, kvp::CacheType::get(b.getContext(), mask.getResult().getType().getState()),
        atTop(b, mask.getCache()), bufferOf(mask.getCondition()), leader);
  }
  top.map(root.selection->getResult(0), cache);
}

//===------------------------------------------------------------------------------------------===//
// Pipeline
//===------------------------------------------------------------------------------------------===//

FailureOr<kvplan::PipelineOp> Program::emit() {
  ImplicitLocOpBuilder b(press.getLoc(), press);
  auto pipeline = kvplan::PipelineOp::create(b, press.getSymNameAttr(), FlatSymbolRefAttr());
  Block *body = b.createBlock(&pipeline.getBody());
  for (BlockArgument arg : press.getBody().getArguments())
    top.map(arg, body->addArgument(arg.getType(), arg.getLoc()));
  b.setInsertionPointToEnd(body);
  declare(b);

  // Steps in order; of equal ones those of the last tasks first, selections last.
  struct Group {
    Step key;
    unsigned step, inner;
    int64_t leader;
    SmallVector<unsigned> roots;
  };
  std::vector<Group> groups;
  for (auto [i, root] : llvm::enumerate(roots)) {
    if (root.again)
      continue;
    auto it = llvm::find_if(groups, [&](const Group &g) {
      return g.key == root.key && g.step == root.step && g.inner == root.inner &&
             g.leader == root.leader && root.key.kind != Step::Select &&
             root.key.kind != Step::Order;
    });
    if (it == groups.end())
      groups.push_back({root.key, root.step, root.inner, root.leader, {unsigned(i)}});
    else
      it->roots.push_back(i);
  }
  auto order = [&](const Group &g) {
    return std::tuple(g.step, g.key.kind == Step::Select, g.key.space == kvplan::Space::Batch,
                      g.key.rows, g.inner, g.roots.front());
  };
  llvm::sort(groups, [&](const Group &a, const Group &c) { return order(a) < order(c); });

  auto finish = cast<kvp::ReturnOp>(press.getBody().front().back());
  unsigned scored = 0;
  bool scoresLeft = bool(finish.getScore());
  for (Value v : {finish.getScore(), finish.getProtect()})
    if (v)
      scored = std::max(scored, roots[rootOf[v]].step);

  kvplan::TasksOp tasks;
  kvplan::RowsOp rows; // the loop over blocks of queries that steps go to
  unsigned loop = 0;   // its number
  auto ofLoop = [&](unsigned number) {
    SmallVector<unsigned> members;
    for (auto [i, root] : llvm::enumerate(roots))
      if (root.key.rows == number)
        members.push_back(i);
    return members;
  };
  bool matrices = false; // whether these tasks packed those of a form
  auto emitScores = [&] {
    scoresLeft = false;
    tasks = {};
    b.setInsertionPointToEnd(body);
    Value protect =
        finish.getProtect() ? roots[rootOf[finish.getProtect()]].buffer.getResult() : Value();
    kvplan::ScoresOp::create(b, roots[rootOf[finish.getScore()]].buffer, protect);
  };
  for (Group &group : groups) {
    if (scoresLeft &&
        (group.step > scored || (group.step == scored && group.key.kind == Step::Select)))
      emitScores();
    if (group.key.kind == Step::Select) {
      tasks = {};
      b.setInsertionPointToEnd(body);
      for (unsigned i : group.roots)
        emitSelection(b, roots[i]);
      continue;
    }
    IntegerAttr leader = group.leader ? b.getI64IntegerAttr(group.leader) : IntegerAttr();
    bool inLoop = rows && loop && loop == group.key.rows;
    bool meets = llvm::any_of(group.key.rows ? ofLoop(group.key.rows) : group.roots,
                              [&](unsigned i) { return meetsHeads(roots[i]); }) &&
                 !inLoop;
    bool afterMatrices = matrices && group.key.kind == Step::Pass && !inLoop;
    if (!tasks || tasks.getSpace() != group.key.space || tasks.getLeaderAttr() != leader || meets ||
        afterMatrices) {
      matrices = false;
      b.setInsertionPointToEnd(body);
      tasks = kvplan::TasksOp::create(b, group.key.space, leader);
      b.createBlock(&tasks.getBody());
      rows = {};
    }
    // What is made of matrices takes a while: all heads at once, before a sweep that holds so much
    // that it takes one after the other.
    matrices |= llvm::any_of(group.roots, [&](unsigned i) { return bool(roots[i].form); });
    b.setInsertionPoint(tasks);
    for (unsigned i : group.roots)
      hostOperands(b, roots[i]);
    b.setInsertionPointToEnd(&tasks.getBody().front());
    if (!group.key.rows) {
      rows = {};
    } else if (!rows || loop != group.key.rows) {
      loop = group.key.rows;
      rows = kvplan::RowsOp::create(b, kBlock, rowLoops[loop - 1].causal);
      b.createBlock(&rows.getBody());
    }
    if (rows)
      b.setInsertionPointToEnd(&rows.getBody().front());
    if (group.key.kind == Step::Pass) {
      int64_t tile = roots[group.roots.front()].tile();
      int64_t segment = 0;
      for (unsigned i : group.roots)
        segment = std::max(segment, roots[i].segment());
      auto pass = kvplan::PassOp::create(b, group.key.over, tile, segment);
      b.createBlock(&pass.getBody());
    } else if (group.key.kind == Step::Small) {
      auto small = kvplan::SmallOp::create(b);
      b.createBlock(&small.getBody());
    }
    IRMapping here;
    passTiles.clear();
    passExponents.clear();
    for (unsigned i : group.roots) {
      bringReads(b, roots[i], here);
      emitRoot(b, roots[i], here);
      // The next expression reads what this one has stored.
      if (roots[i].inPlace || stored)
        here.clear();
    }
  }
  if (scoresLeft)
    emitScores();

  // Wide buffers that one pass alone uses hold a tile of it; those that one group of tasks alone
  // uses exist once per task in flight.
  for (Operation &op : *body) {
    auto buffer = dyn_cast<kvplan::BufferOp>(op);
    if (!buffer)
      continue;
    auto users = buffer.getResult().getUsers();
    auto in = [](Operation *user) { return user->getParentOfType<kvplan::TasksOp>(); };
    bool packed = llvm::any_of(
        users, [](Operation *user) { return isa<kvplan::PackOp, kvplan::PackFormOp>(user); });
    auto first = users.empty() ? kvplan::TasksOp() : in(*users.begin());
    if (!(without & kWithoutTiles) && isOfOnePass(buffer) && isWide(buffer.getType().getTensor()))
      buffer.setScope(kvplan::Scope::Tile);
    else if (first && buffer.getScope() == kvplan::Scope::Call &&
             (packed || isWide(buffer.getType().getTensor())) &&
             llvm::all_of(users, [&](Operation *user) { return in(user) == first; }))
      buffer.setScope(kvplan::Scope::Task);
  }

  b.setInsertionPointToEnd(body);
  for (auto require : press.getBody().getOps<kvp::RequireOp>())
    kvplan::RequireOp::create(b, atTop(b, require.getCondition()), require.getMessageAttr());
  kvplan::CompactOp::create(b, atTop(b, finish.getCache()));
  return pipeline;
}
