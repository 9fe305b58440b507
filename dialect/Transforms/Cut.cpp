//===- Cut.cpp - which values are held, and in which pass they are made -----------------------===//
//
// Four decisions, in this order.
// 1. Loops over blocks of queries (Rows.cpp): for what all queries of a pass have with entries.
// 2. Held or not (Hold.cpp): everything that is not held is evaluated again where it is used. What
// is
//    wide may be made once more, tile by tile, in each pass that reads it (Again.cpp).
// 3. The step of every held value: 1 + the latest step it needs, or that very step where it reads a
//    value of the same sweep at the same entry.
// 4. Tasks: neighbouring steps over the same rows (and heads) stand together, up to one that reads
//    what other heads' tasks hold.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Transforms/Cut.h"

namespace kvpc {
#define GEN_PASS_DEF_KVPLANCUT
#include "dialect/Transforms/Passes.h.inc"
} // namespace kvpc

using namespace mlir;
using namespace kvpc;
using namespace kvpc::cut;

//===------------------------------------------------------------------------------------------===//
// Steps
//===------------------------------------------------------------------------------------------===//

/// Whether an operation reads its operand at other heads than its own.
static bool readsOtherHeads(Operation *op) {
  auto axis = op->getAttrOfType<StringAttr>(isa<kvp::RenameOp>(op) ? "from" : "axis");
  return axis && axis.getValue() == "head";
}

bool kvpc::cut::movesEntries(Operation *op) {
  return isa<kvp::AvgPoolOp, kvp::MaxPoolOp, kvp::ShiftOp, kvp::PartitionOp, kvp::JoinOp,
             kvp::RenameOp, kvp::AtOp>(op);
}

bool kvpc::cut::readsHeads(Operation *op) {
  auto reduce = dyn_cast<kvp::ReduceOp>(op);
  return reduce ? llvm::is_contained(kvp::axisNames(reduce.getOver()), "head")
                : readsOtherHeads(op);
}

bool Program::meetsHeads(const Root &root) const {
  llvm::DenseSet<Value> seen[2];
  std::function<bool(Value, bool)> visit = [&](Value v, bool others) {
    if (!v || !seen[others].insert(v).second)
      return false;
    if (auto it = rootOf.find(v); it != rootOf.end() && v != root.value)
      return others && roots[it->second].key.space == kvplan::Space::Head;
    Operation *op = v.getDefiningOp();
    return op && llvm::any_of(op->getOperands(), [&](Value operand) {
             return visit(operand, others || readsOtherHeads(op));
           });
  };
  return llvm::any_of(root.operands(), [&](Value v) { return visit(v, false); });
}

unsigned Program::stepOfCache(Value cache) const {
  auto it = selections.find(cache);
  return it == selections.end() ? 0 : it->second + 1;
}

/// The least step in which `root` can be made, given where its operands are; and the least inside a
/// loop over blocks of queries.
std::pair<unsigned, unsigned> Program::earliest(const Root &root) const {
  unsigned step = 0, inner = 0;
  auto isInside = [&](const Root &leaf) { return leaf.key.rows && leaf.key.rows == root.key.rows; };
  bool apart = meetsHeads(root);
  auto after = [&](unsigned other) {
    if (isInside(roots[other]))
      inner = std::max(inner, roots[other].inner + 1);
    else
      step = std::max(step, roots[other].step + 1);
  };
  llvm::DenseSet<Value> seen[2];
  std::function<void(Value, bool)> visit = [&](Value v, bool aligned) {
    if (!v || !seen[aligned].insert(v).second)
      return;
    if (isa<kvp::CacheType>(v.getType())) {
      step = std::max(step, stepOfCache(v));
      return;
    }
    if (auto it = rootOf.find(v); it != rootOf.end() && v != root.value) {
      const Root &leaf = roots[it->second];
      if (leaf.again) { // made where it is read, at its own entries
        for (Value operand : leaf.reads())
          visit(operand, aligned);
        for (unsigned other : leaf.after)
          after(other);
        return;
      }
      bool together = !stored && !(without & kWithoutFusion) && !apart && leaf.key == root.key &&
                      (leaf.key.kind == Step::Small || (aligned && leaf.makesEntries()));
      if (isInside(leaf))
        inner = std::max(inner, leaf.inner + (together ? 0 : 1));
      else
        step = std::max(step, leaf.step + (together ? 0 : 1));
      return;
    }
    Operation *op = v.getDefiningOp();
    if (!op)
      return;
    for (Value operand : op->getOperands())
      visit(operand, aligned && !movesEntries(op));
  };
  for (Value operand : root.operands())
    visit(operand, true);
  for (unsigned other : root.after)
    after(other);
  return {step, inner};
}

void Program::waitForConsumers(Root &root) {
  unsigned before = root.step, last = std::numeric_limits<unsigned>::max();
  for (unsigned consumer : root.consumers) {
    if (!(roots[consumer].key == root.key))
      return;
    last = std::min(last, roots[consumer].step);
  }
  if (root.consumers.empty() || last <= before)
    return;
  root.step = last;
  for (unsigned consumer : root.consumers)
    if (earliest(roots[consumer]).first > roots[consumer].step)
      root.step = before;
}

void Program::schedule() {
  chooseSteps();
  if (recompute || stored || (without & kWithoutWeighing) || !weighAgain())
    return;
  forgetSchedule();
  chooseSteps();
}

void Program::chooseSteps() {
  unsigned next = 0;
  for (auto [i, root] : llvm::enumerate(roots)) {
    // A loop over blocks of queries is one step: the least for all that is in it.
    if (root.key.rows && (i == 0 || roots[i - 1].key.rows != root.key.rows)) {
      unsigned base = 0, end = i;
      for (; end < roots.size() && roots[end].key.rows == root.key.rows; ++end)
        base = std::max(base, earliest(roots[end]).first);
      for (unsigned member = i; member < end; ++member)
        roots[member].step = base;
    }
    auto [step, inner] = earliest(root);
    root.inner = inner;
    if (!root.key.rows)
      root.step = step;
    if (stored) // one step each, in the program's order
      root.key.alone = ++next;
    if (root.selection)
      selections[root.selection->getResult(0)] = root.step;
  }
  // A reuse's followers skip what only its choice needs.
  for (unsigned i = roots.size(); i-- > 0;) {
    Root &root = roots[i];
    if (root.again)
      continue;
    if (root.selection)
      root.leader = root.reuse;
    else if (!root.consumers.empty()) {
      root.leader = roots[root.consumers.front()].leader;
      for (unsigned consumer : root.consumers)
        if (roots[consumer].leader != root.leader)
          root.leader = 0;
    }
    // Conditions that depend on nothing held wait for whoever needs them, so that they do not
    // stand between passes over heads.
    auto needed = needs(root);
    if (!stored && !root.key.rows && needed.empty() && root.key.space == kvplan::Space::Batch &&
        root.key.kind == Step::Pass && !root.consumers.empty()) {
      unsigned last = std::numeric_limits<unsigned>::max();
      for (unsigned consumer : root.consumers)
        last = std::min(last, roots[consumer].step);
      root.step = std::max(root.step + 1, last) - 1;
    }
    // A contraction waits for the sweep that uses it, which may read the same keys.
    if (!stored && !root.key.rows && (root.kind == Root::Contract || root.kind == Root::Form))
      waitForConsumers(root);
    for (unsigned other : needed)
      roots[other].consumers.push_back(i);
  }
  // A loop runs on all layers if anything in it does.
  for (Root &root : roots)
    if (root.key.rows && !root.again)
      for (const Root &other : roots)
        if (other.key.rows == root.key.rows && !other.again && other.leader != root.leader)
          root.leader = 0;
}

llvm::SmallSetVector<unsigned, 8> Program::needs(const Root &root) const {
  llvm::SmallSetVector<unsigned, 8> out;
  llvm::DenseSet<Value> seen;
  std::function<void(Value)> visit = [&](Value v) {
    if (!v || !seen.insert(v).second)
      return;
    if (auto it = rootOf.find(v); it != rootOf.end() && v != root.value) {
      const Root &leaf = roots[it->second];
      if (!leaf.again) {
        out.insert(it->second);
        return;
      }
      for (Value operand : leaf.reads())
        visit(operand);
      out.insert(leaf.after.begin(), leaf.after.end());
      return;
    }
    if (Operation *op = v.getDefiningOp())
      for (Value operand : op->getOperands())
        visit(operand);
  };
  for (Value operand : root.operands())
    visit(operand);
  for (unsigned other : root.after)
    out.insert(other);
  return out;
}

//===------------------------------------------------------------------------------------------===//
// Pass
//===------------------------------------------------------------------------------------------===//

namespace {
struct Cut : kvpc::impl::KvplanCutBase<Cut> {
  using KvplanCutBase::KvplanCutBase;

  void runOnOperation() override {
    for (auto press : llvm::make_early_inc_range(getOperation().getOps<kvp::PressOp>())) {
      OwningOpRef<kvp::PressOp> copy = press.clone();
      bool both = recompute == Recompute::Over && !stored;
      auto plan = cut(press, both ? Recompute::Never : recompute);
      if (failed(plan))
        return signalPassFailure();
      if (both && holdsWide(*plan)) {
        OpBuilder(press).insert(copy.get());
        kvp::PressOp again = copy.release();
        again.setSymName((press.getSymName() + ".tight").str());
        auto tight = cut(again, Recompute::Always);
        if (failed(tight))
          return signalPassFailure();
        if (*tight)
          plan->setTightAttr(FlatSymbolRefAttr::get(tight->getSymNameAttr()));
        again.erase();
      }
      press.erase();
    }
  }

  /// Whether tasks hold wide values, beside what is packed and a number for each tile.
  static bool holdsWide(kvplan::PipelineOp plan) {
    return llvm::any_of(plan.getOps<kvplan::BufferOp>(), [](kvplan::BufferOp buffer) {
      bool ofTask =
          buffer.getScope() == kvplan::Scope::Task || buffer.getScope() == kvplan::Scope::Rows;
      return ofTask && !buffer.getEvery() && isWide(buffer.getType().getTensor());
    });
  }

  /// A plan; null where one without anything made again is the same.
  FailureOr<kvplan::PipelineOp> cut(kvp::PressOp press, Recompute when) {
    PlanOptions options;
    options.optimization = stored ? 0 : 2;
    options.recompute = when;
    options.without = without;
    Program program(press, options);
    if (failed(program.hold()))
      return failure();
    if (recompute == Recompute::Over && when == Recompute::Always && !program.makesAgain())
      return kvplan::PipelineOp();
    program.schedule();
    return program.emit();
  }
};
} // namespace
