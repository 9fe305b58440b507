//===- Again.cpp - wide values that every pass makes once more --------------------------------===//
//
// A wide value, more than a number for an entry, is as large as the keys or larger. Instead of
// being held between passes it can be made again, a tile at a time, by each pass that reads it.
// Tiles are the same, so are the references of a softmax' exponents: no bit differs.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Transforms/Cut.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::cut;
using kvp::tensorOf;

/// Whether its values are there as soon as a tile is done, and no step but passes may have them.
static bool isTileWise(const Root &root) {
  return (root.kind == Root::Store || root.kind == Root::Contract || root.kind == Root::Form) &&
         !root.leavesRows && root.key.kind == Step::Pass && isWide(tensorOf(root.value));
}

/// Finds what may be made again: what is wide, and read by passes over its own entries alone.
void Program::findTileWise() {
  if (stored)
    return;
  for (Root &root : roots)
    root.tileWise = isTileWise(root);
  auto finish = cast<kvp::ReturnOp>(press.getBody().front().back());
  for (Value v : {finish.getScore(), finish.getProtect()})
    if (v)
      roots[rootOf[v]].tileWise = false;
  for (Root &root : roots) {
    llvm::DenseSet<Value> seen[2];
    std::function<void(Value, bool)> visit = [&](Value v, bool aligned) {
      if (!v || !isa<kvp::NamedTensorType>(v.getType()) || !seen[aligned].insert(v).second)
        return;
      if (auto it = rootOf.find(v); it != rootOf.end() && v != root.value) {
        Root &leaf = roots[it->second];
        leaf.tileWise &= aligned && leaf.key == root.key;
        if (leaf.kind == Root::Statistics)
          visit(v.getDefiningOp()->getOperand(0), aligned);
        return;
      }
      if (Operation *op = v.getDefiningOp())
        for (Value operand : op->getOperands())
          visit(operand, aligned && !movesEntries(op));
    };
    // A selection's or an order's operands are read where they lie.
    bool memory = root.key.kind != Step::Pass;
    for (Value operand : root.operands())
      visit(operand, !memory);
  }
  for (Root &root : roots) {
    root.again = recompute && root.tileWise;
    if (root.inPlace)
      root.inPlace = root.again == roots[rootOf[root.value.getDefiningOp()->getOperand(1)]].again;
  }
}

bool Program::makesAgain() const {
  return llvm::any_of(roots, [](const Root &root) { return root.again; });
}

/// Makes what a root reads and no buffer holds, in the pass at work, where that is not done yet.
void Program::bringReads(ImplicitLocOpBuilder &b, const Root &root, IRMapping &here) {
  if (!makesAgain())
    return;
  llvm::DenseSet<Value> seen;
  std::function<void(Value)> visit;
  auto make = [&](unsigned index) {
    if (!passTiles.insert(index).second)
      return;
    Root &made = roots[index];
    bringReads(b, made, here);
    if (made.inPlace) {
      made.buffer = roots[rootOf[made.value.getDefiningOp()->getOperand(1)]].buffer;
    } else {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPoint(b.getInsertionBlock()->getParentOp()->getParentOfType<kvplan::TasksOp>());
      made.buffer = declareBuffer(b, memoryOrder(tensorOf(made.value), made), kvplan::Scope::Tile);
    }
    emitRoot(b, made, here);
    here.clear(); // what was there before the mask is not
  };
  auto exponents = [&](unsigned index) {
    Value x = roots[index].value.getDefiningOp()->getOperand(0);
    visit(x);
    if (roots[index].references && passExponents.insert(index).second)
      kvplan::ExponentsOp::create(b, roots[rootOf[x]].buffer, roots[index].references);
  };
  visit = [&](Value v) {
    if (!v || !isa<kvp::NamedTensorType>(v.getType()) || !seen.insert(v).second)
      return;
    auto it = rootOf.find(v), softmax = statisticsOf.find(v);
    bool held = it != rootOf.end() && v != root.value;
    if (held && roots[it->second].again)
      return make(it->second);
    if (held && roots[it->second].kind != Root::Statistics)
      return;
    if (held || softmax != statisticsOf.end())
      return exponents(held ? it->second : softmax->second);
    if (Operation *op = v.getDefiningOp())
      for (Value operand : op->getOperands())
        visit(operand);
  };
  for (Value operand : root.operands())
    visit(operand);
}
