//===- Kvp.cpp - dialect, types, attributes and verifiers -------------------------------------===//
#include "dialect/IR/Kvp.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc::kvp;

/// How many a selection keeps: `i64`, which is not spelled, or a tensor from data.
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

#include "dialect/IR/KvpDialect.cpp.inc"
#include "dialect/IR/KvpEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialect/IR/KvpAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/IR/KvpTypes.cpp.inc"
#define GET_OP_CLASSES
#include "dialect/IR/KvpOps.cpp.inc"

void KvpDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialect/IR/KvpAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialect/IR/KvpTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialect/IR/KvpOps.cpp.inc"
      >();
}

Operation *KvpDialect::materializeConstant(OpBuilder &builder, Attribute value, Type type,
                                           Location loc) {
  return arith::ConstantOp::materialize(builder, value, type, loc);
}

bool kvpc::kvp::isCacheAxis(StringRef name) {
  StringRef base = name.rtrim('\'');
  return base == "token" || base == "channel" || base == "part" || base == "slot";
}

bool kvpc::kvp::isEntryAxis(AxisAttr axis) {
  StringRef base = axis.getName().rtrim('\'');
  return base == "token" || base == "part" || (base == "query" && !axis.isStatic());
}

bool kvpc::kvp::isAllQueries(AxisAttr axis) {
  return axis.getName().rtrim('\'') == "query" && !axis.isStatic();
}

SmallVector<StringRef> kvpc::kvp::axisNames(ArrayAttr names) {
  return llvm::map_to_vector(names.getAsValueRange<StringAttr>(), [](StringRef s) { return s; });
}

//===------------------------------------------------------------------------------------------===//
// Axis and tensor type
//===------------------------------------------------------------------------------------------===//

static bool isKeyword(StringRef name) {
  return !name.empty() && (isalpha(name.front()) || name.front() == '_') &&
         llvm::all_of(name, [](char c) { return isalnum(c) || c == '_'; });
}

/// `token/1`, `query:64`, `"channel'"`.
static void printAxis(AsmPrinter &p, AxisAttr axis) {
  if (isKeyword(axis.getName()))
    p << axis.getName();
  else
    p << '"' << axis.getName() << '"';
  if (axis.isStatic())
    p << ":" << axis.getExtent();
  if (axis.getState())
    p << "/" << axis.getState();
}

static FailureOr<AxisAttr> parseAxis(AsmParser &p) {
  std::string name;
  if (failed(p.parseOptionalKeywordOrString(&name)))
    return p.emitError(p.getCurrentLocation(), "expected an axis name"), failure();
  int64_t extent = AxisAttr::kDynamic, state = 0;
  if (succeeded(p.parseOptionalColon()) && p.parseInteger(extent))
    return failure();
  if (succeeded(p.parseOptionalSlash()) && p.parseInteger(state))
    return failure();
  return AxisAttr::get(p.getContext(), name, extent, state);
}

Attribute AxisAttr::parse(AsmParser &p, Type) {
  if (p.parseLess())
    return {};
  auto axis = parseAxis(p);
  if (failed(axis) || p.parseGreater())
    return {};
  return *axis;
}

void AxisAttr::print(AsmPrinter &p) const {
  p << "<";
  printAxis(p, *this);
  p << ">";
}

Type NamedTensorType::parse(AsmParser &p) {
  SmallVector<AxisAttr> axes;
  Type element;
  auto one = [&]() -> ParseResult {
    auto axis = parseAxis(p);
    if (failed(axis))
      return failure();
    axes.push_back(*axis);
    return success();
  };
  SMLoc loc = p.getCurrentLocation();
  if (p.parseLess() || p.parseCommaSeparatedList(AsmParser::Delimiter::Square, one) ||
      p.parseComma() || p.parseType(element) || p.parseGreater())
    return {};
  return p.getChecked<NamedTensorType>(loc, p.getContext(), axes, element);
}

void NamedTensorType::print(AsmPrinter &p) const {
  p << "<[";
  llvm::interleaveComma(getAxes(), p, [&](AxisAttr a) { printAxis(p, a); });
  p << "], " << getElementType() << ">";
}

LogicalResult NamedTensorType::verify(function_ref<InFlightDiagnostic()> emitError,
                                      ArrayRef<AxisAttr> axes, Type element) {
  if (!element.isF32() && !element.isInteger(1) && !element.isInteger(64))
    return emitError() << "tensor elements are i1, i64 or f32, not " << element;
  llvm::SmallDenseSet<StringRef> names;
  for (AxisAttr axis : axes)
    if (!names.insert(axis.getName()).second)
      return emitError() << "axis `" << axis.getName() << "` stands twice";
  return success();
}

AxisAttr NamedTensorType::getAxis(StringRef name) const {
  auto it = llvm::find_if(getAxes(), [&](AxisAttr a) { return a.getName() == name; });
  return it == getAxes().end() ? AxisAttr() : *it;
}

NamedTensorType NamedTensorType::without(ArrayRef<StringRef> names) const {
  auto rest = llvm::filter_to_vector(
      getAxes(), [&](AxisAttr a) { return !llvm::is_contained(names, a.getName()); });
  return get(getContext(), rest, getElementType());
}

//===------------------------------------------------------------------------------------------===//
// Programs and selections
//===------------------------------------------------------------------------------------------===//

LogicalResult ExtentOp::verify() {
  if (getLike().getType().hasAxis(getAxis()))
    return success();
  return emitOpError() << "unknown axis `" << getAxis() << "`; the operand has "
                       << getLike().getType();
}

LogicalResult PressOp::verify() {
  Block &block = getBody().front();
  auto first =
      block.getNumArguments() ? dyn_cast<CacheType>(block.getArgument(0).getType()) : CacheType();
  if (!first || first.getState() != 0)
    return emitOpError("first argument must be the untouched cache `!kvp.cache<0>` (C1)");
  for (BlockArgument arg : block.getArguments().drop_front())
    if (!isa<NamedTensorType, BudgetType>(arg.getType()) && !arg.getType().isInteger(64) &&
        !arg.getType().isF64())
      return emitOpError() << "argument " << arg.getArgNumber()
                           << " must be i64, f64, a budget or a tensor, not " << arg.getType()
                           << " (C1)";
  if (block.empty() || !isa<ReturnOp>(block.back()))
    return emitOpError("must end in `kvp.return` (C2)");
  return success();
}

/// The only cache axis a selection's score or condition may have, beside head.
static FailureOr<AxisAttr> selectionAxis(Operation *op, NamedTensorType score,
                                         ArrayRef<StringRef> allowed) {
  AxisAttr found;
  for (AxisAttr axis : score.getAxes()) {
    if (axis.getName() == "head")
      continue;
    if (found || !llvm::is_contained(allowed, axis.getName()))
      return op->emitOpError() << "selects along one of `" << llvm::join(allowed, "`, `")
                               << "`, with at most `head` beside it; " << score
                               << " has another axis (C1)";
    found = axis;
  }
  if (!found)
    return op->emitOpError() << score << " has no axis to select along (C1)";
  return found;
}

static LogicalResult verifyState(Operation *op, AxisAttr axis, CacheType cache) {
  if (axis.getState() == cache.getState())
    return success();
  return op->emitOpError() << "axis `" << axis.getName() << "` belongs to cache state "
                           << axis.getState() << ", the cache is in state " << cache.getState()
                           << " (C2)";
}

StringRef TopkOp::getElementAxis() {
  for (AxisAttr axis : getScore().getType().getAxes())
    if (axis.getName() != "head")
      return axis.getName();
  return "";
}

LogicalResult TopkOp::verify() {
  auto axis = selectionAxis(*this, getScore().getType(), {"token", "channel", "part"});
  if (failed(axis) || failed(verifyState(*this, *axis, getCache().getType())))
    return failure();
  if (getPartSize().has_value() != (axis->getName() == "part"))
    return emitOpError("needs `part_size` with axis `part`, and only there (C3)");
  if ((getPartFrom() || getPartTo()) && !getPartSize())
    return emitOpError("needs `part_size` beside `from` and `to` (C3)");
  NamedTensorType score = getScore().getType();
  if (getJoint() && (axis->getName() != "token" || !score.hasAxis("head")))
    return emitOpError() << "`joint` chooses over `head` and `token`; the score is " << score
                         << " (C4)";
  if (getAtLeast() && !getJoint())
    return emitOpError("`at_least` needs `joint` (C4)");
  if (auto counts = dyn_cast<NamedTensorType>(getCount().getType()))
    if (axis->getName() == "channel" || !llvm::all_of(counts.getAxes(), [&](AxisAttr own) {
          return own.getName() == "head" && score.hasAxis("head");
        }))
      return emitOpError() << "cannot keep " << counts << " of the score " << score << " (C5)";
  if (getProtect() &&
      failed(uniteAxes(getScore().getType().getAxes(), getProtect().getType().getAxes(),
                       [&] { return emitOpError(); })))
    return failure();
  if (getReuse() && *getReuse() < 1)
    return emitOpError("shares its choice among at least one layer");
  return success();
}

LogicalResult MaskOp::verify() {
  auto axis = selectionAxis(*this, getCondition().getType(), {"token"});
  return failure(failed(axis) || failed(verifyState(*this, *axis, getCache().getType())));
}
