//===- Kvplan.cpp - dialect, types and verifiers ----------------------------------------------===//
#include "dialect/IR/Kvplan.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc::kvplan;
using kvpc::kvp::AxisAttr;
using kvpc::kvp::NamedTensorType;

#include "dialect/IR/KvplanDialect.cpp.inc"
#include "dialect/IR/KvplanEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialect/IR/KvplanAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/IR/KvplanTypes.cpp.inc"
#define GET_OP_CLASSES
#include "dialect/IR/KvplanOps.cpp.inc"

void KvplanDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialect/IR/KvplanAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialect/IR/KvplanTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialect/IR/KvplanOps.cpp.inc"
      >();
}

/// A buffer prints as its tensor does: `<[head, token], f32>`.
Type BufferType::parse(AsmParser &p) {
  Type tensor = NamedTensorType::parse(p);
  return tensor ? get(p.getContext(), llvm::cast<NamedTensorType>(tensor)) : Type();
}

void BufferType::print(AsmPrinter &p) const { getTensor().print(p); }

LogicalResult PipelineOp::verify() {
  Block &block = getBody().front();
  unsigned compactions = 0;
  for (Operation &op : block)
    compactions += isa<CompactOp>(op);
  if (compactions != 1 || !isa<CompactOp>(block.back()))
    return emitOpError("needs one `kvplan.compact`, as its last operation (C7)");
  return success();
}

/// Names of the axes, in any order.
static bool sameAxes(NamedTensorType a, NamedTensorType b) {
  if (a.getAxes().size() != b.getAxes().size())
    return false;
  return llvm::all_of(a.getAxes(), [&](AxisAttr x) { return b.getAxis(x.getName()) == x; });
}

LogicalResult LoadOp::verify() {
  if (sameAxes(getResult().getType(), getBuffer().getType().getTensor()))
    return success();
  return emitOpError() << "loads " << getResult().getType() << " from a buffer of "
                       << getBuffer().getType();
}

LogicalResult StoreOp::verify() {
  if (sameAxes(getValue().getType(), getBuffer().getType().getTensor()))
    return success();
  return emitOpError() << "stores " << getValue().getType() << " into a buffer of "
                       << getBuffer().getType();
}

LogicalResult AccumulateOp::verify() {
  auto pass = (*this)->getParentOfType<PassOp>();
  StringRef over = pass.getOver().getName();
  if (!getValue().getType().hasAxis(over))
    return emitOpError() << "reduces over `" << over << "`, which " << getValue().getType()
                         << " has not";
  if (getBuffer().getType().getTensor().hasAxis(over))
    return emitOpError() << "is complete only after the pass: its buffer cannot have `" << over
                         << "` (C2)";
  return success();
}
