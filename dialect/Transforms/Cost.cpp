//===- Cost.cpp - what is computed once and kept, and what each use computes ------------------===//
//
// None of these decisions changes a bit: a value is the same where it is held in memory, in a tile
// of the thread at work, or computed again.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Transforms/Cost.h"

#include "dialect/Transforms/Cut.h"

#include <map>

using namespace mlir;
using namespace kvpc;
using namespace kvpc::cut;
using kvp::AxisAttr;
using kvp::NamedTensorType;
using kvp::tensorOf;

int64_t kvpc::flopsOf(kvp::Fn fn) {
  switch (fn) {
  case kvp::Fn::Div:
  case kvp::Fn::Sqrt:
  case kvp::Fn::Rsqrt:
    return kDivisionFlops;
  case kvp::Fn::Exp:
    return kExponentialFlops;
  case kvp::Fn::Sigmoid:
    return kExponentialFlops + kDivisionFlops;
  case kvp::Fn::Log:
    return 44;
  case kvp::Fn::Tanh: // of two branches
  case kvp::Fn::Mod:  // in double
    return 56;
  case kvp::Fn::Gelu: // erf, of two branches
    return 90;
  case kvp::Fn::Pow: // in double
    return 240;
  default:
    return 1;
  }
}

static double extentOf(AxisAttr axis) {
  StringRef name = axis.getName().rtrim('\'');
  return axis.isStatic()     ? double(axis.getExtent())
         : name == "channel" ? kUsualChannels
         : name == "group"   ? kUsualGroups
         : name == "head"    ? kUsualHeads
                             : 64;
}

/// How many elements of `of` share one of `v`, which stands on fewer axes and is computed once for
/// them.
static double sharedBy(NamedTensorType v, NamedTensorType of) {
  double n = 1;
  for (AxisAttr axis : of.getAxes())
    if (!v.hasAxis(axis.getName()))
      n *= extentOf(axis);
  return n;
}

double Program::flopsAt(Value v) {
  if (!tensorOf(v) || !v.getDefiningOp() || rootOf.contains(v) || shared.contains(v))
    return 1;
  if (auto it = flops.find(v); it != flops.end())
    return it->second;
  double sum = flopsToMake(v);
  return flops[v] = sum;
}

double Program::flopsToMake(Value v) {
  NamedTensorType type = tensorOf(v);
  Operation *op = v.getDefiningOp();
  double sum = 1;
  if (auto map = dyn_cast<kvp::MapOp>(op))
    sum = double(kvpc::flopsOf(map.getFn()));
  else if (isa<kvp::SoftmaxOp>(op))
    sum = kExponentialFlops + 2;
  for (Value operand : op->getOperands())
    if (NamedTensorType taken = tensorOf(operand))
      sum += flopsAt(operand) / sharedBy(taken, type);
  auto reduced = [&](NamedTensorType taken) {
    double n = 1;
    for (AxisAttr axis : taken.getAxes())
      if (!type.hasAxis(axis.getName()))
        n *= extentOf(axis);
    return n;
  };
  if (isa<kvp::ReduceOp, kvp::DotOp, kvp::FormOp>(op))
    sum *= reduced(tensorOf(op->getOperand(0)));
  else if (auto size = op->getAttrOfType<IntegerAttr>("size");
           isa<kvp::AvgPoolOp, kvp::MaxPoolOp>(op))
    sum *= double(size.getInt());
  return sum;
}

/// The pass (or other step) that a root stands in.
static auto placeOf(const Root &root) {
  return std::tuple(root.step, root.inner, root.key.rows, int(root.key.kind), int(root.key.space),
                    root.leader, root.key.alone);
}

/// Keys and values that are read to make something, `held` though it may be; other held values are
/// read as they are.
llvm::SmallDenseSet<Value, 2> Program::streamsOf(ArrayRef<Value> values, Value held) const {
  llvm::SmallDenseSet<Value, 2> streams;
  llvm::DenseSet<Value> seen;
  std::function<void(Value)> visit = [&](Value v) {
    if (!v || !isa<NamedTensorType>(v.getType()) || !seen.insert(v).second)
      return;
    if (auto it = rootOf.find(v); it != rootOf.end() && !roots[it->second].again && v != held)
      return;
    Operation *op = v.getDefiningOp();
    auto input = dyn_cast_or_null<kvp::InputOp>(op);
    if (input && (input.getInput() == kvp::Input::Keys || input.getInput() == kvp::Input::Values))
      streams.insert(v);
    if (op)
      for (Value operand : op->getOperands())
        visit(operand);
  };
  for (Value v : values)
    visit(v);
  return streams;
}

bool Program::weighAgain() {
  bool any = false;
  for (Root &root : roots) {
    auto takesInPlace = [](Operation *user) { return isa<kvp::SoftmaxOp>(user); };
    if (!root.tileWise || root.again || root.kind != Root::Store || root.inPlace ||
        llvm::any_of(root.value.getUsers(), takesInPlace))
      continue;
    std::map<decltype(placeOf(root)), SmallVector<Value>> passes;
    for (unsigned consumer : root.consumers)
      if (roots[consumer].key.kind == Step::Pass) // others ask for extents
        passes[placeOf(roots[consumer])];
    for (const Root &other : roots)
      if (auto pass = passes.find(placeOf(other)); pass != passes.end() && &other != &root)
        llvm::append_range(pass->second, other.reads());
    if (passes.empty() || (passes.size() == 1 && passes.begin()->first == placeOf(root)))
      continue; // nothing leaves its pass
    // Streams that are read anyway cost nothing more; what its own pass reads is in the cache.
    double made = flopsToMake(root.value), stored = 4 * kWriteFlops, again = 0;
    auto streams = streamsOf({root.value}, root.value);
    auto toMake = [&](ArrayRef<Value> others) {
      auto there = streamsOf(others, {});
      double sum = made;
      for (Value stream : streams)
        if (!there.contains(stream))
          sum += 4 * kReadFlops;
      return sum;
    };
    if (!passes.contains(placeOf(root)))
      stored += toMake({}); // with others of its pass, perhaps
    for (auto &[place, values] : passes) {
      again += toMake(values) + 2 * kTileFlops;
      stored += place == placeOf(root) ? toMake(values) : 4 * kReadFlops;
    }
    if (again < stored)
      any = root.again = true;
  }
  return any;
}

void Program::forgetSchedule() {
  selections.clear();
  for (Root &root : roots) {
    root.step = root.inner = root.key.alone = 0;
    root.leader = 0;
    root.consumers.clear();
  }
}

/// Whether what an entry has of a value lies in memory as whole vectors.
static bool fillsVectors(NamedTensorType type) {
  double inside = 0;
  for (AxisAttr axis : type.getAxes())
    if (!kvp::isEntryAxis(axis) && axis.getName() != "head")
      inside = extentOf(axis);
  return inside >= 16;
}

/// Chooses the wide values that several reductions or sweeps take and that cost more than a tile of
/// them: users first, so that of a chain the last is chosen.
void Program::chooseShared() {
  if (stored)
    return;
  // The loops that would compute a value, each anew; whether one reads it at other entries.
  llvm::DenseMap<Value, llvm::SmallPtrSet<Operation *, 4>> loops;
  llvm::DenseSet<Value> elsewhere;
  for (Operation &op : llvm::reverse(press.getBody().front())) {
    if (op.getNumResults() != 1 || !tensorOf(op.getResult(0)))
      continue;
    Value v = op.getResult(0);
    auto &own = loops[v];
    for (Operation *user : v.getUsers()) {
      if (isa<kvp::ExtentOp, kvp::IndexOp>(user)) // asks for extents alone
        continue;
      auto map = dyn_cast<kvp::MapOp>(user);
      if (!map || shared.contains(map.getResult())) {
        own.insert(user);
        if (movesEntries(user) || readsHeads(user) ||
            !isa<kvp::MapOp, kvp::ReduceOp, kvp::DotOp>(user))
          elsewhere.insert(v);
        continue;
      }
      Value next = map.getResult();
      own.insert(loops[next].begin(), loops[next].end());
      if (elsewhere.contains(next))
        elsewhere.insert(v);
    }
    if (!isa<kvp::MapOp>(op) || own.size() < 2 || elsewhere.contains(v) || !isWide(tensorOf(v)) ||
        isMatrix(v) || tensorOf(v).hasAxis("feature") || !fillsVectors(tensorOf(v)))
      continue;
    if (double(own.size() - 1) * flopsAt(v) > double(own.size() + 1) * kTileFlops) {
      shared.insert(v);
      flops.clear();
    }
  }
}
