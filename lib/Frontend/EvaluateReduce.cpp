//===- EvaluateReduce.cpp - reductions and operations along an axis ---------------------------===//
#include "lib/Frontend/Evaluator.h"

#include "llvm/ADT/StringSwitch.h"

using namespace kvpc;
using kvp::Fn;
using kvp::Reduction;
using llvm::StringRef;

/// Hidden axes may be reduced, but no tensor shows them.
static bool isHidden(StringRef axis) { return axis == "layer" || axis == "step"; }

/// Whether a value is known for all layers, and is asked for as it is.
static bool ofAllLayers(const Tensor &x, const Arguments &args) {
  return x.allLayers() && !x.protect && !args.values.back();
}

std::optional<Tensor> Evaluator::tensorOperand(const Expr &expr, Env &env, StringRef op,
                                               std::optional<bool> wantBool) {
  Value value = evaluate(expr, env);
  if (value.isPoison())
    return std::nullopt;
  auto *tensor = value.as<Tensor>();
  std::string quoted = "`" + op.str() + "`";
  if (auto *host = value.as<Host>(); host && host->perLayer) {
    notImplemented(expr.loc(), quoted + " of what is over `layer` alone");
    return std::nullopt;
  }
  bool isBool = tensor && tensor->element() == Element::Bool;
  if (!tensor || (wantBool && *wantBool != isBool)) {
    typeError(expr, quoted,
              wantBool && *wantBool ? "a tensor of conditions" : "a tensor of numbers", value);
    return std::nullopt;
  }
  return *tensor;
}

bool Evaluator::hasAxis(const Tensor &tensor, Name axis, const Expr &expr) {
  if (tensor.has(axis.text) || (axis.text == "head" && tensor.repeated))
    return true;
  std::string axes = axesText(tensor);
  auto report =
      error(axis.loc(), Diag::AxisUnknown, axis.text, shown(expr), axes.empty() ? "no axes" : axes);
  llvm::SmallVector<StringRef> names;
  for (kvp::AxisAttr a : tensor.type().getAxes())
    names.push_back(a.getName());
  if (axis.text == "batch")
    report.note(axis.loc(), "a program is about one row of the batch");
  else if (StringRef near = nearest(axis.text, names); !near.empty())
    report.note(axis.loc(), "did you mean `" + near + "`");
  return false;
}

/// The condition of `where =`, over axes of the tensor, and `gone` inside update. `axis`: one to
/// spread a host scalar over.
Evaluator::Where Evaluator::whereOf(const Expr *expr, Tensor &tensor, const Expr &of,
                                    StringRef axis, Env &env) {
  if (!expr)
    return {};
  Operand condition{expr, evaluate(*expr, env)};
  if (condition.value.isPoison())
    return {true, {}};
  if (auto *host = condition.value.as<Host>(); host && host->element == Element::Bool) {
    if (host->known && host->known->truth())
      return {};
    return {false, spread(*host, tensor.value, axis, at(*expr))};
  }
  auto *where = condition.value.as<Tensor>();
  if (!where || where->element() != Element::Bool) {
    typeError(*expr, "`where =`", "a condition", condition.value);
    return {true, {}};
  }
  if (tensor.repeated && where->has("head"))
    tensor = materialize(tensor, at(*expr));
  for (kvp::AxisAttr a : where->type().getAxes()) {
    if (tensor.has(a.getName()))
      continue;
    if (a.getName() == "gone") { // inside update: survivors beside each entry that went
      tensor = broadcast(tensor, where->value, at(*expr));
      continue;
    }
    error(expr->loc(), Diag::WhereAxes, a.getName(), shown(of), axesText(tensor));
    return {true, {}};
  }
  if (!compatible({&of, tensor}, condition, expr->loc()))
    return {true, {}};
  return {false, where->value};
}

bool Evaluator::refuseProtected(const Tensor &tensor, const CallExpr &call) {
  if (!tensor.protect)
    return false;
  bool pool = call.callee.text.ends_with("pool");
  error(call.callee.loc(), Diag::ProtectSmeared, call.callee.text)
      .note(tensor.protectedAt,
            pool ? "protect after pooling" : "protect after `" + call.callee.text + "`");
  return true;
}

/// Heads that chose apart hold different entries at one index.
bool Evaluator::refuseMisaligned(const Tensor &tensor, const CallExpr &call, Name axis,
                                 llvm::ArrayRef<Name> beside) {
  // Entries that leave with the heads are not compared index by index.
  auto leaves = [&](StringRef name) {
    return llvm::any_of(beside, [&](const Name &n) { return n.text == name; });
  };
  for (kvp::AxisAttr a : tensor.type().getAxes()) {
    StringRef name = a.getName();
    if (headsOf(tensor, name) != axis.text || leaves(name))
      continue;
    bool token = !tensor.isThinned(name);
    const Selection *by = current.misaligned(token ? "token" : "channel");
    if (!by)
      continue;
    StringRef verb = llvm::StringSwitch<StringRef>(call.callee.text)
                         .Case("sum", "add")
                         .Cases({"mean", "std", "var"}, "average")
                         .Default("mix");
    error(call.callee.loc(), Diag::HeadMisaligned, call.callee.text, axis.text, verb,
          token ? "tokens" : "channels", by->by)
        .note(by->loc, "each head chooses for itself here");
    return true;
  }
  return false;
}

//===------------------------------------------------------------------------------------------===//
// Reductions
//===------------------------------------------------------------------------------------------===//

/// The mean of turns over axes that their positions alone have is one turn by averaged tables, the
/// sum as many times that; takes those axes from `over`.
mlir::Value Evaluator::averageTurn(Reduction kind, mlir::Value value,
                                   llvm::SmallVectorImpl<StringRef> &over, mlir::Location loc) {
  auto turn = value.getDefiningOp<kvp::RotateOp>();
  if (!turn || turn.getMean())
    return value;
  llvm::SmallVector<StringRef> mean = llvm::filter_to_vector(
      over, [&](StringRef axis) { return !turn.getInput().getType().hasAxis(axis); });
  if (mean.empty())
    return value;
  llvm::erase_if(over, [&](StringRef axis) { return llvm::is_contained(mean, axis); });
  mlir::Value by = turn.getBy();
  value = emitter.create<kvp::RotateOp>(loc, turn->getOperands(), emitter.strings("mean", mean));
  if (kind == Reduction::Sum)
    for (StringRef axis : mean) {
      mlir::Value n =
          emitter.createAs<kvp::ExtentOp>(loc, emitter.i64(), by, emitter.string("axis", axis));
      value = mapTensor(Fn::Mul, {value, n}, loc);
    }
  return value;
}

/// What a reduction over heads makes of a score that is the same in each of them.
Value Evaluator::reduceTensor(Reduction kind, Tensor x, llvm::ArrayRef<StringRef> over,
                              mlir::Value where, mlir::Location loc) {
  llvm::SmallVector<StringRef> real(over);
  bool sumHeads = false;
  if (x.repeated && llvm::is_contained(over, "head")) {
    bool simple = kind == Reduction::Sum || kind == Reduction::Mean || kind == Reduction::Max ||
                  kind == Reduction::Min || kind == Reduction::All || kind == Reduction::Any;
    if (simple) {
      llvm::erase(real, "head");
      sumHeads = kind == Reduction::Sum;
      x.repeated = false;
    } else {
      x = materialize(x, loc);
    }
  }
  if ((kind == Reduction::Mean || kind == Reduction::Sum) && !where)
    x.value = averageTurn(kind, x.value, real, loc);
  Tensor out = x;
  out.input.reset();
  if (!real.empty())
    out.value = emitter.reduce(loc, kind, x.value, real, where);
  else if (kind == Reduction::Mean)
    out = toFloat(out, loc);
  if (const Layers *all = x.allLayers(); all && out.value && !where && !real.empty()) {
    auto reduced = std::make_shared<Layers>(*all);
    reduced->slice = out.value;
    if (all->whole)
      reduced->whole = emitter.reduce(loc, kind, all->whole, real);
    out.layers = reduced;
  }
  if (sumHeads)
    out.value = mapTensor(Fn::Mul, {out.value, dim(kvp::Dim::Heads, loc).value}, loc);
  if (!out.value)
    return Poison();
  if (x.protect) {
    auto type = llvm::cast<kvp::NamedTensorType>(x.protect.getType());
    llvm::SmallVector<StringRef> kept =
        llvm::filter_to_vector(real, [&](StringRef axis) { return type.hasAxis(axis); });
    mlir::Value protect = x.protect;
    if (where && !real.empty()) {
      protect = mapTensor(Fn::And, {protect, where}, loc);
      kept = llvm::filter_to_vector(real, [&](StringRef axis) {
        return llvm::cast<kvp::NamedTensorType>(protect.getType()).hasAxis(axis);
      });
    }
    out.protect = kept.empty() ? protect : emitter.reduce(loc, Reduction::Any, protect, kept);
  }
  if (!out.has("part") && !out.has("slot"))
    out.part = nullptr;
  out.forgetAxes();
  return out;
}

Value Evaluator::evaluateReduce(const CallExpr &call, Reduction kind, const Arguments &args,
                                Env &env) {
  bool logical = kind == Reduction::All || kind == Reduction::Any || kind == Reduction::Count;
  auto x = tensorOperand(*args.values[0], env, call.callee.text, logical);
  if (!x)
    return Poison();
  llvm::SmallVector<StringRef> over;
  bool ofLayers = ofAllLayers(*x, args);
  for (const Name &axis : args.axes) {
    if (isHidden(axis.text)) {
      if (ofLayers && axis.text == "layer")
        over.push_back(axis.text);
      else
        notImplemented(axis.loc(), "`" + call.callee.text + "(" + axis.text + ")`");
      continue;
    }
    if (!hasAxis(*x, axis, *args.values[0]))
      return Poison();
    if (llvm::is_contained(over, axis.text)) {
      error(axis.loc(), Diag::AxisTwice, axis.text);
      return Poison();
    }
    if (refuseMisaligned(*x, call, axis, args.axes))
      return Poison();
    if (axis.text != "head" && axis.text != "slot" && refuseProtected(*x, call))
      return Poison();
    over.push_back(axis.text);
  }
  if (llvm::is_contained(over, "layer"))
    return reduceLayers(call, kind, *x, over);
  StringRef first = over.empty() ? "" : over.front();
  if (!over.empty() && !x->has(first))
    first = over.size() > 1 ? over[1] : x->type().getAxes().front().getName();
  if (over.empty())
    return *x; // hidden axes alone
  Where where = whereOf(args.values.back(), *x, *args.values[0], first, env);
  if (where.failed)
    return Poison();
  return reduceTensor(kind, *x, over, where.condition, at(call.callee.loc()));
}

//===------------------------------------------------------------------------------------------===//
// Along an axis
//===------------------------------------------------------------------------------------------===//

Value Evaluator::evaluateAlong(const CallExpr &call, BuiltinId id, const Arguments &args,
                               Env &env) {
  auto x = tensorOperand(*args.values[0], env, call.callee.text, false);
  Name axis = args.axes.front();
  if (!x || !hasAxis(*x, axis, *args.values[0]) || refuseProtected(*x, call) ||
      refuseMisaligned(*x, call, axis, {}))
    return Poison();
  mlir::Location loc = at(call.callee.loc());
  if (axis.text == "head")
    *x = materialize(*x, loc);
  Where where = whereOf(args.values[2], *x, *args.values[0], axis.text, env);
  if (where.failed)
    return Poison();
  bool integers = x->element() == Element::Int;
  llvm::SmallVector<mlir::Value> operands{integers ? toFloat(*x, loc).value : x->value};
  if (where.condition)
    operands.push_back(where.condition);
  auto name = emitter.string("axis", axis.text);
  Tensor out = *x;
  out.input.reset();
  out.value = id == BuiltinId::Softmax     ? emitter.create<kvp::SoftmaxOp>(loc, operands, name)
              : id == BuiltinId::Normalize ? emitter.create<kvp::NormalizeOp>(loc, operands, name)
                                           : emitter.create<kvp::CumsumOp>(loc, operands, name);
  if (out.value && integers && id == BuiltinId::Cumsum)
    out.value = mapTensor(Fn::Int, out.value, loc);
  return out.value ? Value(out) : Poison();
}

Value Evaluator::evaluatePool(const CallExpr &call, BuiltinId id, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, call.callee.text, false);
  auto size = staticInt(*args.values[2], env, call, "size", 1);
  Name axis = args.axes.front();
  if (!x || !size || !hasAxis(*x, axis, *args.values[0]) || refuseProtected(*x, call) ||
      refuseMisaligned(*x, call, axis, {}))
    return Poison();
  if (*size % 2 == 0) {
    error(args.values[2]->loc(), Diag::PoolEven, call.callee.text, *size);
    return Poison();
  }
  mlir::Location loc = at(call.callee.loc());
  if (axis.text == "head")
    *x = materialize(*x, loc);
  Where where = whereOf(args.values[3], *x, *args.values[0], axis.text, env);
  if (where.failed)
    return Poison();
  llvm::SmallVector<mlir::Value> operands{x->value};
  if (where.condition)
    operands.push_back(where.condition);
  llvm::SmallVector<mlir::NamedAttribute> attributes{emitter.string("axis", axis.text),
                                                     emitter.integer("size", *size)};
  Tensor out = *x;
  out.input.reset();
  out.value = id == BuiltinId::AvgPool ? emitter.create<kvp::AvgPoolOp>(loc, operands, attributes)
                                       : emitter.create<kvp::MaxPoolOp>(loc, operands, attributes);
  return out.value ? Value(out) : Poison();
}

Value Evaluator::evaluateRank(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "rank", false);
  if (!x)
    return Poison();
  llvm::SmallVector<StringRef> over;
  mlir::Location loc = at(call.callee.loc());
  bool ofLayers = ofAllLayers(*x, args);
  for (const Name &axis : args.axes) {
    if (isHidden(axis.text)) {
      if (ofLayers && axis.text == "layer")
        over.push_back(axis.text);
      else
        notImplemented(axis.loc(), "`rank(" + axis.text + ")`");
      continue;
    }
    if (!hasAxis(*x, axis, *args.values[0]) || refuseMisaligned(*x, call, axis, args.axes))
      return Poison();
    if (axis.text == "head")
      *x = materialize(*x, loc);
    over.push_back(axis.text);
  }
  if (llvm::is_contained(over, "layer"))
    return rankLayers(call, *x, over);
  Tensor out = *x;
  out.input.reset();
  out.protect = {};
  if (over.empty()) {
    out.value = emitter.placeholder(loc, x->type().withElement(emitter.attributes().getI64Type()),
                                    x->value);
    return out;
  }
  Where where = whereOf(args.values.back(), *x, *args.values[0], over.front(), env);
  if (where.failed)
    return Poison();
  llvm::SmallVector<mlir::Value> operands{toFloat(*x, loc).value};
  if (x->protect)
    operands.push_back(x->protect);
  if (where.condition)
    operands.push_back(where.condition);
  out.value = emitter.create<kvp::RankOp>(
      loc, operands, emitter.strings("over", over),
      llvm::SmallVector<int32_t>{1, bool(x->protect), bool(where.condition)});
  return out.value ? Value(out) : Poison();
}

Value Evaluator::evaluateSort(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "sort", false);
  if (!x || !hasAxis(*x, args.from, *args.values[0]) || refuseProtected(*x, call) ||
      refuseMisaligned(*x, call, args.from, {}))
    return Poison();
  if (args.to.text != args.from.text && x->has(args.to.text)) {
    error(args.to.loc(), Diag::RenameTaken, shown(*args.values[0]), args.to.text);
    return Poison();
  }
  mlir::Location loc = at(call.callee.loc());
  if (args.from.text == "head")
    *x = materialize(*x, loc);
  Where where = whereOf(args.values[2], *x, *args.values[0], args.from.text, env);
  if (where.failed)
    return Poison();
  bool integers = x->element() == Element::Int;
  llvm::SmallVector<mlir::Value> operands{toFloat(*x, loc).value};
  if (where.condition)
    operands.push_back(where.condition);
  Tensor out = *x;
  out.input.reset();
  out.value = emitter.create<kvp::SortOp>(
      loc, operands, {emitter.string("axis", args.from.text), emitter.string("to", args.to.text)});
  if (out.value && integers)
    out.value = mapTensor(Fn::Int, out.value, loc);
  // What stands at a place of the order is comparable between heads.
  if (args.to.text != args.from.text) {
    llvm::erase_if(out.renamed, [&](const Tensor::Renamed &r) { return r.name == args.from.text; });
    out.renamed.push_back({args.to.text.str(), x->entriesOf(args.from.text).str(), ""});
  }
  return out.value ? Value(out) : Poison();
}

Value Evaluator::evaluateShift(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "shift");
  Value by = evaluate(*args.values[2], env), fill = evaluate(*args.values[3], env);
  Name axis = args.axes.front();
  if (!x || by.isPoison() || fill.isPoison() || !hasAxis(*x, axis, *args.values[0]) ||
      refuseProtected(*x, call) || refuseMisaligned(*x, call, axis, {}))
    return Poison();
  auto *n = by.as<Host>(), *f = fill.as<Host>();
  if (!n || n->element != Element::Int)
    return typeError(*args.values[2], "`by` of `shift`", "an integer of the host", by);
  bool isBool = x->element() == Element::Bool;
  if (!f || isBool != (f->element == Element::Bool))
    return typeError(*args.values[3], "`fill` of `shift`",
                     isBool ? "a condition of the host" : "a number of the host", fill);
  mlir::Location loc = at(call.callee.loc());
  if (axis.text == "head")
    *x = materialize(*x, loc);
  if (f->element == Element::Float)
    *x = toFloat(*x, loc);
  Tensor out = *x;
  out.input.reset();
  out.value = emitter.create<kvp::ShiftOp>(loc, {x->value, get(*n, loc), get(*f, loc)},
                                           emitter.string("axis", axis.text));
  return out.value ? Value(out) : Poison();
}
