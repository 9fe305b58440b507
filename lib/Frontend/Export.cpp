//===- Export.cpp - a declaration as a kvp.press operation ------------------------------------===//
#include "lib/Frontend/Export.h"

#include "lib/Frontend/Check.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

using namespace kvpc;
using llvm::StringRef;

/// One evaluation with the parameters known to be static so far.
struct Export::Round {
  Round(Export &e, mlir::MLIRContext *context)
      : env(std::make_shared<Env>()), blank(std::make_shared<Env>()) {
    mlir::OpBuilder builder(context);
    op = kvp::PressOp::create(builder, e.diagnostics.location(e.decl.name.loc()), e.decl.name.text,
                              spelling(e.decl.kind), /*doc=*/mlir::StringAttr(),
                              builder.getArrayAttr({}));
    block = &op->getBody().emplaceBlock();
    cache = block->addArgument(kvp::CacheType::get(context, 0), op->getLoc());
    emitter.emplace(block, context);
    evaluator.emplace(e.program, e.diagnostics, *emitter, cache);
    env->decl = &e.decl;
    env->file = blank->file = e.decl.file;
    parameters.resize(e.decl.params.size());
  }

  mlir::OwningOpRef<kvp::PressOp> op;
  mlir::Block *block;
  mlir::Value cache;
  std::optional<Emitter> emitter;
  std::optional<Evaluator> evaluator;
  std::shared_ptr<Env> env, blank;
  std::vector<mlir::Attribute> parameters; // of the header, in its order
};

ReadDefine *Export::define(StringRef param) {
  // The last one wins, and one for this press hides those for all.
  ReadDefine *forAll = nullptr, *forThis = nullptr;
  for (ReadDefine &d : defines)
    if (d.name == param && d.press.empty())
      forAll = &d;
    else if (d.name == param && d.press == decl.name.text)
      forThis = &d;
  return forThis ? forThis : forAll;
}

static bool isWeight(const Param &p) { return !p.axes.empty(); }
static bool isClosure(const Param &p) {
  return p.type == ParamType::Score || p.type == ParamType::Press;
}

std::vector<const Param *> Export::unset(bool allowRuntime) {
  std::vector<const Param *> out;
  for (const Param &p : decl.params) {
    bool runtime = !isClosure(p) && p.type != ParamType::Bool;
    if (!isWeight(p) && !p.defaultValue && !define(p.name.text) && !(allowRuntime && runtime))
      out.push_back(&p);
  }
  return out;
}

mlir::OwningOpRef<kvp::PressOp> Export::run() {
  mlir::MLIRContext *context = diagnostics.getContext();
  for (ReadDefine &d : defines) // a -D for one press hides the one for all
    for (const Param &p : decl.params)
      if (d.name == p.name.text && (d.press.empty() || d.press == decl.name.text))
        d.used = true;
  while (true) {
    // Until no more parameters prove to be static, the messages are not the last word.
    std::vector<mlir::Diagnostic> messages;
    bool ok;
    std::optional<Round> round;
    {
      mlir::ScopedDiagnosticHandler hold(context, [&](mlir::Diagnostic &d) {
        messages.push_back(std::move(d));
        return mlir::success();
      });
      round.emplace(*this, context);
      ok = evaluate(*round);
    }
    size_t before = statics.size() + wholes.size();
    for (unsigned p : round->evaluator->statics)
      statics.insert(p);
    for (unsigned p : round->evaluator->wholes)
      wholes.insert(p);
    if (statics.size() + wholes.size() != before)
      continue;
    for (mlir::Diagnostic &d : messages)
      context->getDiagEngine().emit(std::move(d));
    if (!ok)
      return {};
    return std::move(round->op);
  }
}

//===------------------------------------------------------------------------------------------===//
// Parameters
//===------------------------------------------------------------------------------------------===//

mlir::Attribute Export::attribute(const Value &value, const Param *param) {
  mlir::Builder b(diagnostics.getContext());
  if (auto *host = value.as<Host>(); host && host->known) {
    switch (host->known->element) {
    case Element::Bool:
      return b.getBoolAttr(host->known->truth());
    case Element::Int:
      return b.getI64IntegerAttr(host->known->integer);
    case Element::Float:
      return b.getF64FloatAttr(host->known->real);
    }
  }
  auto *budget = value.as<Budget>();
  if (budget && budget->amount.known) {
    bool keep = budget->kind == Budget::Kind::Keep;
    return b.getDictionaryAttr(
        b.getNamedAttr(keep ? "keep" : "drop", attribute(budget->amount, nullptr)));
  }
  auto *score = value.as<ScoreRef>();
  auto *press = value.as<PressRef>();
  const Closure *closure = score ? score->closure.get() : press ? press->closure.get() : nullptr;
  if (closure && closure->expr)
    return b.getStringAttr(closure->expr->text());
  return {};
}

void Export::describe(Round &round, const Param &p, bool isStatic, mlir::Attribute defaultValue,
                      mlir::Attribute value) {
  mlir::Builder b(diagnostics.getContext());
  llvm::SmallVector<mlir::NamedAttribute> entries{
      b.getNamedAttr("name", b.getStringAttr(p.name.text)),
      b.getNamedAttr("type", b.getStringAttr(spelling(p.type))),
      b.getNamedAttr("static", b.getBoolAttr(isStatic)),
      b.getNamedAttr("doc", b.getStringAttr(p.doc))};
  if (defaultValue)
    entries.push_back(b.getNamedAttr("default", defaultValue));
  if (isStatic && value)
    entries.push_back(b.getNamedAttr("value", value));
  auto bound = [&](const Expr *e) -> mlir::Attribute {
    auto *number = llvm::cast<NumberExpr>(e);
    if (p.type == ParamType::Int && number->isInt)
      return b.getI64IntegerAttr(number->integer);
    return b.getF64FloatAttr(number->real);
  };
  if (p.low)
    entries.push_back(b.getNamedAttr("min", bound(p.low)));
  if (p.high)
    entries.push_back(b.getNamedAttr("max", bound(p.high)));
  if (isWeight(p)) {
    auto axes = llvm::map_to_vector(p.axes, [](const Name &axis) { return axis.text; });
    entries.push_back(b.getNamedAttr("axes", b.getStrArrayAttr(axes)));
  }
  round.parameters[&p - decl.params.data()] = b.getDictionaryAttr(entries);
}

/// A value that the module fixes must be a number now.
static bool isConstant(const Value &value) {
  if (auto *host = value.as<Host>())
    return host->known.has_value();
  if (auto *budget = value.as<Budget>())
    return budget->amount.known.has_value();
  return value.as<ScoreRef>() || value.as<PressRef>();
}

static std::string whyNot(const Value &value) {
  if (auto *host = value.as<Host>())
    return host->runtime.empty() ? "this" : host->runtime;
  if (auto *budget = value.as<Budget>())
    return budget->amount.runtime.empty() ? "this" : budget->amount.runtime;
  return "this";
}

bool Export::bindOne(Round &round, unsigned index, const Param &p) {
  mlir::Builder b(diagnostics.getContext());
  Evaluator &evaluator = *round.evaluator;
  mlir::Location loc = diagnostics.location(p.loc());
  auto checked = [&](const Expr &expr, std::shared_ptr<Env> env) -> Value {
    Value value = evaluator.parameter(p, decl, expr, env);
    if (value.isPoison() || isConstant(value))
      return value;
    diagnostics.error(expr.loc(), Diag::DefaultConstant, p.name.text, whyNot(value));
    return Poison();
  };
  Value given;
  mlir::Attribute defaultAttribute;
  if (p.defaultValue) {
    given = checked(*p.defaultValue, round.blank);
    if (given.isPoison())
      return false;
    defaultAttribute = attribute(given, &p);
  }
  ReadDefine *fixed = define(p.name.text);
  if (fixed) {
    auto env = std::make_shared<Env>();
    env->file = &program.commandLine();
    given = checked(*fixed->value, env);
    if (given.isPoison())
      return false;
  }
  bool isStatic = fixed || isClosure(p) || p.type == ParamType::Bool || statics.count(index);
  bool known = fixed || p.defaultValue;
  if (isStatic && known) {
    describe(round, p, true, defaultAttribute, attribute(given, &p));
    round.env->values[p.name.text] = given;
    return true;
  }
  if (isClosure(p)) { // any score, any press
    auto closure = std::make_shared<Closure>();
    closure->subject = "`" + p.name.text.str() + "`";
    round.env->values[p.name.text] =
        p.type == ParamType::Score ? Value(ScoreRef{closure}) : Value(PressRef{closure});
    return true;
  }
  describe(round, p, false, defaultAttribute, {});
  if (p.type == ParamType::Budget) {
    Budget budget;
    budget.value = round.block->addArgument(kvp::BudgetType::get(b.getContext()), loc);
    budget.parameter = p.name.text.str();
    round.env->values[p.name.text] = budget;
    return true;
  }
  Host host;
  host.element = p.type == ParamType::Int    ? Element::Int
                 : p.type == ParamType::Bool ? Element::Bool
                                             : Element::Float;
  if (auto *constant = given.as<Host>())
    host.guess = constant->known;
  if (assume && !known) {
    // Any number in the range; what decides a shape must be some number.
    double low = p.low ? llvm::cast<NumberExpr>(p.low)->real : 1;
    host.guess = host.element == Element::Int    ? Number::of(std::max<int64_t>(low, 1))
                 : host.element == Element::Bool ? Number::of(true)
                 : p.type == ParamType::Fraction ? Number::of(0.5)
                                                 : Number::of(low);
    if (statics.count(index) || host.element == Element::Bool) {
      host.known = host.guess;
      round.env->values[p.name.text] = host;
      return true;
    }
  }
  host.value = round.block->addArgument(
      host.element == Element::Int ? mlir::Type(b.getI64Type()) : b.getF64Type(), loc);
  host.params.push_back(index);
  Range range;
  if (p.type == ParamType::Fraction)
    range = {0.0, 1.0, /*open=*/true};
  if (p.low)
    range.low = llvm::cast<NumberExpr>(p.low)->real;
  if (p.high && !range.high)
    range.high = llvm::cast<NumberExpr>(p.high)->real;
  host.range = range;
  round.env->values[p.name.text] = host;
  return true;
}

bool Export::bindRuntime(Round &round) {
  mlir::Builder b(diagnostics.getContext());
  bool ok = true;
  for (auto [i, p] : llvm::enumerate(decl.params)) {
    if (!isWeight(p)) {
      ok &= bindOne(round, i, p);
      continue;
    }
    // One number for each layer is a scalar of the call, which sizes may depend on.
    if (p.axes.size() != 1 || p.axes[0].text != "layer")
      continue;
    describe(round, p, false, {}, {});
    Host host;
    bool integer = p.type == ParamType::Int || p.type == ParamType::Bool;
    host.element = integer ? Element::Int : Element::Float;
    host.value = round.block->addArgument(integer ? mlir::Type(b.getI64Type()) : b.getF64Type(),
                                          diagnostics.location(p.loc()));
    host.runtime = "`" + p.name.text.str() + "`";
    host.perLayer = true;
    if (p.type == ParamType::Fraction)
      host.range = Range{0.0, 1.0, /*open=*/true};
    if (p.type == ParamType::Bool) {
      mlir::Value zero = round.emitter->constant(host.value.getLoc(), Number::of(int64_t(0)));
      host.value = round.emitter->map(host.value.getLoc(), kvp::Fn::Ne, {host.value, zero});
      host.element = Element::Bool;
    }
    round.env->values[p.name.text] = host;
  }
  return ok;
}

bool Export::bindWeights(Round &round) {
  mlir::Builder b(diagnostics.getContext());
  for (auto [index, p] : llvm::enumerate(decl.params)) {
    if (!isWeight(p) || (p.axes.size() == 1 && p.axes[0].text == "layer"))
      continue;
    describe(round, p, false, {}, {});
    bool layered = llvm::any_of(p.axes, [](const Name &axis) { return axis.text == "layer"; });
    bool whole = wholes.contains(index);
    llvm::SmallVector<kvp::AxisAttr> axes;
    for (const Name &axis : p.axes)
      if (axis.text != "layer" || whole)
        axes.push_back(kvp::AxisAttr::get(b.getContext(), axis.text, kvp::AxisAttr::kDynamic, 0));
    mlir::Location loc = diagnostics.location(p.loc());
    Tensor weight;
    weight.value = round.block->addArgument(
        kvp::NamedTensorType::get(b.getContext(), axes, b.getF32Type()), loc);
    if (p.type == ParamType::Int)
      weight.value = round.emitter->map(loc, kvp::Fn::Int, weight.value);
    if (p.type == ParamType::Bool) {
      mlir::Value zero = round.emitter->constant(loc, Number::of(int64_t(0)));
      weight.value = round.emitter->map(loc, kvp::Fn::Ne, {weight.value, zero});
    }
    if (layered) {
      auto layers = std::make_shared<Layers>();
      layers->params = {unsigned(index)};
      if (whole) {
        layers->whole = weight.value;
        weight.value = round.evaluator->thisLayer(weight.value, loc);
      }
      layers->slice = weight.value;
      weight.layers = layers;
    }
    round.env->values[p.name.text] = weight;
  }
  return true;
}

/// What the press of a score keeps: the score's own parameter `budget`, or one that is added.
Budget Export::bindScoreBudget(Round &round) {
  mlir::Builder b(diagnostics.getContext());
  if (auto *own = round.env->values["budget"].as<Budget>())
    return *own;
  round.env->values.erase("budget");
  Budget half;
  half.kind = Budget::Kind::Drop;
  half.amount = Host::number(Number::of(0.5));
  auto entry = [&](bool isStatic, mlir::Attribute value) {
    llvm::SmallVector<mlir::NamedAttribute> entries{
        b.getNamedAttr("name", b.getStringAttr("budget")),
        b.getNamedAttr("type", b.getStringAttr("budget")),
        b.getNamedAttr("static", b.getBoolAttr(isStatic)),
        b.getNamedAttr("doc", b.getStringAttr("How much of the cache stays.")),
        b.getNamedAttr("default", attribute(half, nullptr))};
    if (value)
      entries.push_back(b.getNamedAttr("value", value));
    round.parameters.push_back(b.getDictionaryAttr(entries));
  };
  if (ReadDefine *fixed = define("budget")) {
    fixed->used = true;
    static const Param added = [] {
      Param p;
      p.name = {"budget"};
      p.type = ParamType::Budget;
      return p;
    }();
    auto env = std::make_shared<Env>();
    env->file = &program.commandLine();
    Value value = round.evaluator->parameter(added, decl, *fixed->value, env);
    if (auto *budget = value.as<Budget>()) {
      entry(true, attribute(value, nullptr));
      return *budget;
    }
    return half;
  }
  Budget budget;
  budget.value = round.block->addArgument(kvp::BudgetType::get(b.getContext()),
                                          diagnostics.location(decl.name.loc()));
  budget.parameter = "budget";
  entry(false, {});
  return budget;
}

//===------------------------------------------------------------------------------------------===//
// One evaluation
//===------------------------------------------------------------------------------------------===//

/// Constants, inputs and the like that were made on the way and led nowhere.
static void eraseDead(mlir::Block &block) {
  for (mlir::Operation &op : llvm::make_early_inc_range(llvm::reverse(block)))
    if (mlir::isOpTriviallyDead(&op))
      op.erase();
}

/// Queries of which only the number is asked need not be given where the others are.
static void shareQueries(mlir::Block &block) {
  auto asked = [](kvp::InputOp op) {
    return llvm::all_of(op->getUsers(), [](mlir::Operation *user) {
      return llvm::isa<kvp::IndexOp, kvp::ExtentOp>(user);
    });
  };
  llvm::SmallVector<kvp::InputOp> inputs;
  for (auto op : block.getOps<kvp::InputOp>())
    if (op.getInput() == kvp::Input::Queries || op.getInput() == kvp::Input::Unrotated_queries)
      inputs.push_back(op);
  for (kvp::InputOp op : inputs)
    for (kvp::InputOp other : inputs)
      if (other.getInput() != op.getInput() && other.getLast() == op.getLast() &&
          other.getCache() == op.getCache() && asked(op) && !asked(other)) {
        if (op->isBeforeInBlock(other))
          other->moveBefore(op);
        op.replaceAllUsesWith(other.getResult());
        op.erase();
        return shareQueries(block);
      }
}

/// Kernels do not see hidden states yet, which a program is told where nothing made them needless.
static bool refuseInputs(mlir::Block &block) {
  bool refused = false;
  for (auto op : block.getOps<kvp::InputOp>()) {
    if (op.getInput() != kvp::Input::Hidden)
      continue;
    mlir::emitError(op.getLoc())
        << llvm::formatv(false, diagnosticFormat(Diag::NotImplemented), "`hidden`").str() << " ["
        << diagnosticCode(Diag::NotImplemented) << "]";
    refused = true;
  }
  return refused;
}

bool Export::evaluate(Round &round) {
  mlir::Builder b(diagnostics.getContext());
  bool isScore = decl.kind == DeclKind::Score;
  const Param *own = isScore ? decl.findParam("budget") : nullptr;
  if (own && own->type != ParamType::Budget) {
    diagnostics.error(own->typeName.loc(), Diag::BudgetParam, decl.name.text);
    return false;
  }
  if (!bindRuntime(round))
    return false;
  Budget budget;
  if (isScore)
    budget = bindScoreBudget(round);
  bindWeights(round);
  Evaluator &evaluator = *round.evaluator;
  bool ok =
      isScore ? evaluator.runScore(decl, round.env, budget) : evaluator.runPress(decl, round.env);
  ok = evaluator.finish() && ok;
  if (!ok)
    return false;
  std::vector<mlir::Attribute> parameters;
  llvm::copy_if(round.parameters, std::back_inserter(parameters),
                [](mlir::Attribute a) { return bool(a); });
  round.op->setParametersAttr(b.getArrayAttr(parameters));
  if (!decl.doc.empty())
    round.op->setDocAttr(b.getStringAttr(decl.doc));
  mlir::OpBuilder builder(b.getContext());
  builder.setInsertionPointToEnd(round.block);
  mlir::Value score, protect;
  if (evaluator.firstScore) {
    score = evaluator.firstScore->value;
    protect = evaluator.firstScore->protect;
  }
  kvp::ReturnOp::create(builder, round.op->getLoc(), evaluator.state().cache, score, protect);
  eraseDead(*round.block);
  shareQueries(*round.block);
  return !refuseInputs(*round.block);
}
