//===- EvaluateInputs.cpp - what the host gives, contractions, random numbers -----------------===//
#include "lib/Frontend/Evaluator.h"

#include "llvm/ADT/StringSwitch.h"

using namespace kvpc;
using kvp::Fn;
using llvm::StringRef;

//===------------------------------------------------------------------------------------------===//
// Inputs
//===------------------------------------------------------------------------------------------===//

Tensor Evaluator::input(kvp::Input kind, mlir::Value cache, std::optional<int64_t> last,
                        mlir::Location loc) {
  llvm::SmallVector<mlir::NamedAttribute> attributes{
      emitter.named("input", kvp::InputAttr::get(emitter.getContext(), kind))};
  if (last)
    attributes.push_back(emitter.integer("last", *last));
  Tensor out;
  out.value = emitter.create<kvp::InputOp>(loc, cache, attributes);
  out.input = Tensor::Input{kind, cache, last.has_value()};
  bool keysChannels = kind == kvp::Input::Keys || kind == kvp::Input::Queries;
  if (keysChannels && current.last("channel"))
    out.thinned.push_back("channel");
  return out;
}

Value Evaluator::hostValue(const NameExpr &name) {
  StringRef text = name.name.text;
  mlir::Location loc = at(name);
  using kvp::Dim;
  using kvp::Input;
  if (text == "keys")
    return input(Input::Keys, current.cache, std::nullopt, loc);
  if (text == "values")
    return input(Input::Values, current.cache, std::nullopt, loc);
  if (text == "queries")
    return input(Input::Queries, current.cache, std::nullopt, loc);
  if (text == "output_weight")
    return input(Input::Output_weight, current.cache, std::nullopt, loc);
  if (text == "hidden") {
    notImplemented(name.loc(), "`hidden`");
    return input(Input::Hidden, current.cache, std::nullopt, loc);
  }
  if (text == "position" || text == "original_position") {
    Tensor out;
    llvm::SmallVector<mlir::NamedAttribute> attributes;
    if (text != "position")
      attributes.push_back(emitter.unit("original"));
    out.value = placesOfHeads(emitter.create<kvp::PositionOp>(loc, current.cache, attributes), loc);
    return out;
  }
  auto which = llvm::StringSwitch<std::optional<Dim>>(text)
                   .Case("length", Dim::Length)
                   .Case("seen", Dim::Seen)
                   .Case("layer", Dim::Layer)
                   .Case("layers", Dim::Layers)
                   .Case("heads", Dim::Heads)
                   .Case("groups", Dim::Groups)
                   .Case("channels", Dim::Channels)
                   .Default(std::nullopt);
  if (which)
    return dim(*which, loc);
  return Poison();
}

Value Evaluator::evaluateLast(const CallExpr &call, const Arguments &args, Env &env) {
  Value value = evaluate(*args.values[0], env);
  auto count = staticInt(*args.values[1], env, call, "count", 1);
  if (value.isPoison() || !count)
    return Poison();
  auto *tensor = value.as<Tensor>();
  bool queries = tensor && tensor->input && !tensor->input->last &&
                 (tensor->input->kind == kvp::Input::Queries ||
                  tensor->input->kind == kvp::Input::Unrotated_queries);
  if (!queries) {
    error(call.callee.loc(), Diag::LastQueries, shown(*args.values[0]));
    return Poison();
  }
  return input(tensor->input->kind, tensor->input->cache, count, at(call.callee.loc()));
}

Value Evaluator::evaluateUnrotated(const CallExpr &call, const Arguments &args, Env &env) {
  Value value = evaluate(*args.values[0], env);
  if (value.isPoison())
    return Poison();
  auto *tensor = value.as<Tensor>();
  using kvp::Input;
  bool known = tensor && tensor->input &&
               (tensor->input->kind == Input::Queries || tensor->input->kind == Input::Keys);
  if (!known) {
    error(call.callee.loc(), Diag::UnrotatedInput, shown(*args.values[0]));
    return Poison();
  }
  if (const Selection *by = current.last("channel")) {
    error(call.loc(), Diag::ChannelsGone, call.text(), by->name)
        .note(by->loc, "put `" + by->name + "` last");
    return Poison();
  }
  std::optional<int64_t> last;
  if (tensor->input->last)
    last = tensor->type().getAxis("query").getExtent();
  bool keys = tensor->input->kind == Input::Keys;
  return input(keys ? Input::Unrotated_keys : Input::Unrotated_queries, tensor->input->cache, last,
               at(call.callee.loc()));
}

//===------------------------------------------------------------------------------------------===//
// Contractions
//===------------------------------------------------------------------------------------------===//

std::optional<Tensor> Evaluator::dot(const Operand &a, const Operand &b, StringRef axis,
                                     llvm::SMLoc loc) {
  mlir::Location where = diagnostics.location(loc);
  Tensor out;
  if (!unite({a, b}, loc, out))
    return std::nullopt;
  Tensor x = toFloat(*a.value.as<Tensor>(), where), y = toFloat(*b.value.as<Tensor>(), where);
  out.value = emitter.create<kvp::DotOp>(where, {x.value, y.value}, emitter.string("over", axis));
  if (!out.value)
    return std::nullopt;
  if (out.has("head"))
    out.repeated = false;
  out.forgetAxes();
  return out;
}

Value Evaluator::evaluateDot(const CallExpr &call, bool cosine, const Arguments &args, Env &env) {
  StringRef op = call.callee.text;
  auto x = tensorOperand(*args.values[0], env, op, false);
  auto y = tensorOperand(*args.values[1], env, op, false);
  Name axis = args.axes.front();
  if (!x || !y || refuseProtected(*x, call) || refuseProtected(*y, call))
    return Poison();
  mlir::Location loc = at(call.callee.loc());
  if (axis.text == "head") {
    *x = materialize(*x, loc);
    *y = materialize(*y, loc);
  }
  if (!hasAxis(*x, axis, *args.values[0]) || !hasAxis(*y, axis, *args.values[1]) ||
      refuseMisaligned(*x, call, axis, {}) || refuseMisaligned(*y, call, axis, {}))
    return Poison();
  auto out = dot({args.values[0], *x}, {args.values[1], *y}, axis.text, call.callee.loc());
  if (!out)
    return Poison();
  if (cosine) {
    // a·b / (|a| |b|), and 0 where one of the two has no direction.
    auto norm = [&](const Tensor &t) {
      return emitter.reduce(loc, kvp::Reduction::Norm, t.value, axis.text);
    };
    mlir::Value norms = mapTensor(Fn::Mul, {norm(*x), norm(*y)}, loc);
    mlir::Value zero = emitter.constant(loc, Number::of(0.0));
    out->value = mapTensor(
        Fn::Where,
        {mapTensor(Fn::Eq, {norms, zero}, loc), zero, mapTensor(Fn::Div, {out->value, norms}, loc)},
        loc);
  }
  return *out;
}

/// Where a query may see an entry, over axes of the logits; null where they have no query.
mlir::Value Evaluator::causal(const Tensor &logits, mlir::Location loc) {
  kvp::AxisAttr query = logits.type().getAxis("query");
  if (!query)
    return {};
  llvm::SmallVector<mlir::NamedAttribute> attributes;
  if (query.isStatic())
    attributes.push_back(emitter.integer("last", query.getExtent()));
  mlir::Value seen = emitter.create<kvp::CausalOp>(loc, current.cache, attributes);
  // Keys averaged over heads: no selection before was per head, so all heads agree.
  auto type = llvm::cast<kvp::NamedTensorType>(seen.getType());
  if (type.hasAxis("head") && !logits.has("head"))
    seen = emitter.reduce(loc, kvp::Reduction::Any, seen, {"head"});
  return seen;
}

Value Evaluator::evaluateAttention(const CallExpr &call, bool softmax, const Arguments &args,
                                   Env &env) {
  StringRef op = call.callee.text;
  auto q = tensorOperand(*args.values[0], env, op, false);
  auto k = tensorOperand(*args.values[1], env, op, false);
  if (!q || !k || refuseProtected(*q, call) || refuseProtected(*k, call))
    return Poison();
  auto need = [&](const Tensor &t, const Expr *e, StringRef axis) {
    if (t.has(axis))
      return true;
    error(e->loc(), Diag::AxisMissing, op, axis, shown(*e), axesText(t));
    return false;
  };
  if (!need(*q, args.values[0], "channel") || !need(*k, args.values[1], "channel") ||
      !need(*k, args.values[1], "token") ||
      !namedRight(*k, "token", args.values[1]->loc(), shown(*args.values[1])) ||
      !namedRight(*q, "query", args.values[0]->loc(), shown(*args.values[0])))
    return Poison();
  auto out = dot({args.values[0], *q}, {args.values[1], *k}, "channel", call.callee.loc());
  if (!out)
    return Poison();
  mlir::Location loc = at(call.callee.loc());
  out->value =
      mapTensor(Fn::Mul, {out->value, emitter.createAs<kvp::ScaleOp>(loc, emitter.f64(), {})}, loc);
  Where where = whereOf(args.values[2], *out, call, "token", env);
  if (where.failed)
    return Poison();
  mlir::Value admitted = causal(*out, loc);
  // Which entries a query may see is what the heads know that hold them.
  if (StringRef heads = headsOf(*out, "token"); admitted && heads != "head" && out->has(heads))
    if (llvm::cast<kvp::NamedTensorType>(admitted.getType()).hasAxis("head"))
      admitted = emitter.create<kvp::RenameOp>(
          loc, admitted, {emitter.string("from", "head"), emitter.string("to", heads)});
  if (where.condition)
    admitted = admitted ? mapTensor(Fn::And, {admitted, where.condition}, loc) : where.condition;
  if (softmax) {
    llvm::SmallVector<mlir::Value> operands{out->value};
    if (admitted)
      operands.push_back(admitted);
    out->value = emitter.create<kvp::SoftmaxOp>(loc, operands, emitter.string("axis", "token"));
  } else if (admitted) {
    double low = -std::numeric_limits<double>::infinity();
    out->value =
        mapTensor(Fn::Where, {admitted, out->value, emitter.constant(loc, Number::of(low))}, loc);
  }
  return out->value ? Value(*out) : Poison();
}

Value Evaluator::evaluateRotate(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "rotate", false);
  Operand by{args.values[1], evaluate(*args.values[1], env)};
  if (!x || by.value.isPoison() || refuseProtected(*x, call))
    return Poison();
  auto *host = by.value.as<Host>();
  auto *positions = by.value.as<Tensor>();
  bool whole = host ? host->element == Element::Int
                    : positions && positions->element() == Element::Int && !positions->protect &&
                          !positions->has("channel");
  if (!whole)
    return typeError(*args.values[1], "`by` of `rotate`",
                     "a position or a tensor of them, integers without `channel`", by.value);
  if (!x->has("channel")) {
    error(args.values[0]->loc(), Diag::AxisMissing, "rotate", "channel", shown(*args.values[0]),
          axesText(*x));
    return Poison();
  }
  if (x->isThinned("channel")) {
    const Selection *selection = current.last("channel");
    error(call.callee.loc(), Diag::ChannelsGone, "rotate", selection->name)
        .note(selection->loc, "put `" + selection->name + "` last");
    return Poison();
  }
  mlir::Location loc = at(call.callee.loc());
  Tensor out;
  if (!namedRight(*x, "channel", args.values[0]->loc(), shown(*args.values[0])) ||
      !unite({{args.values[0], *x}, by}, call.callee.loc(), out))
    return Poison();
  out.value = emitter.create<kvp::RotateOp>(
      loc, {toFloat(*x, loc).value, host ? get(*host, loc) : positions->value});
  if (!out.value)
    return Poison();
  if (out.has("head"))
    out.repeated = false;
  return out;
}

Value Evaluator::evaluateMatrix(const CallExpr &call, BuiltinId id, const Arguments &args,
                                Env &env) {
  StringRef op = call.callee.text;
  notImplemented(call.callee.loc(), "`" + op + "`");
  mlir::Location loc = at(call.callee.loc());
  mlir::Type f32 = emitter.attributes().getF32Type();
  auto make = [&](llvm::ArrayRef<kvp::AxisAttr> axes) {
    Tensor out;
    out.value =
        emitter.placeholder(loc, kvp::NamedTensorType::get(emitter.getContext(), axes, f32));
    return out;
  };
  if (id == BuiltinId::Eye) {
    StringRef name = args.axes.front().text;
    kvp::AxisAttr a =
        axisAttr(name, kvp::AxisAttr::kDynamic, kvp::isCacheAxis(name) ? current.number() : 0);
    // The extent is that of the values it meets.
    Tensor out = make({a, a.withName((name + "'").str())});
    if (name == "channel" && current.last("channel"))
      out.thinned = {"channel", "channel'"};
    return out;
  }
  auto m = tensorOperand(*args.values[0], env, op, false);
  if (!m)
    return Poison();
  StringRef axis;
  for (kvp::AxisAttr a : m->type().getAxes())
    if (m->has((a.getName() + "'").str()))
      axis = a.getName();
  if (axis.empty()) {
    error(args.values[0]->loc(), Diag::MatrixAxes, op, shown(*args.values[0]), axesText(*m));
    return Poison();
  }
  if (id == BuiltinId::Inverse)
    return *m;
  auto x = tensorOperand(*args.values[1], env, op, false);
  if (!x || !hasAxis(*x, {axis}, *args.values[1]))
    return Poison();
  Tensor out;
  if (!unite({{args.values[0], *m}, {args.values[1], *x}}, call.callee.loc(), out))
    return Poison();
  auto axes = kvp::uniteAxes(x->type().getAxes(), m->type().getAxes());
  llvm::erase_if(*axes, [&](kvp::AxisAttr a) { return a.getName() == (axis + "'").str(); });
  out.value = make(*axes).value;
  return out;
}

//===------------------------------------------------------------------------------------------===//
// Random numbers
//===------------------------------------------------------------------------------------------===//

Value Evaluator::evaluateRandom(const CallExpr &call, bool gaussian, const Arguments &args,
                                Env &env) {
  Value seed = evaluate(*args.values[0], env);
  if (seed.isPoison())
    return Poison();
  auto *host = seed.as<Host>();
  if (!host || host->element != Element::Int)
    return typeError(*args.values[0], "`seed`", "an integer of the host", seed);
  llvm::SmallVector<kvp::AxisAttr> axes;
  llvm::SmallVector<mlir::Attribute> attributes;
  bool gone = false;
  for (const AxesExpr::Item &item : llvm::cast<AxesExpr>(args.values[1])->items) {
    StringRef name = item.axis.text;
    if (llvm::any_of(axes, [&](kvp::AxisAttr a) { return a.getName() == name; })) {
      error(item.axis.loc(), Diag::AxisTwice, name);
      return Poison();
    }
    bool drawn =
        name == "head" || name == "token" || name == "channel" || (name == "gone" && beforeUpdate);
    int64_t extent = kvp::AxisAttr::kDynamic;
    if (item.size && (drawn || isKnownAxis(name))) {
      error(item.axis.loc(), Diag::AxisSized, name);
      return Poison();
    }
    if (!item.size && !drawn) {
      error(item.axis.loc(), Diag::AxisUnsized, name);
      return Poison();
    }
    if (item.size) {
      auto size = staticInt(*item.size, env, call, name, 1);
      if (!size)
        return Poison();
      extent = *size;
    }
    gone |= name == "gone";
    axes.push_back(axisAttr(name, extent, kvp::isCacheAxis(name) ? current.number() : 0));
    attributes.push_back(axes.back());
  }
  // Without `head` a number is for all heads: they must mean the same by it.
  auto has = [&](StringRef name) {
    return llvm::any_of(axes, [&](kvp::AxisAttr a) { return a.getName() == name; });
  };
  for (StringRef name : {"token", "channel"})
    if (const Selection *by = has(name) && !has("head") ? current.misaligned(name) : nullptr) {
      error(call.callee.loc(), Diag::HeadMisaligned, call.callee.text, name, "number",
            name == "token" ? "tokens" : "channels", by->by)
          .note(by->loc, "each head chooses for itself here");
      return Poison();
    }
  mlir::Location loc = at(call.callee.loc());
  Tensor out;
  if (gaussian || gone) {
    notImplemented(call.callee.loc(), gaussian ? "`gaussian`" : "`uniform` over these axes");
    out.value =
        emitter.placeholder(loc, kvp::NamedTensorType::get(emitter.getContext(), axes,
                                                           emitter.attributes().getF32Type()));
    return out;
  }
  out.value = emitter.create<kvp::UniformOp>(
      loc, {current.cache, get(*host, loc)},
      emitter.named("axes", emitter.attributes().getArrayAttr(attributes)));
  if (out.value && out.has("channel") && current.last("channel"))
    out.thinned.push_back("channel");
  return out.value ? Value(out) : Poison();
}

/// The value of the entries that the selection before `update` dropped.
Value Evaluator::evaluateDropped(const CallExpr &call, const Arguments &args, Env &env) {
  if (!beforeUpdate) {
    error(call.callee.loc(), Diag::DroppedOutside);
    return Poison();
  }
  notImplemented(call.callee.loc(), "`dropped`");
  CacheState after = std::exchange(current, *beforeUpdate);
  beforeUpdate.reset();
  insideDropped = true;
  auto x = tensorOperand(*args.values[0], env, "dropped");
  insideDropped = false;
  beforeUpdate = std::exchange(current, std::move(after));
  if (!x)
    return Poison();
  if (!x->has("token")) {
    error(args.values[0]->loc(), Diag::AxisMissing, "dropped", "token", shown(*args.values[0]),
          axesText(*x));
    return Poison();
  }
  llvm::SmallVector<kvp::AxisAttr> axes;
  for (kvp::AxisAttr a : x->type().getAxes())
    axes.push_back(a.getName() == "token" ? axisAttr("gone", kvp::AxisAttr::kDynamic, 0)
                   : kvp::isCacheAxis(a.getName())
                       ? axisAttr(a.getName(), a.getExtent(), current.number())
                       : a);
  Tensor out;
  out.value = emitter.placeholder(
      at(call), kvp::NamedTensorType::get(emitter.getContext(), axes, x->type().getElementType()),
      x->value);
  return out;
}
