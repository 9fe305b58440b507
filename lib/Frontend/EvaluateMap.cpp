//===- EvaluateMap.cpp - element-wise functions, and how tensors meet -------------------------===//
#include "lib/Frontend/Evaluator.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/StringSwitch.h"

using namespace kvpc;
using kvp::Fn;
using llvm::StringRef;

//===------------------------------------------------------------------------------------------===//
// How tensors meet
//===------------------------------------------------------------------------------------------===//

static std::string extentText(kvp::AxisAttr axis) {
  if (axis.isStatic())
    return std::to_string(axis.getExtent()) + " entries";
  return axis.getName() == "query" ? "all of the pass" : "as many as the call says";
}

static std::string extentText(const Tensor &tensor, StringRef name) {
  if (const Tensor::Renamed *r = tensor.findRenamed(name); r && r->entries != name)
    return "the entries of `" + r->entries + "`";
  return extentText(tensor.type().getAxis(name));
}

/// Whether the axis is of something that is not implemented, as long there as in what it meets.
static bool isPlaceholder(mlir::Value value, StringRef axis) {
  llvm::SetVector<mlir::Value> from;
  from.insert(value);
  for (size_t i = 0; i < from.size(); ++i) {
    auto type = llvm::dyn_cast<kvp::NamedTensorType>(from[i].getType());
    mlir::Operation *op = from[i].getDefiningOp();
    if (!op || !type || !type.hasAxis(axis))
      continue;
    if (llvm::isa<mlir::UnrealizedConversionCastOp>(op))
      return true;
    from.insert_range(op->getOperands());
  }
  return false;
}

static bool countsTokens(StringRef entries) {
  return entries == "token" || entries == "part" || entries == "slot";
}

StringRef Evaluator::headsOf(const Tensor &tensor, StringRef axis) const {
  if (const Tensor::Renamed *r = tensor.findRenamed(axis))
    return r->heads;
  if (countsTokens(tensor.entriesOf(axis)))
    return current.misaligned("token") ? "head" : "";
  return tensor.isThinned(axis) && current.misaligned("channel") ? "head" : "";
}

bool Evaluator::namedRight(const Tensor &tensor, StringRef axis, llvm::SMLoc loc,
                           const std::string &subject) {
  const Tensor::Renamed *r = tensor.findRenamed(axis);
  if (!r || r->entries == axis)
    return true;
  error(loc, Diag::AxisRenamed, axis, subject, r->entries);
  return false;
}

bool Evaluator::compatible(const Operand &a, const Operand &b, llvm::SMLoc loc) {
  auto *x = a.value.as<Tensor>(), *y = b.value.as<Tensor>();
  if (!x || !y)
    return true;
  for (kvp::AxisAttr axis : x->type().getAxes()) {
    StringRef name = axis.getName();
    kvp::AxisAttr other = y->type().getAxis(name);
    if (!other)
      continue;
    if (x->entriesOf(name) != y->entriesOf(name)) {
      error(loc, Diag::Extent, name, extentText(*x, name), shown(*a.expr), extentText(*y, name),
            shown(*b.expr));
      return false;
    }
    // A value without heads is the same for all of them, whatever each holds.
    StringRef heads = headsOf(*x, name), others = headsOf(*y, name);
    if (heads != others && x->has(heads) && y->has(others)) {
      bool token = countsTokens(x->entriesOf(name));
      const Selection *by = current.misaligned(token ? "token" : "channel");
      error(loc, Diag::HeadsMeet, shown(*a.expr), shown(*b.expr), token ? "tokens" : "channels",
            name, by ? by->by : "topk")
          .note(by ? by->loc : loc, "each head chooses for itself here");
      return false;
    }
    if (axis.getState() != other.getState()) {
      error(loc, Diag::MixedStates, name, shown(*a.expr), shown(*b.expr));
      return false;
    }
    // All queries of a pass and the last few are not the same queries, whatever their number.
    bool differ =
        axis.isStatic() != other.isStatic()
            ? name == "query" || !isPlaceholder(axis.isStatic() ? y->value : x->value, name)
            : axis.getExtent() != other.getExtent();
    if (differ) {
      error(loc, Diag::Extent, name, extentText(axis), shown(*a.expr), extentText(other),
            shown(*b.expr));
      return false;
    }
    if (x->isThinned(name) != y->isThinned(name)) {
      const Operand &whole = x->isThinned(name) ? b : a;
      const Selection *by = current.last("channel");
      error(loc, Diag::ChannelsDiffer, shown(*whole.expr), shown(*(&whole == &a ? b : a).expr),
            by ? by->name : "a selection")
          .note(by ? by->loc : loc, "channels went here");
      return false;
    }
  }
  if (x->part && y->part && !(*x->part == *y->part) && (x->has("part") || x->has("slot")) &&
      (y->has("part") || y->has("slot"))) {
    error(loc, Diag::PartMismatch, shown(*a.expr), shown(*b.expr));
    return false;
  }
  return true;
}

bool Evaluator::unite(llvm::ArrayRef<Operand> operands, llvm::SMLoc loc, Tensor &out) {
  for (size_t i = 0; i < operands.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (!compatible(operands[j], operands[i], loc))
        return false;
  for (const Operand &o : operands) {
    auto *t = o.value.as<Tensor>();
    if (!t)
      continue;
    out.repeated |= t->repeated;
    if (!out.part && (t->has("part") || t->has("slot")))
      out.part = t->part;
    for (const std::string &axis : t->thinned)
      if (!out.isThinned(axis))
        out.thinned.push_back(axis);
    for (const Tensor::Renamed &r : t->renamed)
      if (!out.findRenamed(r.name))
        out.renamed.push_back(r);
    if (!out.protectedAt.isValid())
      out.protectedAt = t->protectedAt;
  }
  for (Tensor::Renamed &r : out.renamed)
    for (const Operand &o : operands) {
      auto *t = o.value.as<Tensor>();
      if (StringRef heads = t && t->has(r.name) ? headsOf(*t, r.name) : ""; t && t->has(heads))
        r.heads = heads.str();
    }
  return true;
}

//===------------------------------------------------------------------------------------------===//
// Small values
//===------------------------------------------------------------------------------------------===//

Tensor Evaluator::toFloat(Tensor tensor, mlir::Location loc) {
  if (tensor.element() != Element::Float)
    tensor.value = mapTensor(Fn::Float, tensor.value, loc);
  return tensor;
}

mlir::Value Evaluator::orNull(mlir::Value a, mlir::Value b, mlir::Location loc) {
  if (!a || !b || a == b)
    return a ? a : b;
  return mapTensor(Fn::Or, {a, b}, loc);
}

mlir::Value Evaluator::always(mlir::Value like, StringRef axis, mlir::Location loc) {
  auto index = emitter.create<kvp::IndexOp>(loc, like, emitter.string("axis", axis));
  return mapTensor(Fn::Le, {emitter.constant(loc, Number::of(int64_t(0))), index}, loc);
}

mlir::Value Evaluator::placesOfHeads(mlir::Value places, mlir::Location loc) {
  if (!places || !current.ragged())
    return places;
  auto type = llvm::cast<kvp::NamedTensorType>(places.getType());
  if (type.hasAxis("head") || llvm::none_of(type.getAxes(), kvp::isEntryAxis))
    return places;
  Tensor keys = input(kvp::Input::Keys, current.cache, std::nullopt, loc);
  return mapTensor(Fn::Where, {always(keys.value, "head", loc), places, places}, loc);
}

mlir::Value Evaluator::spread(const Host &host, mlir::Value like, StringRef axis,
                              mlir::Location loc) {
  mlir::Value scalar = get(host, loc);
  return mapTensor(Fn::Where, {always(like, axis, loc), scalar, scalar}, loc);
}

Tensor Evaluator::broadcast(Tensor tensor, mlir::Value other, mlir::Location loc) {
  // where(c, x, x) is x over the axes of c as well.
  tensor.value = mapTensor(Fn::Where, {other, tensor.value, tensor.value}, loc);
  tensor.input.reset();
  if (tensor.has("head"))
    tensor.repeated = false;
  return tensor;
}

Tensor Evaluator::materialize(Tensor tensor, mlir::Location loc) {
  if (!tensor.repeated)
    return tensor;
  Tensor keys = input(kvp::Input::Keys, current.cache, std::nullopt, loc);
  return broadcast(std::move(tensor), always(keys.value, "head", loc), loc);
}

//===------------------------------------------------------------------------------------------===//
// Element-wise functions
//===------------------------------------------------------------------------------------------===//

static std::optional<Element> elementIn(const Value &value) {
  if (auto *host = value.as<Host>())
    return host->element;
  if (auto *tensor = value.as<Tensor>())
    return tensor->element();
  return std::nullopt;
}

/// What each operand of a function must be: true for a condition, nothing for either.
static std::optional<bool> wantsCondition(Fn fn, size_t operand) {
  switch (fn) {
  case Fn::And:
  case Fn::Or:
  case Fn::Not:
    return true;
  case Fn::Where:
    return operand == 0 ? std::optional(true) : std::nullopt;
  case Fn::Eq:
  case Fn::Ne:
  case Fn::Float:
    return std::nullopt;
  default:
    return false;
  }
}

Value Evaluator::mapValues(Fn fn, llvm::ArrayRef<Operand> operands, llvm::SMLoc loc, StringRef op) {
  std::string quoted = "`" + op.str() + "`";
  for (const Operand &o : operands)
    if (o.value.isPoison())
      return Poison();
  for (auto [i, o] : llvm::enumerate(operands)) {
    auto element = elementIn(o.value);
    auto wants = wantsCondition(fn, i);
    if (!element || (wants && *wants != (*element == Element::Bool)))
      return typeError(*o.expr, quoted, wants && *wants ? "conditions" : "numbers", o.value);
  }
  // The branches of where, the sides of == and !=.
  if (fn == Fn::Where || fn == Fn::Eq || fn == Fn::Ne) {
    const Operand &a = operands[operands.size() - 2], &b = operands.back();
    bool first = *elementIn(a.value) == Element::Bool;
    if (first != (*elementIn(b.value) == Element::Bool))
      return typeError(*b.expr, quoted, first ? "two conditions" : "two numbers", b.value);
  }
  if (llvm::all_of(operands, [](const Operand &o) { return o.value.as<Host>(); }))
    return mapHost(
        fn, llvm::map_to_vector(operands, [](const Operand &o) { return *o.value.as<Host>(); }),
        diagnostics.location(loc));
  Tensor out;
  if (!unite(operands, loc, out))
    return Poison();
  mlir::Location at = diagnostics.location(loc);
  llvm::SmallVector<mlir::Value> values;
  for (const Operand &o : operands)
    values.push_back(o.value.as<Tensor>() ? o.value.as<Tensor>()->value
                                          : get(*o.value.as<Host>(), at));
  if (!compareProtected(fn, operands, out, at)) {
    out.value = mapTensor(fn, values, at);
    if (out.value) {
      protectResult(fn, operands, out, at);
      out.layers = layersOfMap(fn, operands, out.value, at);
    }
  }
  if (!out.value)
    return Poison();
  if (out.has("head"))
    out.repeated = false;
  return out;
}

static mlir::Value protectOf(const Value &value) {
  auto *tensor = value.as<Tensor>();
  return tensor ? tensor->protect : mlir::Value();
}

/// Arithmetic keeps protection, of two scores the union; `where` takes that of the chosen side.
void Evaluator::protectResult(Fn fn, llvm::ArrayRef<Operand> operands, Tensor &out,
                              mlir::Location loc) {
  if (fn != Fn::Where) {
    for (const Operand &o : operands)
      out.protect = orNull(out.protect, protectOf(o.value), loc);
    return;
  }
  mlir::Value then = protectOf(operands[1].value), otherwise = protectOf(operands[2].value);
  if (!then && !otherwise)
    return;
  auto *condition = operands[0].value.as<Tensor>();
  mlir::Value c = condition ? condition->value : get(*operands[0].value.as<Host>(), loc);
  if (then)
    then = mapTensor(Fn::And, {c, then}, loc);
  if (otherwise)
    otherwise = mapTensor(Fn::And, {mapTensor(Fn::Not, c, loc), otherwise}, loc);
  out.protect = orNull(then, otherwise, loc);
}

/// A protected entry is above every number; two of them compare by their scores.
bool Evaluator::compareProtected(Fn fn, llvm::ArrayRef<Operand> operands, Tensor &out,
                                 mlir::Location loc) {
  if (fn != Fn::Lt && fn != Fn::Le && fn != Fn::Eq && fn != Fn::Ne)
    return false;
  mlir::Value p = protectOf(operands[0].value), q = protectOf(operands[1].value);
  if (!p && !q)
    return false;
  auto raw = [&](const Operand &o) {
    return o.value.as<Tensor>() ? o.value.as<Tensor>()->value : get(*o.value.as<Host>(), loc);
  };
  mlir::Value plain = mapTensor(fn, {raw(operands[0]), raw(operands[1])}, loc);
  auto negate = [&](mlir::Value v) { return mapTensor(Fn::Not, v, loc); };
  if (p && q) {
    mlir::Value same = mapTensor(Fn::Eq, {p, q}, loc);
    mlir::Value apart = fn == Fn::Eq   ? negate(same) // false where they are apart
                        : fn == Fn::Ne ? negate(same) // true there
                                       : q;
    if (fn == Fn::Eq)
      out.value = mapTensor(Fn::And, {same, plain}, loc);
    else if (fn == Fn::Ne)
      out.value = mapTensor(Fn::Or, {apart, plain}, loc);
    else
      out.value = mapTensor(Fn::Where, {same, plain, apart}, loc);
  } else if (fn == Fn::Ne || ((fn == Fn::Lt || fn == Fn::Le) && q)) {
    out.value = mapTensor(Fn::Or, {p ? p : q, plain}, loc);
  } else {
    out.value = mapTensor(Fn::And, {negate(p ? p : q), plain}, loc);
  }
  return true;
}

//===------------------------------------------------------------------------------------------===//
// Operators and calls
//===------------------------------------------------------------------------------------------===//

Value Evaluator::evaluateUnary(const UnaryExpr &unary, Env &env) {
  Operand operand{unary.operand, evaluate(*unary.operand, env)};
  return mapValues(unary.op.text == "-" ? Fn::Neg : Fn::Not, operand, unary.loc(), unary.op.text);
}

Value Evaluator::evaluateBinary(const BinaryExpr &binary, Env &env) {
  StringRef op = binary.op.text;
  Operand a{binary.lhs, evaluate(*binary.lhs, env)};
  Operand b{binary.rhs, evaluate(*binary.rhs, env)};
  if (op == ">" || op == ">=")
    std::swap(a, b);
  Fn fn = llvm::StringSwitch<Fn>(op)
              .Case("+", Fn::Add)
              .Case("-", Fn::Sub)
              .Case("*", Fn::Mul)
              .Case("/", Fn::Div)
              .Case("%", Fn::Mod)
              .Case("**", Fn::Pow)
              .Cases({"<", ">"}, Fn::Lt)
              .Cases({"<=", ">="}, Fn::Le)
              .Case("==", Fn::Eq)
              .Case("!=", Fn::Ne)
              .Case("and", Fn::And)
              .Default(Fn::Or);
  return mapValues(fn, {a, b}, binary.op.loc(), op);
}

Value Evaluator::evaluateElementwise(const CallExpr &call, Fn fn, const Arguments &args, Env &env) {
  llvm::SmallVector<Operand, 1> operands;
  for (const Expr *e : args.values)
    operands.push_back({e, evaluate(*e, env)});
  return mapValues(fn, operands, call.callee.loc(), call.callee.text);
}

Value Evaluator::evaluateClamp(const CallExpr &call, const Arguments &args, Env &env) {
  llvm::SMLoc loc = call.callee.loc();
  Operand x{args.values[0], evaluate(*args.values[0], env)};
  Operand low{args.values[1], evaluate(*args.values[1], env)};
  Operand high{args.values[2], evaluate(*args.values[2], env)};
  Operand raised{args.values[0], mapValues(Fn::Maximum, {x, low}, loc, "clamp")};
  return mapValues(Fn::Minimum, {raised, high}, loc, "clamp");
}

/// A condition that is known chooses a side, and the other is not evaluated.
Value Evaluator::evaluateWhere(const CallExpr &call, const Arguments &args, Env &env) {
  Operand condition{args.values[0], evaluate(*args.values[0], env)};
  auto *host = condition.value.as<Host>();
  if (host && host->element == Element::Bool && host->known)
    return evaluate(*args.values[host->known->truth() ? 1 : 2], env);
  Operand then{args.values[1], evaluate(*args.values[1], env)};
  Operand otherwise{args.values[2], evaluate(*args.values[2], env)};
  return mapValues(Fn::Where, {condition, then, otherwise}, call.callee.loc(), "where");
}
