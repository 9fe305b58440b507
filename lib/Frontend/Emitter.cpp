//===- Emitter.cpp - kvp operations, each once ------------------------------------------------===//
#include "lib/Frontend/Emitter.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OperationSupport.h"

using namespace kvpc;
using mlir::Location;
using mlir::ValueRange;

mlir::Value Emitter::insert(Location loc, llvm::StringRef name, ValueRange operands,
                            mlir::Type type, llvm::ArrayRef<mlir::NamedAttribute> attributes) {
  mlir::OperationState state(loc, name, operands, type, attributes);
  return unique(builder.create(state));
}

mlir::Value Emitter::unique(mlir::Operation *op) {
  using mlir::OperationEquivalence;
  unsigned hash = static_cast<unsigned>(OperationEquivalence::computeHash(
      op, OperationEquivalence::directHashValue, OperationEquivalence::ignoreHashValue,
      OperationEquivalence::IgnoreLocations));
  auto &bucket = known[hash];
  for (mlir::Operation *other : bucket) {
    if (!OperationEquivalence::isEquivalentTo(op, other, OperationEquivalence::exactValueMatch,
                                              nullptr, OperationEquivalence::IgnoreLocations))
      continue;
    op->erase();
    return other->getResult(0);
  }
  bucket.push_back(op);
  ++count;
  return op->getResult(0);
}

mlir::Value Emitter::constant(Location loc, const Number &number) {
  mlir::TypedAttr value;
  switch (number.element) {
  case Element::Bool:
    value = builder.getBoolAttr(number.truth());
    break;
  case Element::Int:
    value = builder.getI64IntegerAttr(number.integer);
    break;
  case Element::Float:
    value = builder.getF64FloatAttr(number.real);
    break;
  }
  return unique(mlir::arith::ConstantOp::create(builder, loc, value));
}

mlir::Value Emitter::map(Location loc, kvp::Fn fn, ValueRange operands) {
  return create<kvp::MapOp>(loc, operands, named("fn", kvp::FnAttr::get(getContext(), fn)));
}

mlir::Value Emitter::reduce(Location loc, kvp::Reduction kind, mlir::Value input,
                            llvm::ArrayRef<llvm::StringRef> over, mlir::Value where) {
  llvm::SmallVector<mlir::Value> operands{input};
  if (where)
    operands.push_back(where);
  return create<kvp::ReduceOp>(
      loc, operands,
      {named("kind", kvp::ReductionAttr::get(getContext(), kind)), strings("over", over)});
}

void Emitter::require(Location loc, mlir::Value condition, llvm::StringRef message) {
  kvp::RequireOp::create(builder, loc, condition, message);
}

mlir::Value Emitter::placeholder(Location loc, mlir::Type type, ValueRange operands) {
  return mlir::UnrealizedConversionCastOp::create(builder, loc, type, operands).getResult(0);
}
