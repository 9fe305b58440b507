//===- EvaluateStages.cpp - budgets, selections and what is made of them ----------------------===//
#include "lib/Frontend/Evaluator.h"

#include "llvm/ADT/ScopeExit.h"

using namespace kvpc;
using kvp::Fn;
using llvm::cast;
using llvm::dyn_cast;
using llvm::StringRef;

//===------------------------------------------------------------------------------------------===//
// Budgets
//===------------------------------------------------------------------------------------------===//

Value Evaluator::evaluateBudget(const CallExpr &call, bool keep, const Arguments &args, Env &env) {
  const Expr &expr = *args.values[0];
  Value value = evaluate(expr, env);
  if (value.isPoison())
    return value;
  std::string op = "`" + call.callee.text.str() + "`";
  Budget budget;
  budget.kind = keep ? Budget::Kind::Keep : Budget::Kind::Drop;
  if (auto *tensor = value.as<Tensor>()) {
    if (tensor->element() == Element::Bool || (keep && tensor->element() == Element::Float))
      return typeError(expr, op, keep ? "integers" : "fractions", value);
    for (kvp::AxisAttr a : tensor->type().getAxes())
      if (a.getName() != "head") {
        error(expr.loc(), Diag::ScoreAxes, "what " + op + " takes", axesText(*tensor), a.getName())
            .note(expr.loc(),
                  "a head keeps one number: remove it, e.g. with `.sum(" + a.getName() + ")`");
        return Poison();
      }
    budget.amounts = *tensor;
    return budget;
  }
  auto *host = value.as<Host>();
  if (!host || host->element == Element::Bool || (keep && host->element == Element::Float))
    return typeError(expr, op, keep ? "an integer" : "a fraction", value);
  if (host->known) {
    double x = host->known->real;
    if (keep ? x < 1 : !(x >= 0 && x < 1)) {
      error(expr.loc(), keep ? Diag::KeepRange : Diag::DropRange, expr.text());
      return Poison();
    }
  }
  mlir::Location loc = at(expr);
  budget.amount = keep ? *host : toFloat(*host, loc);
  Range fraction{0.0, 1.0, /*open=*/true};
  if (!keep && !host->known && !(host->range && host->range->within(fraction))) {
    Host zero = Host::number(Number::of(0.0)), one = Host::number(Number::of(1.0));
    Host holds = mapHost(
        Fn::And,
        {mapHost(Fn::Le, {zero, budget.amount}, loc), mapHost(Fn::Lt, {budget.amount, one}, loc)},
        loc);
    emitter.require(loc, holds.value, "`drop` takes a fraction, at least 0 and less than 1");
  }
  return budget;
}

mlir::Value Evaluator::budgetValue(const Budget &budget, mlir::Location loc) {
  if (budget.kind == Budget::Kind::Runtime)
    return budget.value;
  return emitter.createAs<kvp::BudgetOp>(loc, kvp::BudgetType::get(emitter.getContext()),
                                         get(budget.amount, loc));
}

static std::string budgetReason(const Budget &budget) {
  return budget.kind == Budget::Kind::Runtime ? "`" + budget.parameter + "`" : "a budget";
}

Host Evaluator::budgetOf(const Budget &budget, const Host &n, mlir::Location loc) {
  auto value = emitter.createAs<kvp::BudgetOfOp>(loc, emitter.i64(),
                                                 {budgetValue(budget, loc), get(n, loc)});
  Host out = runtimeHost(Element::Int, value, n.runtime.empty() ? budgetReason(budget) : n.runtime);
  out.perLayer = n.perLayer || budget.amount.perLayer;
  return out;
}

Value Evaluator::evaluateBudgetMethod(const CallExpr &call, bool share, const Arguments &args,
                                      Env &env) {
  Value value = evaluate(*args.values[0], env), count = evaluate(*args.values[1], env);
  if (value.isPoison() || count.isPoison())
    return Poison();
  std::string op = "`" + call.callee.text.str() + "`";
  auto *budget = value.as<Budget>();
  if (!budget)
    return typeError(*args.values[0], op, "a budget", value);
  auto *n = count.as<Host>();
  if (!n || n->element != Element::Int)
    return typeError(*args.values[1], op, "an integer of the host", count);
  mlir::Location loc = at(call.callee.loc());
  if (budget->amounts) {
    notImplemented(call.callee.loc(), "a budget from data");
    return runtimeHost(share ? Element::Float : Element::Int,
                       emitter.placeholder(loc, share
                                                    ? mlir::Type(emitter.attributes().getF64Type())
                                                    : emitter.attributes().getI64Type()),
                       "a budget from data");
  }
  if (!share)
    return budgetOf(*budget, *n, loc);
  auto amount = emitter.createAs<kvp::BudgetShareOp>(loc, emitter.f64(),
                                                     {budgetValue(*budget, loc), get(*n, loc)});
  Host out =
      runtimeHost(Element::Float, amount, n->runtime.empty() ? budgetReason(*budget) : n->runtime);
  out.perLayer = n->perLayer || budget->amount.perLayer;
  return out;
}

//===------------------------------------------------------------------------------------------===//
// Presses
//===------------------------------------------------------------------------------------------===//

bool Evaluator::apply(const Expr &whole, Env &env) {
  const Expr &expr = *strip(&whole);
  if (depth >= 1500 || frames.size() > 64) {
    error(expr.loc(), Diag::ProgramSize);
    return false;
  }
  ++depth;
  llvm::scope_exit restore([&] { --depth; });
  if (auto *name = dyn_cast<NameExpr>(&expr)) {
    auto it = env.values.find(name->name.text);
    auto *press = it == env.values.end() ? nullptr : it->second.as<PressRef>();
    return press && applyClosure(*press->closure, name->loc());
  }
  auto *call = dyn_cast<CallExpr>(&expr);
  if (!call)
    return false;
  const Builtin *builtin;
  const Decl *decl;
  callee(*call, env, builtin, decl);
  if (builtin)
    return applyBuiltin(*call, *builtin, env);
  return decl && applyDecl(*call, *decl, env);
}

bool Evaluator::applyClosure(const Closure &closure, llvm::SMLoc use) {
  if (!closure.expr) // any press: say, one that chooses tokens for each head
    return selected(use, "topk", "token", /*perHead=*/true,
                    emitter.placeholder(
                        at(use), kvp::CacheType::get(emitter.getContext(), current.number() + 1))),
           true;
  auto *outer = std::exchange(captured, &closure.captured);
  bool ok = apply(*closure.expr, *closure.env);
  captured = outer;
  return ok;
}

bool Evaluator::applyDecl(const CallExpr &call, const Decl &decl, Env &env) {
  auto inner = enter(call, decl, env);
  if (!inner)
    return false;
  auto *outer = std::exchange(captured, nullptr);
  frames.push_back({&decl, call.callee.loc()});
  bool ok = statements(decl, *inner) && apply(*decl.result, *inner);
  frames.pop_back();
  captured = outer;
  return ok;
}

bool Evaluator::applyBuiltin(const CallExpr &call, const Builtin &builtin, Env &env) {
  Arguments args;
  if (!bindArguments(call, builtin, nullptr, args))
    return false;
  switch (builtin.id) {
  case BuiltinId::Topk:
    return applyTopk(call, args, env);
  case BuiltinId::Mask:
    return applyMask(call, args, env);
  case BuiltinId::Compose:
    return llvm::all_of(args.presses, [&](const Expr *p) { return apply(*p, env); });
  case BuiltinId::Reuse:
    return applyReuse(call, args, env);
  case BuiltinId::Each:
    return applyRuns(call, /*scan=*/false, args, env);
  case BuiltinId::Scan:
    return applyRuns(call, /*scan=*/true, args, env);
  case BuiltinId::Prefill:
  case BuiltinId::Decode:
  case BuiltinId::Probe:
    return applyPhase(call, builtin, args, env);
  case BuiltinId::Update:
    return applyUpdate(call, args, env);
  default:
    return false;
  }
}

void Evaluator::selected(llvm::SMLoc loc, StringRef by, StringRef axis, bool perHead,
                         mlir::Value cache) {
  // Named after the declaration that selects, unless that is the exported one itself.
  StringRef name = frames.size() > 1 ? frames.back().decl->name.text : by;
  current.selections.push_back({loc, by, name.str(), axis, perHead, reuse.layers});
  current.cache = cache;
}

//===------------------------------------------------------------------------------------------===//
// topk and mask
//===------------------------------------------------------------------------------------------===//

StringRef Evaluator::elementAxis(const Tensor &score, llvm::SMLoc loc, const std::string &subject) {
  StringRef found;
  auto leftOver = [&](StringRef axis) {
    error(loc, Diag::ScoreAxes, subject, axesText(score), axis)
        .note(loc, "remove it, e.g. with `.mean(" + axis + ")`");
    return StringRef();
  };
  bool parts = score.has("part") && score.has("slot");
  for (kvp::AxisAttr a : score.type().getAxes()) {
    StringRef name = a.getName();
    if (!namedRight(score, name, loc, subject))
      return "";
    if (name == "head" || (parts && name == "slot"))
      continue;
    bool element = name == "token" || name == "channel" || name == "part";
    if (!element || !found.empty())
      return leftOver(name);
    found = name;
  }
  if (found.empty())
    error(loc, Diag::ScoreNoAxis, subject,
          score.type().getAxes().empty() ? "no axes" : axesText(score));
  return found;
}

/// Layers can share a choice only while they all hold the same tokens.
bool Evaluator::checkReuse(llvm::SMLoc loc) {
  if (!reuse.layers)
    return true;
  for (const Selection &s : current.selections) {
    if (s.axis != "token" || s.reuse == reuse.layers)
      continue;
    error(reuse.loc, Diag::ReuseTokens, s.name).note(s.loc, "each layer chooses for itself here");
    return false;
  }
  return true;
}

bool Evaluator::applyTopk(const CallExpr &call, const Arguments &args, Env &env) {
  llvm::SMLoc loc = call.callee.loc();
  Value value = evaluate(*args.values[0], env);
  Value amount = evaluate(*args.values[1], env);
  Together together;
  if (args.values[2]) {
    auto &items = cast<AxesExpr>(args.values[2])->items;
    bool token = false, layer = false;
    for (const AxesExpr::Item &item : items) {
      StringRef name = item.axis.text;
      token |= name == "token";
      layer |= name == "layer";
      together.heads |= name == "head";
      if (name != "token" && name != "head" && name != "layer") {
        error(item.axis.loc(), Diag::OverAxes, name);
        return false;
      }
    }
    if (!token) {
      error(args.values[2]->loc(), Diag::OverAxes, args.values[2]->text());
      return false;
    }
    if (layer) {
      notImplemented(args.values[2]->loc(), "`topk` with `over = " + args.values[2]->text() + "`");
      together.implemented = false;
    }
  }
  if (args.values[3]) {
    const Expr &expr = *args.values[3];
    Value share = evaluate(expr, env);
    if (share.isPoison())
      return false;
    auto *host = share.as<Host>();
    if (!host || host->element == Element::Bool)
      return typeError(expr, "`at_least` of `topk`", "a number of the host", share), false;
    if (!together.heads) { // else each head has its whole budget anyway
      error(expr.loc(), Diag::AtLeastAlone);
      return false;
    }
    together.atLeast = checkedShare(*host, expr);
    if (!together.atLeast)
      return false;
  }
  if (value.isPoison() || amount.isPoison())
    return false;
  auto *score = value.as<Tensor>();
  auto *budget = amount.as<Budget>();
  if (!score || score->element() == Element::Bool)
    return typeError(*args.values[0], "`topk`", "a score", value), false;
  if (!budget) {
    auto report = error(args.values[1]->loc(), Diag::Type, "`topk`", "a budget",
                        shown(*args.values[1]), describe(amount));
    auto *host = amount.as<Host>();
    if (host && host->element != Element::Bool)
      report.note(args.values[1]->loc(),
                  host->element == Element::Int
                      ? "write `keep(" + args.values[1]->text() + ")` for a count"
                      : "write `drop(" + args.values[1]->text() + ")` for a fraction");
    return false;
  }
  return select(*score, *budget, loc, "the score of `topk`", together);
}

/// A share of `at_least`: a float from 0 to 1, checked by the call where it is not known.
std::optional<Host> Evaluator::checkedShare(const Host &share, const Expr &expr) {
  mlir::Location loc = at(expr);
  Range whole{0.0, 1.0};
  if (share.known && !whole.contains(share.known->real)) {
    error(expr.loc(), Diag::AtLeastRange, expr.text());
    return std::nullopt;
  }
  Host out = toFloat(share, loc);
  if (!share.known && !(share.range && share.range->within(whole))) {
    Host zero = Host::number(Number::of(0.0)), one = Host::number(Number::of(1.0));
    Host holds = mapHost(
        Fn::And, {mapHost(Fn::Le, {zero, out}, loc), mapHost(Fn::Le, {out, one}, loc)}, loc);
    emitter.require(loc, holds.value, "`at_least` takes a share, at least 0 and at most 1");
  }
  return out;
}

/// How many of `n` entries along `axis` a selection keeps.
Host Evaluator::keptCount(const Budget &budget, const Tensor &score, StringRef axis, const Host &n,
                          mlir::Location at) {
  Host count = budgetOf(budget, n, at);
  if (axis != "part" || budget.kind == Budget::Kind::Drop)
    return count;
  // `keep` counts tokens, in whole runs.
  mlir::Value raw = budgetValue(budget, at);
  Host tokens =
      runtimeHost(Element::Float,
                  emitter.createAs<kvp::BudgetShareOp>(at, emitter.f64(), {raw, get(n, at)}), "");
  Host size = Host::number(Number::of(score.part->size));
  Host whole = mapHost(Fn::Int, mapHost(Fn::Div, {tokens, size}, at), at);
  whole = mapHost(Fn::Maximum, {whole, Host::number(Number::of(int64_t(1)))}, at);
  whole = mapHost(Fn::Minimum, {whole, n}, at);
  if (budget.kind == Budget::Kind::Keep)
    return whole;
  Host isDrop =
      runtimeHost(Element::Bool, emitter.createAs<kvp::BudgetIsDropOp>(at, emitter.i1(), raw), "");
  return mapHost(Fn::Where, {isDrop, count, whole}, at);
}

/// The same of a count from data; the selection clamps it.
mlir::Value Evaluator::keptCounts(const Budget &budget, const Tensor &score, StringRef axis,
                                  mlir::Location at) {
  const Tensor &amounts = *budget.amounts;
  if (budget.kind == Budget::Kind::Drop) {
    mlir::Value n = emitter.createAs<kvp::ExtentOp>(at, emitter.i64(), score.value,
                                                    emitter.string("axis", axis));
    mlir::Value share =
        mapTensor(Fn::Sub, {emitter.constant(at, Number::of(1.0)), amounts.value}, at);
    return mapTensor(Fn::Int, {mapTensor(Fn::Mul, {share, n}, at)}, at);
  }
  if (axis != "part")
    return amounts.value;
  mlir::Value size = emitter.constant(at, Number::of(score.part->size));
  return mapTensor(Fn::Int, mapTensor(Fn::Div, {amounts.value, size}, at), at);
}

bool Evaluator::select(Tensor score, const Budget &budget, llvm::SMLoc loc,
                       const std::string &subject, const Together &together) {
  StringRef axis = elementAxis(score, loc, subject);
  if (axis.empty() || !checkReuse(loc))
    return false;
  bool implemented = together.implemented;
  if (llvm::is_contained(runs, "scan") && budget.kind != Budget::Kind::Keep) {
    error(loc, Diag::ScanDrop)
        .note(loc, "count outside: `let n = budget.of(length)`, then `topk(keep(n))`");
    return false;
  }
  for (kvp::AxisAttr a : score.type().getAxes())
    if (kvp::isCacheAxis(a.getName()) && a.getState() != current.number()) {
      size_t which = std::min<size_t>(a.getState(), current.selections.size() - 1);
      error(loc, Diag::ScoreStale, current.selections[which].by);
      return false;
    }
  if (const Selection *by = current.last("channel");
      by && axis == "channel" && !score.isThinned("channel")) {
    error(loc, Diag::ChannelsDiffer, "the score", "the cache", by->name)
        .note(by->loc, "channels went here");
    return false;
  }
  if (together.heads && axis != "token") {
    error(loc, Diag::OverAxes, axis);
    return false;
  }
  mlir::Location at = diagnostics.location(loc);
  score = toFloat(score, at);
  // One budget for heads that have the same score is an equal one for each.
  bool ownCounts = budget.amounts && budget.amounts->has("head");
  bool joint = together.heads && (score.has("head") || ownCounts || current.misaligned("token"));
  if ((joint || ownCounts) && !score.has("head")) {
    score.repeated = true;
    score = materialize(score, at);
  }
  bool perHead = score.has("head");
  auto unfinished = [&](const llvm::Twine &what) {
    notImplemented(loc, what);
    implemented = false;
  };
  if (budget.amounts && axis == "channel") {
    error(loc, Diag::ChannelCount, "the budget is a tensor");
    return false;
  }
  if (axis == "part" && score.has("slot"))
    unfinished("`topk` within parts");
  if (!implemented) {
    selected(
        loc, "topk", axis == "channel" ? "channel" : "token", perHead,
        emitter.placeholder(at, kvp::CacheType::get(emitter.getContext(), current.number() + 1)));
    return true;
  }
  mlir::Value count;
  if (budget.amounts) {
    count = keptCounts(budget, score, axis, at);
  } else {
    Host n = axis == "token" ? dim(kvp::Dim::Length, at)
             : axis == "channel"
                 ? dim(kvp::Dim::Channels, at)
                 : runtimeHost(Element::Int,
                               emitter.createAs<kvp::ExtentOp>(at, emitter.i64(), score.value,
                                                               emitter.string("axis", axis)),
                               "`length`");
    Host kept = keptCount(budget, score, axis, n, at);
    if (reuse.layers > 1 && (kept.perLayer || budget.amount.perLayer)) {
      error(reuse.loc, Diag::ReuseCount).note(loc, "the count differs from layer to layer here");
      return false;
    }
    count = get(kept, at);
  }
  if (current.selections.empty())
    firstScore = score;
  llvm::SmallVector<mlir::Value> operands{current.cache, score.value, count};
  if (score.protect)
    operands.push_back(score.protect);
  if (joint && together.atLeast)
    operands.push_back(get(*together.atLeast, at));
  mlir::Value from = axis == "part" ? score.part->from : mlir::Value();
  mlir::Value to = axis == "part" ? score.part->to : mlir::Value();
  for (mlir::Value limit : {from, to})
    if (limit)
      operands.push_back(limit);
  llvm::SmallVector<mlir::NamedAttribute> attributes;
  if (joint)
    attributes.push_back(emitter.unit("joint"));
  if (axis == "part")
    attributes.push_back(emitter.integer("part_size", score.part->size));
  if (reuse.layers > 1)
    attributes.push_back(emitter.integer("reuse", reuse.layers));
  mlir::Value cache = emitter.create<kvp::TopkOp>(
      at, operands, attributes,
      llvm::SmallVector<int32_t>{1, 1, 1, bool(score.protect), joint && together.atLeast,
                                 bool(from), bool(to)});
  if (!cache)
    return false;
  selected(loc, "topk", axis == "channel" ? "channel" : "token", perHead, cache);
  current.selections.back().ragged = perHead && (joint || budget.amounts || axis == "part");
  return true;
}

bool Evaluator::applyMask(const CallExpr &call, const Arguments &args, Env &env) {
  llvm::SMLoc loc = call.callee.loc();
  Value value = evaluate(*args.values[0], env);
  if (value.isPoison() || !checkReuse(loc))
    return false;
  auto *condition = value.as<Tensor>();
  if (!condition || condition->element() != Element::Bool)
    return typeError(*args.values[0], "`mask`", "a condition over tokens", value), false;
  for (kvp::AxisAttr a : condition->type().getAxes()) {
    if (a.getName() == "token" || a.getName() == "head") {
      if (!namedRight(*condition, a.getName(), loc, "the condition of `mask`"))
        return false;
      continue;
    }
    error(loc, Diag::ScoreAxes, "the condition of `mask`", axesText(*condition), a.getName())
        .note(loc, "remove it, e.g. with `.any(" + a.getName() + ")`");
    return false;
  }
  mlir::Location at = diagnostics.location(loc);
  mlir::Value where = condition->value;
  if (!condition->has("token")) { // the same for all tokens of a head
    Tensor keys = input(kvp::Input::Keys, current.cache, std::nullopt, at);
    where = mapTensor(Fn::And, {where, always(keys.value, "token", at)}, at);
  }
  llvm::SmallVector<mlir::NamedAttribute> attributes;
  if (reuse.layers > 1)
    attributes.push_back(emitter.integer("reuse", reuse.layers));
  mlir::Value cache = emitter.create<kvp::MaskOp>(at, {current.cache, where}, attributes);
  if (!cache)
    return false;
  selected(loc, "mask", "token", condition->has("head"), cache);
  current.selections.back().ragged = condition->has("head");
  return true;
}

//===------------------------------------------------------------------------------------------===//
// What is made of presses
//===------------------------------------------------------------------------------------------===//

bool Evaluator::applyReuse(const CallExpr &call, const Arguments &args, Env &env) {
  auto layers = staticInt(*args.values[1], env, call, "layers", 1);
  if (!layers)
    return false;
  if (reuse.layers) {
    error(call.callee.loc(), Diag::ReuseNested).note(reuse.loc, "the outer one is here");
    return false;
  }
  reuse = {*layers, call.callee.loc()};
  bool ok = apply(*args.values[0], env);
  reuse = {};
  return ok;
}

bool Evaluator::applyPhase(const CallExpr &call, const Builtin &builtin, const Arguments &args,
                           Env &env) {
  StringRef outer = !phase.empty() ? phase : runs.empty() ? StringRef() : runs.back();
  if (!outer.empty()) {
    error(call.callee.loc(), Diag::PhaseNested, builtin.name, outer);
    return false;
  }
  if (builtin.id == BuiltinId::Decode && !staticInt(*args.values[1], env, call, "every", 1))
    return false;
  if (builtin.id != BuiltinId::Prefill)
    notImplemented(call.callee.loc(), "`" + builtin.name + "`");
  phase = builtin.name;
  bool ok = apply(*args.values[0], env);
  phase = "";
  return ok;
}

bool Evaluator::applyRuns(const CallExpr &call, bool scan, const Arguments &args, Env &env) {
  StringRef what = scan ? "block" : "tokens";
  if (!staticInt(*args.values[1], env, call, what, 1))
    return false;
  if (scan && args.values[2]) {
    Value from = evaluate(*args.values[2], env);
    auto *host = from.as<Host>();
    if (!host || host->element != Element::Int)
      return typeError(*args.values[2], "`from` of `scan`", "an integer of the host", from), false;
  }
  notImplemented(call.callee.loc(), "`" + call.callee.text + "`");
  runs.push_back(scan ? "scan" : "each");
  bool ok = apply(*args.values[0], env);
  runs.pop_back();
  return ok;
}

bool Evaluator::applyUpdate(const CallExpr &call, const Arguments &args, Env &env) {
  CacheState before = current;
  if (!apply(*args.values[0], env))
    return false;
  if (!args.values[1] && !args.values[2]) {
    error(call.callee.loc(), Diag::UpdateNothing);
    return false;
  }
  auto outer = std::exchange(beforeUpdate, before);
  llvm::scope_exit restore([&] { beforeUpdate = outer; });
  for (int i : {1, 2}) {
    if (!args.values[i])
      continue;
    auto x = tensorOperand(*args.values[i], env, "update", false);
    if (!x)
      return false;
    if (x->type().getAxes().size() != 3 || !x->has("head") || !x->has("token") ||
        !x->has("channel")) {
      error(args.values[i]->loc(), Diag::UpdateAxes, i == 1 ? "keys" : "values", axesText(*x));
      return false;
    }
  }
  notImplemented(call.callee.loc(), "`update`");
  return true;
}
