//===- EvaluateCalls.cpp - names, declarations, closures --------------------------------------===//
#include "lib/Frontend/Check.h"
#include "lib/Frontend/Evaluator.h"

#include "llvm/ADT/ScopeExit.h"
#include <cmath>

using namespace kvpc;
using llvm::cast;
using llvm::dyn_cast;
using llvm::StringRef;

/// Bounds on what inlining may grow to; no sensible program comes near.
constexpr unsigned maxDepth = 1500, maxFrames = 64, maxSteps = 100000;

Value Evaluator::evaluate(const Expr &expr, Env &env) {
  if (captured)
    if (auto it = captured->find(&expr); it != captured->end())
      return *it->second;
  if (depth >= maxDepth || frames.size() > maxFrames || ++steps > maxSteps) {
    if (steps <= maxSteps + 1)
      error(expr.loc(), Diag::ProgramSize);
    steps = maxSteps + 2;
    return Poison();
  }
  ++depth;
  llvm::scope_exit restore([&] { --depth; });
  return evaluateInner(expr, env);
}

Value Evaluator::evaluateInner(const Expr &expr, Env &env) {
  switch (expr.kind) {
  case Expr::Kind::Number: {
    auto &number = cast<NumberExpr>(expr);
    return Host::number(number.isInt ? Number::of(number.integer) : Number::of(number.real));
  }
  case Expr::Kind::Constant:
    if (expr.text() == "inf")
      return Host::number(Number::of(std::numeric_limits<double>::infinity()));
    return Host::number(Number::of(expr.text() == "true"));
  case Expr::Kind::Name:
    return evaluateName(cast<NameExpr>(expr), env);
  case Expr::Kind::Call:
    return evaluateCall(cast<CallExpr>(expr), env);
  case Expr::Kind::Unary:
    return evaluateUnary(cast<UnaryExpr>(expr), env);
  case Expr::Kind::Binary:
    return evaluateBinary(cast<BinaryExpr>(expr), env);
  case Expr::Kind::Paren:
    return evaluate(*cast<ParenExpr>(expr).inner, env);
  case Expr::Kind::Axes:
  case Expr::Kind::Error:
    break;
  }
  return Poison();
}

//===------------------------------------------------------------------------------------------===//
// Names
//===------------------------------------------------------------------------------------------===//

Value Evaluator::evaluateName(const NameExpr &name, Env &env) {
  auto it = env.values.find(name.name.text);
  if (it == env.values.end())
    return hostValue(name);
  const Value &value = it->second;
  if (auto *tensor = value.as<Tensor>())
    return fresh(*tensor, name, env);
  if (auto *score = value.as<ScoreRef>())
    return evaluateScore(*score->closure, name.loc());
  return value;
}

Value Evaluator::restated(Tensor tensor, mlir::Location loc) {
  llvm::SmallVector<kvp::AxisAttr> axes;
  for (kvp::AxisAttr axis : tensor.type().getAxes())
    axes.push_back(kvp::isCacheAxis(axis.getName())
                       ? axisAttr(axis.getName(), axis.getExtent(), current.number())
                       : axis);
  auto type = kvp::NamedTensorType::get(emitter.getContext(), axes, tensor.type().getElementType());
  tensor.value = emitter.placeholder(loc, type, tensor.value);
  tensor.protect = {};
  tensor.part = nullptr;
  return tensor;
}

/// A weight over channels as the cache now has them: all, unless some went.
Value Evaluator::weightNow(Tensor weight, const NameExpr &name) {
  if (const Selection *by = current.last("channel")) {
    error(name.loc(), Diag::ChannelsGone, name.name.text, by->name)
        .note(by->loc, "put `" + by->name + "` last");
    return Poison();
  }
  mlir::Location loc = at(name);
  Tensor keys = input(kvp::Input::Keys, current.cache, std::nullopt, loc);
  for (kvp::AxisAttr axis : weight.type().getAxes()) {
    if (!kvp::isCacheAxis(axis.getName()))
      continue;
    mlir::Value index =
        emitter.create<kvp::IndexOp>(loc, keys.value, emitter.string("axis", "channel"));
    if (axis.getName() != "channel")
      index = emitter.create<kvp::RenameOp>(
          loc, index, {emitter.string("from", "channel"), emitter.string("to", axis.getName())});
    weight.value = emitter.create<kvp::AtOp>(loc, {weight.value, index},
                                             emitter.string("axis", axis.getName()));
    if (!weight.value)
      return Poison();
  }
  return weight;
}

Value Evaluator::fresh(const Tensor &tensor, const NameExpr &name, Env &env) {
  for (kvp::AxisAttr axis : tensor.type().getAxes()) {
    if (!kvp::isCacheAxis(axis.getName()) || axis.getState() == current.number())
      continue;
    // Inside update, survivors of what was computed before are meant. Weights have no tokens.
    if (beforeUpdate || insideDropped)
      return restated(tensor, at(name));
    if (const Param *p = env.decl ? env.decl->findParam(name.name.text) : nullptr;
        p && !p->axes.empty())
      return weightNow(tensor, name);
    size_t which = std::min<size_t>(axis.getState(), current.selections.size() - 1);
    const Selection &selection = current.selections[which];
    auto report = error(name.loc(), Diag::StaleToken, name.name.text, selection.by);
    auto let = env.lets.find(name.name.text);
    if (let != env.lets.end() && shown(*let->second).front() == '`')
      report.note(let->second->loc(), "write " + shown(*let->second) + " where it is used");
    report.note(selection.loc, "the cache changed here");
    return Poison();
  }
  return tensor;
}

//===------------------------------------------------------------------------------------------===//
// Calls
//===------------------------------------------------------------------------------------------===//

void Evaluator::callee(const CallExpr &call, Env &env, const Builtin *&builtin, const Decl *&decl) {
  builtin = findBuiltin(call.callee.text);
  decl = nullptr;
  if (builtin && !builtin->methodOnly)
    return;
  decl = program.find(call.callee.text, *env.file);
  if (!builtin)
    return;
  // `b.share(n)`: a budget's own, else a function of the program.
  if (decl && call.base && evaluate(*call.base, env).as<Budget>())
    decl = nullptr;
  if (decl)
    builtin = nullptr;
}

Value Evaluator::evaluateCall(const CallExpr &call, Env &env) {
  const Builtin *builtin;
  const Decl *decl;
  callee(call, env, builtin, decl);
  if (decl && decl->kind != DeclKind::Press)
    return evaluateDecl(call, *decl, env);
  if (builtin && !builtin->isPress())
    return evaluateBuiltin(call, *builtin, env);
  if (builtin || decl)
    error(call.loc(), Diag::ValueExpected, "this", call.text());
  return Poison();
}

Value Evaluator::evaluateBuiltin(const CallExpr &call, const Builtin &builtin, Env &env) {
  Arguments args;
  if (!bindArguments(call, builtin, nullptr, args))
    return Poison();
  using Id = BuiltinId;
  using kvp::Fn;
  using kvp::Reduction;
  switch (builtin.id) {
  case Id::Minimum:
    return evaluateElementwise(call, Fn::Minimum, args, env);
  case Id::Maximum:
    return evaluateElementwise(call, Fn::Maximum, args, env);
  case Id::Abs:
    return evaluateElementwise(call, Fn::Abs, args, env);
  case Id::Exp:
    return evaluateElementwise(call, Fn::Exp, args, env);
  case Id::Log:
    return evaluateElementwise(call, Fn::Log, args, env);
  case Id::Sqrt:
    return evaluateElementwise(call, Fn::Sqrt, args, env);
  case Id::Rsqrt:
    return evaluateElementwise(call, Fn::Rsqrt, args, env);
  case Id::Tanh:
    return evaluateElementwise(call, Fn::Tanh, args, env);
  case Id::Sigmoid:
    return evaluateElementwise(call, Fn::Sigmoid, args, env);
  case Id::Gelu:
    return evaluateElementwise(call, Fn::Gelu, args, env);
  case Id::Relu:
    return evaluateElementwise(call, Fn::Relu, args, env);
  case Id::Floor:
    return evaluateElementwise(call, Fn::Floor, args, env);
  case Id::Round:
    return evaluateElementwise(call, Fn::Round, args, env);
  case Id::Int:
    return evaluateElementwise(call, Fn::Int, args, env);
  case Id::Float:
    return evaluateElementwise(call, Fn::Float, args, env);
  case Id::Clamp:
    return evaluateClamp(call, args, env);
  case Id::Where:
    return evaluateWhere(call, args, env);
  case Id::Sum:
    return evaluateReduce(call, Reduction::Sum, args, env);
  case Id::Mean:
    return evaluateReduce(call, Reduction::Mean, args, env);
  case Id::Max:
    return evaluateReduce(call, Reduction::Max, args, env);
  case Id::Min:
    return evaluateReduce(call, Reduction::Min, args, env);
  case Id::Std:
    return evaluateReduce(call, Reduction::Std, args, env);
  case Id::Var:
    return evaluateReduce(call, Reduction::Var, args, env);
  case Id::Norm:
    return evaluateReduce(call, Reduction::Norm, args, env);
  case Id::All:
    return evaluateReduce(call, Reduction::All, args, env);
  case Id::Any:
    return evaluateReduce(call, Reduction::Any, args, env);
  case Id::Count:
    return evaluateReduce(call, Reduction::Count, args, env);
  case Id::Argmax:
    return evaluateReduce(call, Reduction::Argmax, args, env);
  case Id::Softmax:
  case Id::Normalize:
  case Id::Cumsum:
    return evaluateAlong(call, builtin.id, args, env);
  case Id::AvgPool:
  case Id::MaxPool:
    return evaluatePool(call, builtin.id, args, env);
  case Id::Rank:
    return evaluateRank(call, args, env);
  case Id::Sort:
    return evaluateSort(call, args, env);
  case Id::Shift:
    return evaluateShift(call, args, env);
  case Id::Rename:
    return evaluateRename(call, args, env);
  case Id::Partition:
    return evaluatePartition(call, args, env);
  case Id::Chunk:
    return evaluateChunk(call, args, env);
  case Id::Join:
    return evaluateJoin(call, args, env);
  case Id::At:
    return evaluateAt(call, args, env);
  case Id::Index:
    return evaluateIndex(call, args, env);
  case Id::Extent:
    return evaluateExtent(call, args, env);
  case Id::Dot:
    return evaluateDot(call, /*cosine=*/false, args, env);
  case Id::Cosine:
    return evaluateDot(call, /*cosine=*/true, args, env);
  case Id::Attention:
    return evaluateAttention(call, /*softmax=*/true, args, env);
  case Id::Logits:
    return evaluateAttention(call, /*softmax=*/false, args, env);
  case Id::Eye:
  case Id::Inverse:
  case Id::Solve:
    return evaluateMatrix(call, builtin.id, args, env);
  case Id::Rotate:
    return evaluateRotate(call, args, env);
  case Id::Uniform:
    return evaluateRandom(call, /*gaussian=*/false, args, env);
  case Id::Gaussian:
    return evaluateRandom(call, /*gaussian=*/true, args, env);
  case Id::Protect:
    return evaluateProtect(call, args, env);
  case Id::Drop:
    return evaluateBudget(call, /*keep=*/false, args, env);
  case Id::Keep:
    return evaluateBudget(call, /*keep=*/true, args, env);
  case Id::Of:
    return evaluateBudgetMethod(call, /*share=*/false, args, env);
  case Id::Share:
    return evaluateBudgetMethod(call, /*share=*/true, args, env);
  case Id::Dropped:
    return evaluateDropped(call, args, env);
  case Id::Last:
    return evaluateLast(call, args, env);
  case Id::Unrotated:
    return evaluateUnrotated(call, args, env);
  default:
    return Poison();
  }
}

//===------------------------------------------------------------------------------------------===//
// Declarations
//===------------------------------------------------------------------------------------------===//

std::shared_ptr<Env> Evaluator::enter(const CallExpr &call, const Decl &decl, Env &env) {
  Arguments args;
  if (program.isBroken(decl) || !bindArguments(call, decl, nullptr, args))
    return nullptr;
  auto inner = std::make_shared<Env>();
  inner->decl = &decl;
  inner->file = decl.file;
  auto outer = std::make_shared<Env>(env);
  auto blank = std::make_shared<Env>();
  blank->file = decl.file;
  for (auto [i, p] : llvm::enumerate(decl.params)) {
    bool given = args.values[i];
    inner->values[p.name.text] =
        parameter(p, decl, given ? *args.values[i] : *p.defaultValue, given ? outer : blank);
  }
  return inner;
}

bool Evaluator::statements(const Decl &decl, Env &env) {
  for (const Statement &s : decl.statements) {
    if (s.isLet) {
      if (kindOf(program, *s.value, &decl, *decl.file) == ExprKind::Press) {
        env.values[s.name.text] =
            PressRef{close(*s.value, std::make_shared<Env>(env), "`" + s.name.text.str() + "`")};
        continue;
      }
      env.values[s.name.text] = evaluate(*s.value, env);
      env.lets[s.name.text] = s.value;
      continue;
    }
    Value value = evaluate(*s.value, env);
    auto *host = value.as<Host>();
    if (!host || host->element != Element::Bool) {
      typeError(*s.value, "`require`", "a condition of the host", value);
      continue;
    }
    if (host->known && !host->known->truth()) {
      error(s.loc, Diag::RequireFailed, s.message);
      return false;
    }
    if (!host->known)
      emitter.require(at(s.loc), host->value, s.message);
  }
  return true;
}

Value Evaluator::evaluateDecl(const CallExpr &call, const Decl &decl, Env &env) {
  auto inner = enter(call, decl, env);
  if (!inner)
    return Poison();
  auto *outerCaptured = std::exchange(captured, nullptr);
  frames.push_back({&decl, call.callee.loc()});
  llvm::scope_exit restore([&] {
    frames.pop_back();
    captured = outerCaptured;
  });
  if (!statements(decl, *inner))
    return Poison();
  Value value = evaluate(*decl.result, *inner);
  return decl.kind == DeclKind::Score ? finishScore(decl, std::move(value)) : value;
}

Value Evaluator::finishScore(const Decl &decl, Value value) {
  std::string subject = "score `" + decl.name.text.str() + "`";
  auto *score = value.as<Tensor>();
  if (!score) {
    if (!value.isPoison())
      error(decl.name.loc(), Diag::ScoreType, subject, describe(value));
    return Poison();
  }
  if (score->element() == Element::Bool) {
    error(decl.name.loc(), Diag::ScoreType, subject, describe(value))
        .note(decl.result->loc(), "write `mask(condition)` to keep what fulfils it, or "
                                  "`where(condition, 1, 0)` for a score");
    return Poison();
  }
  if (elementAxis(*score, decl.name.loc(), subject).empty())
    return Poison();
  return toFloat(*score, at(*decl.result));
}

Value Evaluator::parameter(const Param &param, const Decl &decl, const Expr &expr,
                           std::shared_ptr<Env> env) {
  std::string subject = "`" + param.name.text.str() + "` of `" + decl.name.text.str() + "`";
  if (param.type == ParamType::Score)
    return ScoreRef{close(expr, env, subject)};
  if (param.type == ParamType::Press)
    return PressRef{close(expr, env, subject)};
  Value value = evaluate(expr, *env);
  if (value.isPoison())
    return value;
  if (param.type == ParamType::Budget)
    return value.as<Budget>() ? value : typeError(expr, subject, "a budget", value);
  if (param.type == ParamType::Tensor)
    return value.as<Tensor>() || value.as<Host>()
               ? value
               : typeError(expr, subject, "a tensor or a number", value);
  if (!param.axes.empty())
    return weightParameter(param, decl, expr, value);
  return hostParameter(param, decl, expr, value);
}

Value Evaluator::weightParameter(const Param &param, const Decl &decl, const Expr &expr,
                                 const Value &value) {
  std::string subject = "`" + param.name.text.str() + "` of `" + decl.name.text.str() + "`";
  llvm::SmallVector<StringRef> wanted;
  for (const Name &axis : param.axes)
    if (axis.text != "layer")
      wanted.push_back(axis.text);
  if (wanted.empty() && value.as<Host>())
    return param.type == ParamType::Bool ? value : hostParameter(param, decl, expr, value);
  auto *tensor = value.as<Tensor>();
  if (tensor && !wanted.empty() && tensor->type().getAxes().size() == wanted.size() &&
      llvm::all_of(wanted, [&](StringRef axis) { return tensor->has(axis); }))
    return value;
  std::string axes = wanted.empty() ? "a number" : "a tensor over " + quoteList(wanted);
  return typeError(expr, subject, axes, value);
}

/// "at least 1 and at most 64".
static std::string rangeText(const Range &range) {
  auto tidy = [](double x) {
    return x == std::floor(x) && std::fabs(x) < 1e15 ? std::to_string(int64_t(x))
                                                     : llvm::formatv("{0}", x).str();
  };
  std::string text = range.low ? "at least " + tidy(*range.low) : "";
  if (range.high)
    text += (text.empty() ? "" : " and ") + std::string(range.open ? "less than " : "at most ") +
            tidy(*range.high);
  return text;
}

Value Evaluator::hostParameter(const Param &param, const Decl &decl, const Expr &expr,
                               const Value &value) {
  std::string subject = "`" + param.name.text.str() + "` of `" + decl.name.text.str() + "`";
  static constexpr StringRef wanted[] = {"an integer", "a number", "a condition", "a fraction"};
  Element element = param.type == ParamType::Bool  ? Element::Bool
                    : param.type == ParamType::Int ? Element::Int
                                                   : Element::Float;
  auto *given = value.as<Host>();
  if (!given || given->element > element ||
      (given->element == Element::Bool) != (element == Element::Bool))
    return typeError(expr, subject, wanted[static_cast<int>(param.type)], value);
  Host host = element == Element::Float ? toFloat(*given, at(expr)) : *given;
  if (param.type == ParamType::Bool) {
    auto known = takeStatic(host, expr, param.loc(), subject, Element::Bool);
    return known ? Value(Host::number(*known)) : Value(Poison());
  }
  Range range;
  if (param.type == ParamType::Fraction)
    range = {0.0, 1.0, /*open=*/true};
  auto bound = [](const Expr *e) { return cast<NumberExpr>(e)->real; };
  if (param.low)
    range.low = std::max(bound(param.low), range.low.value_or(bound(param.low)));
  if (param.high && !(range.high && *range.high <= bound(param.high)))
    range.high = bound(param.high), range.open = false;
  std::string text = rangeText(range);
  if (host.known && !range.contains(host.known->real)) {
    error(expr.loc(), Diag::ArgumentRange, subject, text, expr.text())
        .note(param.loc(), "declared here");
    return Poison();
  }
  bool bounded = range.low || range.high;
  if (!host.known && bounded && !(given->range && given->range->within(range))) {
    mlir::Location loc = at(expr);
    auto check = [&](kvp::Fn fn, Host a, Host b) {
      Host holds = mapHost(fn, {a, b}, loc);
      emitter.require(loc, get(holds, loc), subject + " must be " + text);
    };
    if (range.low)
      check(kvp::Fn::Le, Host::number(Number::of(*range.low)), host);
    if (range.high)
      check(range.open ? kvp::Fn::Lt : kvp::Fn::Le, host, Host::number(Number::of(*range.high)));
  }
  host.range = range;
  if (!host.binding)
    host.binding = Host::Binding{param.name.text, decl.name.text, expr.loc()};
  return host;
}

//===------------------------------------------------------------------------------------------===//
// Closures
//===------------------------------------------------------------------------------------------===//

/// Evaluates the arguments of calls inside a score or press argument where it is written. Stages
/// are evaluated where they are used, and so are their arguments.
void Evaluator::capture(const Expr &expr, Env &env, Closure &closure) {
  if (auto *paren = dyn_cast<ParenExpr>(&expr))
    return capture(*paren->inner, env, closure);
  if (auto *unary = dyn_cast<UnaryExpr>(&expr))
    return capture(*unary->operand, env, closure);
  if (auto *binary = dyn_cast<BinaryExpr>(&expr)) {
    capture(*binary->lhs, env, closure);
    return capture(*binary->rhs, env, closure);
  }
  auto *call = dyn_cast<CallExpr>(&expr);
  if (!call)
    return;
  const Builtin *builtin = findBuiltin(call->callee.text);
  const Decl *decl =
      builtin && !builtin->methodOnly ? nullptr : program.find(call->callee.text, *env.file);
  Arguments args;
  if (!decl || !bindArguments(*call, *decl, nullptr, args)) {
    if (call->base)
      capture(*call->base, env, closure);
    return;
  }
  for (auto [i, p] : llvm::enumerate(decl->params)) {
    const Expr *arg = args.values[i];
    bool scalar =
        p.type != ParamType::Score && p.type != ParamType::Press && p.type != ParamType::Tensor;
    if (arg && scalar && p.axes.empty())
      closure.captured[arg] = std::make_shared<Value>(evaluate(*arg, env));
    else if (arg)
      capture(*arg, env, closure);
  }
}

std::shared_ptr<Closure> Evaluator::close(const Expr &expr, std::shared_ptr<Env> env,
                                          std::string subject) {
  // A parameter passed on is the same closure, said of its last user.
  if (auto *name = dyn_cast<NameExpr>(strip(&expr))) {
    auto it = env->values.find(name->name.text);
    if (it != env->values.end()) {
      const Closure *known = nullptr;
      if (auto *score = it->second.as<ScoreRef>())
        known = score->closure.get();
      else if (auto *press = it->second.as<PressRef>())
        known = press->closure.get();
      if (known) {
        auto copy = std::make_shared<Closure>(*known);
        copy->subject = std::move(subject);
        return copy;
      }
    }
  }
  auto closure = std::make_shared<Closure>();
  closure->expr = &expr;
  closure->env = std::move(env);
  closure->subject = std::move(subject);
  if (captured)
    closure->captured = *captured; // what an outer closure knows about this expression
  capture(expr, *closure->env, *closure);
  return closure;
}

Value Evaluator::evaluateScore(const Closure &closure, llvm::SMLoc use) {
  Value value;
  if (!closure.expr) {
    auto type =
        kvp::NamedTensorType::get(emitter.getContext(),
                                  {axisAttr("head", kvp::AxisAttr::kDynamic, 0),
                                   axisAttr("token", kvp::AxisAttr::kDynamic, current.number())},
                                  emitter.attributes().getF32Type());
    Tensor any;
    any.value = emitter.placeholder(at(use), type);
    return any;
  }
  auto *outer = std::exchange(captured, &closure.captured);
  value = evaluate(*closure.expr, *closure.env);
  captured = outer;
  if (value.isPoison())
    return value;
  auto *score = value.as<Tensor>();
  llvm::SMLoc loc = closure.expr->loc();
  if (!score || score->element() == Element::Bool) {
    error(loc, Diag::ScoreType, closure.subject, describe(value));
    return Poison();
  }
  StringRef axis = elementAxis(*score, loc, closure.subject);
  if (axis.empty())
    return Poison();
  if (axis != "token") {
    error(loc, Diag::ScoreToken, closure.subject, shown(*closure.expr), axis);
    return Poison();
  }
  Tensor out = toFloat(*score, at(loc));
  out.repeated = !out.has("head");
  return out;
}
