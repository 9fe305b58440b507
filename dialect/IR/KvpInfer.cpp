//===- KvpInfer.cpp - result types of kvp operations ------------------------------------------===//
#include "dialect/IR/Kvp.h"
#include "mlir/IR/Builders.h"

using namespace mlir;
using namespace kvpc::kvp;

FailureOr<SmallVector<AxisAttr>> kvpc::kvp::uniteAxes(ArrayRef<AxisAttr> a, ArrayRef<AxisAttr> b,
                                                      EmitError emitError) {
  SmallVector<AxisAttr> axes(a);
  for (AxisAttr axis : b) {
    auto it = llvm::find_if(axes, [&](AxisAttr x) { return x.getName() == axis.getName(); });
    if (it == axes.end()) {
      axes.push_back(axis);
      continue;
    }
    if (it->getState() != axis.getState()) {
      if (emitError)
        emitError() << "axis `" << axis.getName() << "` belongs to cache state " << it->getState()
                    << " and to state " << axis.getState();
      return failure();
    }
    if (it->isStatic() && axis.isStatic() && it->getExtent() != axis.getExtent()) {
      if (emitError)
        emitError() << "axis `" << axis.getName() << "` has extents " << it->getExtent() << " and "
                    << axis.getExtent();
      return failure();
    }
    if (!it->isStatic())
      *it = axis;
  }
  return axes;
}

NamedTensorType kvpc::kvp::inCanonicalOrder(NamedTensorType type) {
  static constexpr StringRef order[] = {"head", "group", "query",   "part",
                                        "slot", "token", "channel", "feature"};
  auto rank = [](StringRef name) {
    return std::tuple(llvm::find(order, name.rtrim('\'')) - std::begin(order), name);
  };
  SmallVector<AxisAttr> axes(type.getAxes());
  llvm::sort(axes, [&](AxisAttr a, AxisAttr b) { return rank(a.getName()) < rank(b.getName()); });
  return NamedTensorType::get(type.getContext(), axes, type.getElementType());
}

namespace {

enum class Kind { Bool, Int, Float };

Kind kindOf(Type type) {
  if (auto tensor = dyn_cast<NamedTensorType>(type))
    type = tensor.getElementType();
  return type.isInteger(1) ? Kind::Bool : type.isInteger(64) ? Kind::Int : Kind::Float;
}

unsigned arity(Fn fn) {
  switch (fn) {
  case Fn::Where:
    return 3;
  case Fn::Neg:
  case Fn::Abs:
  case Fn::Exp:
  case Fn::Log:
  case Fn::Sqrt:
  case Fn::Rsqrt:
  case Fn::Tanh:
  case Fn::Sigmoid:
  case Fn::Gelu:
  case Fn::Relu:
  case Fn::Floor:
  case Fn::Round:
  case Fn::Int:
  case Fn::Float:
  case Fn::Not:
    return 1;
  default:
    return 2;
  }
}

/// Kind of the result, or nothing where the operands' kinds do not fit.
std::optional<Kind> resultKind(Fn fn, ArrayRef<Kind> in) {
  auto any = [&](Kind k) { return llvm::is_contained(in, k); };
  switch (fn) {
  case Fn::And:
  case Fn::Or:
  case Fn::Not:
    return any(Kind::Int) || any(Kind::Float) ? std::nullopt : std::optional(Kind::Bool);
  case Fn::Eq:
  case Fn::Ne:
    if (any(Kind::Bool) && !llvm::all_equal(in))
      return std::nullopt;
    return Kind::Bool;
  case Fn::Lt:
  case Fn::Le:
    return any(Kind::Bool) ? std::nullopt : std::optional(Kind::Bool);
  case Fn::Where:
    if (in[0] != Kind::Bool || (in[1] == Kind::Bool) != (in[2] == Kind::Bool))
      return std::nullopt;
    return std::max(in[1], in[2]);
  case Fn::Float: // also of a condition: 0 or 1
    return Kind::Float;
  default:
    break;
  }
  if (any(Kind::Bool))
    return std::nullopt;
  switch (fn) {
  case Fn::Floor:
  case Fn::Round:
  case Fn::Int:
    return Kind::Int;
  case Fn::Add:
  case Fn::Sub:
  case Fn::Mul:
  case Fn::Mod:
  case Fn::Pow:
  case Fn::Minimum:
  case Fn::Maximum:
  case Fn::Neg:
  case Fn::Abs:
  case Fn::Relu:
    return any(Kind::Float) ? Kind::Float : Kind::Int;
  default:
    return Kind::Float;
  }
}

Type elementType(MLIRContext *context, Kind kind, bool host) {
  Builder b(context);
  if (kind == Kind::Float)
    return host ? Type(b.getF64Type()) : b.getF32Type();
  return kind == Kind::Int ? b.getI64Type() : b.getI1Type();
}

/// Errors of inference go to the op's location, or nowhere.
auto emitter(std::optional<Location> loc, StringRef op) {
  return [loc, op]() -> InFlightDiagnostic {
    if (!loc)
      return InFlightDiagnostic();
    return mlir::emitError(*loc) << "'kvp." << op << "' op ";
  };
}

AxisAttr requireAxis(NamedTensorType type, StringRef name, EmitError emitError) {
  AxisAttr axis = type.getAxis(name);
  if (!axis) {
    auto diag = emitError();
    diag << "unknown axis `" << name << "`; the operand has " << type;
  }
  return axis;
}

LogicalResult requireSubset(NamedTensorType type, NamedTensorType where, EmitError emitError) {
  if (!where)
    return success();
  for (AxisAttr axis : where.getAxes())
    if (!type.hasAxis(axis.getName()))
      return emitError() << "`where` has axis `" << axis.getName() << "`, the operand has not (C2)";
  return success(succeeded(uniteAxes(type.getAxes(), where.getAxes(), emitError)));
}

NamedTensorType typeOf(Value value) {
  return value ? cast<NamedTensorType>(value.getType()) : NamedTensorType();
}

/// `type` with axis `name` replaced by `axes`.
NamedTensorType replaceAxis(NamedTensorType type, StringRef name, ArrayRef<AxisAttr> axes) {
  SmallVector<AxisAttr> out;
  for (AxisAttr axis : type.getAxes()) {
    if (axis.getName() == name)
      llvm::append_range(out, axes);
    else
      out.push_back(axis);
  }
  return NamedTensorType::get(type.getContext(), out, type.getElementType());
}

LogicalResult checkNew(NamedTensorType type, StringRef name, EmitError emitError) {
  if (type.hasAxis(name))
    return emitError() << "already has an axis `" << name << "`";
  return success();
}

} // namespace

Type kvpc::kvp::inferMapType(MLIRContext *context, Fn fn, TypeRange operands, EmitError emitError) {
  auto fail = [&](const Twine &text) {
    if (emitError)
      emitError() << text;
    return Type();
  };
  if (operands.size() != arity(fn))
    return fail("`" + stringifyFn(fn) + "` takes " + Twine(arity(fn)) + " operands, not " +
                Twine(operands.size()));
  SmallVector<AxisAttr> axes;
  bool host = true;
  for (Type type : operands) {
    auto tensor = dyn_cast<NamedTensorType>(type);
    if (!tensor)
      continue;
    host = false;
    auto united = uniteAxes(axes, tensor.getAxes(), emitError);
    if (failed(united))
      return {};
    axes = *united;
  }
  SmallVector<Kind> kinds = llvm::map_to_vector(operands, kindOf);
  auto kind = resultKind(fn, kinds);
  if (!kind)
    return fail("`" + stringifyFn(fn) + "` does not take these element types");
  Type element = elementType(context, *kind, host);
  return host ? element : Type(inCanonicalOrder(NamedTensorType::get(context, axes, element)));
}

/// Results list their axes in the canonical order, whatever the operands' order is.
static void sortResults(SmallVectorImpl<Type> &types) {
  for (Type &type : types)
    if (auto tensor = dyn_cast<NamedTensorType>(type))
      type = inCanonicalOrder(tensor);
}

#define INFER(OP)                                                                                  \
  static LogicalResult infer##OP(MLIRContext *context, std::optional<Location> location,           \
                                 OP::Adaptor op, SmallVectorImpl<Type> &out);                      \
  LogicalResult OP::inferReturnTypes(MLIRContext *context, std::optional<Location> location,       \
                                     Adaptor op, SmallVectorImpl<Type> &out) {                     \
    if (failed(infer##OP(context, location, op, out)))                                             \
      return failure();                                                                            \
    sortResults(out);                                                                              \
    return success();                                                                              \
  }                                                                                                \
  static LogicalResult infer##OP(MLIRContext *context, std::optional<Location> location,           \
                                 OP::Adaptor op, SmallVectorImpl<Type> &out)

static AxisAttr axis(MLIRContext *context, StringRef name, int64_t extent = AxisAttr::kDynamic,
                     int64_t state = 0) {
  return AxisAttr::get(context, name, extent, state);
}

INFER(InputOp) {
  int64_t state = cast<CacheType>(op.getCache().getType()).getState();
  int64_t last = op.getLast().value_or(AxisAttr::kDynamic);
  bool queries = op.getInput() == Input::Queries || op.getInput() == Input::Unrotated_queries;
  if (op.getLast() && !queries)
    return emitter(location, "input")() << "only queries have a `last`";
  auto head = axis(context, "head"), group = axis(context, "group");
  auto channel = axis(context, "channel", AxisAttr::kDynamic, state);
  auto token = axis(context, "token", AxisAttr::kDynamic, state);
  SmallVector<AxisAttr> axes;
  switch (op.getInput()) {
  case Input::Keys:
  case Input::Values:
  case Input::Unrotated_keys:
    axes = {head, token, channel};
    break;
  case Input::Queries:
  case Input::Unrotated_queries:
    axes = {head, group, axis(context, "query", last), channel};
    break;
  case Input::Hidden:
    axes = {axis(context, "query"), axis(context, "feature")};
    break;
  case Input::Output_weight:
    axes = {head, group, channel, axis(context, "feature")};
    break;
  }
  out.push_back(NamedTensorType::get(context, axes, Float32Type::get(context)));
  return success();
}

INFER(PositionOp) {
  int64_t state = cast<CacheType>(op.getCache().getType()).getState();
  SmallVector<AxisAttr> axes{axis(context, "token", AxisAttr::kDynamic, state)};
  // What was first cached where differs by head once heads have chosen apart.
  if (op.getOriginal() && state > 0)
    axes.insert(axes.begin(), axis(context, "head"));
  out.push_back(NamedTensorType::get(context, axes, IntegerType::get(context, 64)));
  return success();
}

INFER(CausalOp) {
  int64_t state = cast<CacheType>(op.getCache().getType()).getState();
  SmallVector<AxisAttr> axes{axis(context, "query", op.getLast().value_or(AxisAttr::kDynamic)),
                             axis(context, "token", AxisAttr::kDynamic, state)};
  if (state > 0)
    axes.insert(axes.begin(), axis(context, "head"));
  out.push_back(NamedTensorType::get(context, axes, IntegerType::get(context, 1)));
  return success();
}

INFER(IndexOp) {
  AxisAttr a = requireAxis(typeOf(op.getLike()), op.getAxis(), emitter(location, "index"));
  if (!a)
    return failure();
  out.push_back(NamedTensorType::get(context, {a}, IntegerType::get(context, 64)));
  return success();
}

INFER(IotaOp) {
  out.push_back(NamedTensorType::get(context, {axis(context, op.getAxis(), op.getExtent())},
                                     IntegerType::get(context, 64)));
  return success();
}

INFER(UniformOp) {
  int64_t state = cast<CacheType>(op.getCache().getType()).getState();
  SmallVector<AxisAttr> axes;
  for (Attribute a : op.getAxes()) {
    auto one = dyn_cast<AxisAttr>(a);
    if (!one)
      return emitter(location, "uniform")() << "axes must be `#kvp.axis` attributes";
    if (one.getName() == "token" && one.getState() != state)
      return emitter(location, "uniform")() << "axis `token` must be of cache state " << state;
    axes.push_back(one);
  }
  out.push_back(NamedTensorType::get(context, axes, Float32Type::get(context)));
  return success();
}

INFER(MapOp) {
  Type type =
      inferMapType(context, op.getFn(), op.getOperands().getTypes(), emitter(location, "map"));
  if (!type)
    return failure();
  out.push_back(type);
  return success();
}

INFER(ReduceOp) {
  auto emit = emitter(location, "reduce");
  auto type = typeOf(op.getInput());
  SmallVector<StringRef> over = axisNames(op.getOver());
  for (StringRef name : over)
    if (!requireAxis(type, name, emit))
      return failure();
  if (failed(requireSubset(type, typeOf(op.getWhere()), emit)))
    return failure();
  Reduction kind = op.getKind();
  bool logical = kind == Reduction::All || kind == Reduction::Any || kind == Reduction::Count;
  if (logical != (kindOf(type) == Kind::Bool))
    return emit() << "`" << stringifyReduction(kind) << "` takes " << (logical ? "i1" : "numbers")
                  << ", not " << type.getElementType() << " (C3)";
  if (kind == Reduction::Argmax && over.size() != 1)
    return emit() << "`argmax` is over one axis (C3)";
  Type element = Float32Type::get(context);
  if (kind == Reduction::All || kind == Reduction::Any)
    element = IntegerType::get(context, 1);
  else if (kind == Reduction::Count || kind == Reduction::Argmax)
    element = IntegerType::get(context, 64);
  else if (kind == Reduction::Sum || kind == Reduction::Max || kind == Reduction::Min)
    element = type.getElementType();
  out.push_back(type.without(over).withElement(element));
  return success();
}

INFER(DotOp) {
  auto emit = emitter(location, "dot");
  auto lhs = typeOf(op.getLhs()), rhs = typeOf(op.getRhs());
  if (!requireAxis(lhs, op.getOver(), emit) || !requireAxis(rhs, op.getOver(), emit))
    return failure();
  auto axes = uniteAxes(lhs.getAxes(), rhs.getAxes(), emit);
  if (failed(axes))
    return failure();
  out.push_back(NamedTensorType::get(context, *axes, lhs.getElementType()).without({op.getOver()}));
  return success();
}

INFER(RotateOp) {
  auto emit = emitter(location, "rotate");
  auto type = typeOf(op.getInput());
  if (!requireAxis(type, "channel", emit))
    return failure();
  SmallVector<AxisAttr> axes(type.getAxes());
  auto by = dyn_cast<NamedTensorType>(op.getBy().getType());
  if (by) {
    if (by.hasAxis("channel"))
      return emit() << "positions have `channel`: " << by << " (C1)";
    auto united = uniteAxes(axes, by.getAxes(), emit);
    if (failed(united))
      return failure();
    axes = *united;
  }
  SmallVector<StringRef> mean;
  if (op.getMean())
    mean = axisNames(*op.getMean());
  for (StringRef name : mean)
    if (!by || !by.hasAxis(name) || type.hasAxis(name))
      return emit() << "takes the mean over `" << name << "`, which must be of the positions alone"
                    << " (C2)";
  out.push_back(NamedTensorType::get(context, axes, type.getElementType()).without(mean));
  return success();
}

INFER(RotaryOp) {
  auto emit = emitter(location, "rotary");
  AxisAttr a = requireAxis(typeOf(op.getLike()), op.getAxis(), emit);
  if (!a)
    return failure();
  SmallVector<AxisAttr> axes{a};
  if (auto by = dyn_cast<NamedTensorType>(op.getBy().getType())) {
    if (by.hasAxis(op.getAxis()))
      return emit() << "positions have `" << op.getAxis() << "`: " << by << " (C1)";
    llvm::append_range(axes, by.getAxes());
  }
  auto type = NamedTensorType::get(context, axes, Float32Type::get(context));
  SmallVector<StringRef> mean;
  if (op.getMean())
    mean = axisNames(*op.getMean());
  for (StringRef name : mean)
    if (name == op.getAxis() || !type.hasAxis(name))
      return emit() << "takes the mean over `" << name << "`, which the positions have not (C2)";
  out.push_back(type.without(mean));
  return success();
}

INFER(FormOp) {
  auto emit = emitter(location, "form");
  auto x = typeOf(op.getInput()), m = typeOf(op.getMatrix());
  if (!requireAxis(x, op.getAxis(), emit) || !requireAxis(m, op.getRow(), emit) ||
      !requireAxis(m, op.getColumn(), emit))
    return failure();
  auto rest = x.without({op.getAxis()});
  if (op.getRow() == op.getColumn() || rest.hasAxis(op.getRow()) || rest.hasAxis(op.getColumn()))
    return emit() << "cannot name rows `" << op.getRow() << "` and columns `" << op.getColumn()
                  << "` (C1)";
  auto axes = uniteAxes(rest.getAxes(), m.without({op.getRow(), op.getColumn()}).getAxes(), emit);
  if (failed(axes))
    return failure();
  out.push_back(NamedTensorType::get(context, *axes, x.getElementType()));
  return success();
}

INFER(PairOp) {
  auto type = typeOf(op.getInput());
  out.push_back(type);
  return success(bool(requireAxis(type, op.getAxis(), emitter(location, "pair"))));
}

/// Operand, axis and `where` of an op along an axis.
static LogicalResult checkAlong(NamedTensorType type, StringRef name, Value where, EmitError emit,
                                bool numbers = true) {
  if (!requireAxis(type, name, emit) || failed(requireSubset(type, typeOf(where), emit)))
    return failure();
  if (numbers && kindOf(type) == Kind::Bool)
    return emit() << "takes numbers, not i1";
  return success();
}

#define INFER_FLOAT_ALONG(OP, NAME)                                                                \
  INFER(OP) {                                                                                      \
    auto type = typeOf(op.getInput());                                                             \
    out.push_back(type.withElement(Float32Type::get(context)));                                    \
    return checkAlong(type, op.getAxis(), op.getWhere(), emitter(location, NAME));                 \
  }
INFER_FLOAT_ALONG(SoftmaxOp, "softmax")
INFER_FLOAT_ALONG(NormalizeOp, "normalize")

INFER(CumsumOp) {
  auto type = typeOf(op.getInput());
  out.push_back(type);
  return checkAlong(type, op.getAxis(), op.getWhere(), emitter(location, "cumsum"));
}

INFER(SortOp) {
  auto emit = emitter(location, "sort");
  auto type = typeOf(op.getInput());
  if (failed(checkAlong(type, op.getAxis(), op.getWhere(), emit)) ||
      failed(checkNew(type.without({op.getAxis()}), op.getTo(), emit)))
    return failure();
  out.push_back(replaceAxis(type, op.getAxis(), {type.getAxis(op.getAxis()).withName(op.getTo())}));
  return success();
}

static LogicalResult checkPool(NamedTensorType type, StringRef name, Value where, int64_t size,
                               EmitError emit) {
  if (size < 1 || size % 2 == 0)
    return emit() << "`size` must be odd and positive, not " << size;
  return checkAlong(type, name, where, emit);
}

INFER(AvgPoolOp) {
  auto type = typeOf(op.getInput());
  out.push_back(type.withElement(Float32Type::get(context)));
  return checkPool(type, op.getAxis(), op.getWhere(), op.getSize(), emitter(location, "avg_pool"));
}

INFER(MaxPoolOp) {
  auto type = typeOf(op.getInput());
  out.push_back(type.withElement(Float32Type::get(context)));
  return checkPool(type, op.getAxis(), op.getWhere(), op.getSize(), emitter(location, "max_pool"));
}

INFER(ShiftOp) {
  auto emit = emitter(location, "shift");
  auto type = typeOf(op.getInput());
  if (failed(checkAlong(type, op.getAxis(), Value(), emit, /*numbers=*/false)))
    return failure();
  Kind from = kindOf(type), fill = kindOf(op.getFill().getType());
  if ((from == Kind::Bool) != (fill == Kind::Bool) || (from == Kind::Int && fill == Kind::Float))
    return emit() << "`fill` must be of the operand's kind, not " << op.getFill().getType();
  out.push_back(type);
  return success();
}

INFER(RankOp) {
  auto emit = emitter(location, "rank");
  auto type = typeOf(op.getInput());
  for (StringRef name : axisNames(op.getOver()))
    if (failed(checkAlong(type, name, op.getWhere(), emit)))
      return failure();
  if (failed(requireSubset(type, typeOf(op.getProtect()), emit)))
    return failure();
  out.push_back(type.withElement(IntegerType::get(context, 64)));
  return success();
}

INFER(RenameOp) {
  auto emit = emitter(location, "rename");
  auto type = typeOf(op.getInput());
  AxisAttr a = requireAxis(type, op.getFrom(), emit);
  if (!a || failed(checkNew(type, op.getTo(), emit)))
    return failure();
  out.push_back(replaceAxis(type, op.getFrom(), {a.withName(op.getTo())}));
  return success();
}

INFER(PartitionOp) {
  auto emit = emitter(location, "partition");
  auto type = typeOf(op.getInput());
  AxisAttr a = requireAxis(type, op.getAxis(), emit);
  if (!a)
    return failure();
  auto rest = type.without({op.getAxis()});
  if (failed(checkNew(rest, "part", emit)) || failed(checkNew(rest, "slot", emit)))
    return failure();
  out.push_back(replaceAxis(type, op.getAxis(),
                            {axis(context, "part", AxisAttr::kDynamic, a.getState()),
                             axis(context, "slot", op.getSize(), a.getState())}));
  return success();
}

INFER(JoinOp) {
  auto emit = emitter(location, "join");
  auto type = typeOf(op.getInput());
  AxisAttr part = requireAxis(type, "part", emit), slot = requireAxis(type, "slot", emit);
  AxisAttr a = requireAxis(typeOf(op.getLike()), op.getAxis(), emit);
  if (!part || !slot || !a)
    return failure();
  if (slot.getExtent() != static_cast<int64_t>(op.getSize()) || part.getState() != a.getState())
    return emit() << "undoes another partition: " << type << " is not of size " << op.getSize();
  out.push_back(replaceAxis(type.without({"slot"}), "part", {a}));
  return success();
}

INFER(AtOp) {
  auto emit = emitter(location, "at");
  auto type = typeOf(op.getInput());
  if (!requireAxis(type, op.getAxis(), emit))
    return failure();
  Type index = op.getIndex().getType();
  if (kindOf(index) != Kind::Int)
    return emit() << "an index is i64, not " << index;
  auto rest = type.without({op.getAxis()});
  SmallVector<AxisAttr> axes(rest.getAxes());
  if (auto tensor = dyn_cast<NamedTensorType>(index)) {
    auto united = uniteAxes(axes, tensor.getAxes(), emit);
    if (failed(united))
      return failure();
    axes = *united;
  }
  out.push_back(NamedTensorType::get(context, axes, type.getElementType()));
  return success();
}

static Type nextState(Value cache) {
  auto type = cast<CacheType>(cache.getType());
  return CacheType::get(type.getContext(), type.getState() + 1);
}

INFER(TopkOp) {
  (void)context, (void)location;
  out.push_back(nextState(op.getCache()));
  return success();
}

INFER(MaskOp) {
  (void)context, (void)location;
  out.push_back(nextState(op.getCache()));
  return success();
}
