//===- Kvplan.cpp - dialect, types and verifiers ----------------------------------------------===//
#include "dialect/IR/Kvplan.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc::kvplan;
using kvpc::kvp::AxisAttr;
using kvpc::kvp::NamedTensorType;

/// How many a selection keeps: `i64`, which is not spelled, or a buffer.
static ParseResult parseCountType(OpAsmParser &p, Type &type) {
  if (succeeded(p.parseOptionalKeyword("as")))
    return p.parseType(type);
  type = p.getBuilder().getI64Type();
  return success();
}

static void printCountType(OpAsmPrinter &p, Operation *, Type type) {
  if (!type.isInteger(64))
    p << " as " << type;
}

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

/// Whether a buffer holds a tensor: its axes in any order, and `head` where each head has its own.
static bool holds(NamedTensorType buffer, NamedTensorType tensor) {
  bool own = buffer.hasAxis("head") && !tensor.hasAxis("head");
  return buffer.getAxes().size() == tensor.getAxes().size() + own &&
         llvm::all_of(tensor.getAxes(),
                      [&](AxisAttr axis) { return buffer.getAxis(axis.getName()) == axis; });
}

LogicalResult LoadOp::verify() {
  if (holds(getBuffer().getType().getTensor(), getResult().getType()))
    return success();
  return emitOpError() << "loads " << getResult().getType() << " from a buffer of "
                       << getBuffer().getType();
}

LogicalResult StoreOp::verify() {
  if (holds(getBuffer().getType().getTensor(), getValue().getType()))
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

LogicalResult RowsOp::verify() {
  return getBlock() > 0 ? success() : emitOpError("needs a block of at least one query");
}

LogicalResult MergeOp::verify() {
  if (!(*this)->getParentOfType<RowsOp>())
    return emitOpError("stands in a `kvplan.rows`");
  if (holds(getBuffer().getType().getTensor(), getValue().getType()))
    return success();
  return emitOpError() << "merges " << getValue().getType() << " into a buffer of "
                       << getBuffer().getType();
}

LogicalResult FoldOp::verify() {
  NamedTensorType value = getValue().getType(), whole = getBuffer().getType().getTensor();
  if (!value.hasAxis(getOver()) || whole.hasAxis(getOver()))
    return emitOpError() << "reduces over `" << getOver() << "`: " << value << " must have it, "
                         << whole << " must not";
  auto block = getBlock().getDefiningOp<BufferOp>();
  if (!block || block.getScope() != Scope::Tile)
    return emitOpError("needs a block of scope `tile`");
  return success();
}

//===------------------------------------------------------------------------------------------===//
// Where axes come from
//===------------------------------------------------------------------------------------------===//

Value kvpc::kvplan::writtenTo(Value buffer) {
  // A mask over a contraction works in its buffer.
  for (Operation *user : buffer.getUsers()) {
    if (auto contract = dyn_cast<ContractOp>(user))
      if (contract.getBuffer() == buffer)
        return {};
    if (auto form = dyn_cast<FormOp>(user))
      if (form.getBuffer() == buffer)
        return {};
  }
  for (Operation *user : buffer.getUsers()) {
    if (auto store = dyn_cast<StoreOp>(user))
      return store.getValue();
    if (auto accumulate = dyn_cast<AccumulateOp>(user))
      if (accumulate.getBuffer() == buffer)
        return accumulate.getValue();
    if (auto fold = dyn_cast<FoldOp>(user))
      if (fold.getBuffer() == buffer)
        return fold.getValue();
    if (auto merge = dyn_cast<MergeOp>(user))
      return merge.getValue();
    if (auto order = dyn_cast<OrderOp>(user))
      if (order.getResult() == buffer)
        return writtenTo(order.getInput());
    if (auto statistics = dyn_cast<StatisticsOp>(user))
      if (statistics.getBuffer() != buffer)
        return writtenTo(statistics.getBuffer());
  }
  return {};
}

bool kvpc::kvplan::holdsBlock(BufferOp buffer) {
  if (buffer.getScope() != Scope::Tile)
    return buffer.getScope() == Scope::Rows;
  return llvm::any_of(buffer.getResult().getUsers(),
                      [](Operation *user) { return bool(user->getParentOfType<RowsOp>()); });
}

bool kvpc::kvplan::isEntryAxis(BufferOp buffer, AxisAttr axis) {
  return kvp::isEntryAxis(axis) && !(kvp::isAllQueries(axis) && holdsBlock(buffer));
}

PassOp kvpc::kvplan::passOfTile(Value buffer) {
  if (buffer.getDefiningOp<BufferOp>().getScope() != Scope::Tile)
    return {};
  PassOp pass;
  for (Operation *user : buffer.getUsers()) {
    if (auto fold = dyn_cast<FoldOp>(user); fold && fold.getBlock() == buffer)
      return {};
    pass = user->getParentOfType<PassOp>();
  }
  return pass;
}

StringRef kvpc::kvplan::axisOf(Value &buffer, StringRef axis) {
  auto last = [](Value b) {
    return llvm::cast<BufferType>(b.getType()).getTensor().getAxes().back().getName();
  };
  for (bool again = true; again;) {
    again = false;
    for (Operation *user : buffer.getUsers())
      if (auto order = dyn_cast<OrderOp>(user); order && order.getResult() == buffer) {
        auto before = llvm::cast<BufferType>(order.getInput().getType()).getTensor();
        // A sort may have named the axis anew; of heads, which lie apart, the old name is one.
        if (order.getOver()) {
          if (!before.hasAxis(axis))
            axis = kvp::axisNames(*order.getOver()).front();
        } else if (axis == last(buffer)) {
          axis = last(order.getInput());
        }
        buffer = order.getInput();
        again = true;
        break;
      }
  }
  return axis;
}

std::pair<Value, StringRef> kvpc::kvplan::originOf(Value tensor, StringRef axis, bool *picked) {
  while (Operation *op = tensor.getDefiningOp()) {
    if (auto rename = dyn_cast<kvp::RenameOp>(op)) {
      if (axis == rename.getTo())
        axis = rename.getFrom();
      tensor = rename.getInput();
      continue;
    }
    if (auto sort = dyn_cast<kvp::SortOp>(op)) {
      if (axis == sort.getTo())
        axis = sort.getAxis();
      tensor = sort.getInput();
      continue;
    }
    if (auto join = dyn_cast<kvp::JoinOp>(op)) {
      tensor = axis == join.getAxis() ? join.getLike() : join.getInput();
      continue;
    }
    if (isa<kvp::PartitionOp>(op) && (axis == "part" || axis == "slot"))
      return {tensor, axis};
    // Along the axis that is picked from, the index places entries.
    if (auto pick = dyn_cast<kvp::AtOp>(op)) {
      if (axis == pick.getAxis()) {
        tensor = pick.getIndex();
        continue;
      }
      if (picked && pick.getInput().getType().hasAxis(axis) &&
          originOf(pick.getInput(), pick.getAxis()).second == "part")
        *picked = true;
    }
    if (isa<kvp::InputOp, kvp::PositionOp, kvp::CausalOp, kvp::IotaOp, kvp::UniformOp>(op))
      return {tensor, axis};
    Value next;
    if (auto load = dyn_cast<LoadOp>(op)) {
      Value buffer = load.getBuffer();
      axis = axisOf(buffer, axis);
      next = writtenTo(buffer);
      if (!next || !cast<NamedTensorType>(next.getType()).hasAxis(axis))
        return {tensor, axis};
    } else {
      for (Value operand : op->getOperands())
        if (auto type = dyn_cast<NamedTensorType>(operand.getType()); type && type.hasAxis(axis)) {
          next = operand;
          break;
        }
    }
    if (!next)
      break;
    tensor = next;
  }
  return {tensor, axis};
}

Outer kvpc::kvplan::outerOf(Value product, StringRef over) {
  auto map = product.getDefiningOp<kvp::MapOp>();
  if (!map || map.getFn() != kvp::Fn::Mul)
    return {};
  Value factors[] = {map.getOperand(0), map.getOperand(1)};
  StringRef own[2];
  for (int i : {0, 1}) {
    auto type = dyn_cast<NamedTensorType>(factors[i].getType());
    auto other = dyn_cast<NamedTensorType>(factors[1 - i].getType());
    if (!type || !other || !type.hasAxis(over) || !type.getElementType().isF32())
      return {};
    for (AxisAttr axis : type.getAxes()) {
      if (other.hasAxis(axis.getName()))
        continue;
      if (!own[i].empty() || axis.getName().rtrim('\'') == "slot")
        return {};
      own[i] = axis.getName();
    }
  }
  if (own[0].empty() || own[1].empty())
    return {};
  // Of two names the first in the order of axes is the row.
  for (AxisAttr axis : cast<NamedTensorType>(product.getType()).getAxes()) {
    if (axis.getName() == own[0])
      break;
    if (axis.getName() == own[1]) {
      std::swap(own[0], own[1]);
      std::swap(factors[0], factors[1]);
      break;
    }
  }
  auto isRenamed = [&](Value x, StringRef from, Value y, StringRef to) {
    auto rename = y.getDefiningOp<kvp::RenameOp>();
    return rename && rename.getInput() == x && rename.getFrom() == from && rename.getTo() == to;
  };
  bool same = isRenamed(factors[0], own[0], factors[1], own[1]) ||
              isRenamed(factors[1], own[1], factors[0], own[0]);
  return {factors[0], factors[1], own[0], own[1], same};
}

kvpc::kvp::PartitionOp kvpc::kvplan::partitionOf(Value tensor, StringRef axis) {
  return originOf(tensor, axis).first.getDefiningOp<kvp::PartitionOp>();
}

Slots kvpc::kvplan::slotsAlong(Value tensor, StringRef axis) {
  bool picked = false;
  auto [from, name] = originOf(tensor, axis, &picked);
  auto partition = from.getDefiningOp<kvp::PartitionOp>();
  if (!partition || name != "slot" || picked)
    return {};
  SmallVector<StringRef> parts;
  for (AxisAttr other : llvm::cast<NamedTensorType>(tensor.getType()).getAxes())
    if (auto [origin, made] = originOf(tensor, other.getName());
        made == "part" && origin.getDefiningOp<kvp::PartitionOp>())
      parts.push_back(other.getName());
  if (parts.size() < 2)
    return parts.empty() ? Slots() : Slots{partition, parts.front()};
  // Parts meet parts: the slots are of those with which they came.
  Operation *op = tensor.getDefiningOp();
  if (!op)
    return {partition, parts.front()};
  auto rename = dyn_cast<kvp::RenameOp>(op);
  for (Value operand : op->getOperands()) {
    auto type = dyn_cast<NamedTensorType>(operand.getType());
    StringRef before = rename && axis == rename.getTo() ? rename.getFrom() : axis;
    if (!type || !type.hasAxis(before))
      continue;
    Slots own = slotsAlong(operand, before);
    StringRef part = rename && own.part == rename.getFrom() ? rename.getTo() : own.part;
    if (own && llvm::is_contained(parts, part))
      return {partition, part};
  }
  if (auto load = dyn_cast<LoadOp>(op))
    if (Value stored = writtenTo(load.getBuffer()))
      if (Slots own = slotsAlong(stored, axis); own && llvm::is_contained(parts, own.part))
        return {partition, own.part};
  return {partition, parts.front()};
}
