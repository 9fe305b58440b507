//===- Evaluator.cpp - messages, host scalars, and the way in ---------------------------------===//
#include "lib/Frontend/Evaluator.h"

#include "llvm/ADT/ScopeExit.h"

using namespace kvpc;
using llvm::StringRef;

const Selection *CacheState::misaligned(StringRef axis) const {
  for (const Selection &s : llvm::reverse(selections))
    if (s.axis == axis && s.perHead)
      return &s;
  return nullptr;
}

const Selection *CacheState::ragged() const {
  for (const Selection &s : llvm::reverse(selections))
    if (s.ragged)
      return &s;
  return nullptr;
}

const Selection *CacheState::last(StringRef axis) const {
  for (const Selection &s : llvm::reverse(selections))
    if (s.axis == axis)
      return &s;
  return nullptr;
}

Evaluator::Evaluator(Program &program, Diagnostics &diagnostics, Emitter &emitter,
                     mlir::Value cache)
    : program(program), diagnostics(diagnostics), emitter(emitter) {
  current.cache = cache;
}

//===------------------------------------------------------------------------------------------===//
// Messages
//===------------------------------------------------------------------------------------------===//

bool Evaluator::firstTime(llvm::SMLoc loc, const std::string &text) {
  return told.insert(std::to_string(reinterpret_cast<uintptr_t>(loc.getPointer())) + text).second;
}

Evaluator::Report &Evaluator::Report::note(llvm::SMLoc at, const llvm::Twine &text) {
  if (diag)
    diag->attachNote(evaluator.at(at)) << oneLine(text.str());
  return *this;
}

/// Whether the place stands in the text of the declaration.
static bool contains(const Decl &decl, llvm::SMLoc loc) {
  const char *p = loc.getPointer(), *end = decl.result->range.End.getPointer();
  return p >= decl.keyword.getPointer() && p <= end;
}

Evaluator::Report::~Report() {
  if (!diag)
    return;
  // From the declaration with the place outwards, how it was reached.
  auto &frames = evaluator.frames;
  size_t inner = frames.size();
  while (inner > 0 && !contains(*frames[inner - 1].decl, loc))
    --inner;
  unsigned notes = 0;
  for (size_t i = inner ? inner : frames.size(); i-- > 1 && notes < 4; ++notes)
    if (frames[i].call.isValid())
      diag->attachNote(evaluator.at(frames[i].call))
          << "`" << frames[i].decl->name.text << "` is used here";
}

void Evaluator::notImplemented(llvm::SMLoc loc, const llvm::Twine &what) {
  std::string text = what.str();
  if (llvm::none_of(missing, [&](auto &m) { return m.second == text; }))
    missing.push_back({loc, text});
}

bool Evaluator::finish() {
  if (errors)
    return false;
  for (auto &[loc, what] : missing)
    diagnostics.error(loc, Diag::NotImplemented, what);
  return missing.empty();
}

std::string Evaluator::shown(const Expr &expr) {
  StringRef text = expr.text();
  if (text.size() > 48 || text.contains('\n'))
    return "this value";
  return "`" + text.str() + "`";
}

std::string Evaluator::describe(const Value &value) {
  if (auto *host = value.as<Host>()) {
    static constexpr const char *names[] = {"a condition", "an integer", "a number"};
    return names[static_cast<int>(host->element)];
  }
  if (auto *tensor = value.as<Tensor>())
    return tensor->element() == Element::Bool ? "a tensor of conditions" : "a tensor";
  if (value.as<Budget>())
    return "a budget";
  return value.as<PressRef>() ? "a press" : "a score";
}

Value Evaluator::typeError(const Expr &operand, StringRef op, StringRef wanted, const Value &got) {
  if (!got.isPoison())
    error(operand.loc(), Diag::Type, op, wanted, shown(operand), describe(got));
  return Poison();
}

//===------------------------------------------------------------------------------------------===//
// Host scalars
//===------------------------------------------------------------------------------------------===//

mlir::Value Evaluator::get(const Host &host, mlir::Location loc) {
  return host.value ? host.value : emitter.constant(loc, *host.known);
}

Host Evaluator::runtimeHost(Element element, mlir::Value value, std::string reason) {
  Host host;
  host.element = element;
  host.value = value;
  host.runtime = std::move(reason);
  return host;
}

static mlir::Type hostType(mlir::Builder &b, Element element) {
  if (element == Element::Float)
    return b.getF64Type();
  return element == Element::Int ? b.getI64Type() : b.getI1Type();
}

/// The dialect's own semantics on numbers.
std::optional<Number> Evaluator::fold(kvp::Fn fn, llvm::ArrayRef<Number> in, Element result) {
  using kvp::Fn;
  auto reals = llvm::map_to_vector(in, [](const Number &n) { return n.real; });
  switch (fn) {
  case Fn::And:
    return Number::of(in[0].truth() && in[1].truth());
  case Fn::Or:
    return Number::of(in[0].truth() || in[1].truth());
  case Fn::Not:
    return Number::of(!in[0].truth());
  case Fn::Lt:
  case Fn::Le:
  case Fn::Eq:
  case Fn::Ne:
    return Number::of(kvp::evaluateCompare(fn, reals[0], reals[1]));
  case Fn::Where: {
    const Number &chosen = in[0].truth() ? in[1] : in[2];
    return result == Element::Float ? Number::of(chosen.real) : chosen;
  }
  default:
    break;
  }
  if (result == Element::Float)
    return Number::of(kvp::evaluateFloat(fn, reals));
  if (llvm::any_of(in, [](const Number &n) { return n.element == Element::Float; }))
    return Number::of(kvp::floatToInt(fn, reals[0]));
  return Number::of(
      kvp::evaluateInt(fn, llvm::map_to_vector(in, [](const Number &n) { return n.integer; })));
}

Host Evaluator::mapHost(kvp::Fn fn, llvm::ArrayRef<Host> operands, mlir::Location loc) {
  Host out;
  mlir::Builder &b = emitter.attributes();
  auto types = llvm::map_to_vector(operands, [&](const Host &h) { return hostType(b, h.element); });
  out.element = elementOf(kvp::inferMapType(b.getContext(), fn, types));
  llvm::SmallVector<Number> known, guess;
  for (const Host &h : operands) {
    if (h.known)
      known.push_back(*h.known);
    if (h.guess)
      guess.push_back(*h.guess);
    for (unsigned p : h.params)
      if (!llvm::is_contained(out.params, p))
        out.params.push_back(p);
    if (out.runtime.empty())
      out.runtime = h.runtime;
    if (!out.binding)
      out.binding = h.binding;
    out.perLayer |= h.perLayer;
  }
  if (guess.size() == operands.size())
    out.guess = fold(fn, guess, out.element);
  if (known.size() == operands.size())
    out.known = fold(fn, known, out.element);
  else
    out.value = emitter.map(
        loc, fn, llvm::map_to_vector(operands, [&](const Host &h) { return get(h, loc); }));
  return out;
}

Host Evaluator::toFloat(const Host &host, mlir::Location loc) {
  return host.element == Element::Float ? host : mapHost(kvp::Fn::Float, host, loc);
}

Host Evaluator::dim(kvp::Dim dim, mlir::Location loc) {
  if (dim == kvp::Dim::Groups) { // only queries have them, so the host is asked for one
    Tensor queries = input(kvp::Input::Queries, current.cache, 1, loc);
    auto groups = emitter.createAs<kvp::ExtentOp>(loc, emitter.i64(), queries.value,
                                                  emitter.string("axis", "group"));
    return runtimeHost(Element::Int, groups, "`groups`");
  }
  auto value = emitter.createAs<kvp::DimOp>(
      loc, emitter.i64(), current.cache,
      emitter.named("dim", kvp::DimAttr::get(emitter.getContext(), dim)));
  Host host = runtimeHost(Element::Int, value, "`" + stringifyDim(dim).str() + "`");
  host.perLayer = dim == kvp::Dim::Layer;
  return host;
}

std::optional<Number> Evaluator::takeStatic(const Value &value, const Expr &expr, llvm::SMLoc use,
                                            StringRef op, Element element) {
  auto *host = value.as<Host>();
  if (!host || host->element > element) {
    typeError(expr, op, element == Element::Int ? "an integer" : "a condition", value);
    return std::nullopt;
  }
  if (host->known)
    return host->known;
  if (host->runtime.empty() && host->guess) {
    statics.insert_range(host->params);
    return host->guess;
  }
  std::string why = host->runtime.empty() ? "a parameter without a default" : host->runtime;
  if (host->binding) {
    error(host->binding->argument, Diag::ParamStatic, host->binding->param, host->binding->decl,
          why)
        .note(use, "it decides a shape here");
    return std::nullopt;
  }
  error(expr.loc(), Diag::ValueStatic, op, why).note(use, "it decides a shape here");
  return std::nullopt;
}

std::optional<int64_t> Evaluator::staticInt(const Expr &expr, Env &env, const CallExpr &call,
                                            StringRef what, int64_t least) {
  Value value = evaluate(expr, env);
  if (value.isPoison())
    return std::nullopt;
  std::string op = "`" + what.str() + "` of `" + call.callee.text.str() + "`";
  auto number = takeStatic(value, expr, call.callee.loc(), op, Element::Int);
  if (!number)
    return std::nullopt;
  if (number->element == Element::Bool)
    return typeError(expr, op, "an integer", value), std::nullopt;
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (number->integer >= least && number->integer <= most)
    return number->integer;
  bool few = number->integer < least;
  error(expr.loc(), few ? Diag::SizeRange : Diag::SizeLimit, op, few ? least : most,
        number->integer);
  return std::nullopt;
}

//===------------------------------------------------------------------------------------------===//
// The way in
//===------------------------------------------------------------------------------------------===//

bool Evaluator::runPress(const Decl &decl, std::shared_ptr<Env> env) {
  frames.push_back({&decl, {}});
  return statements(decl, *env) && apply(*decl.result, *env);
}

bool Evaluator::runScore(const Decl &decl, std::shared_ptr<Env> env, const Budget &budget) {
  frames.push_back({&decl, {}});
  if (!statements(decl, *env))
    return false;
  Value value = finishScore(decl, evaluate(*decl.result, *env));
  auto *score = value.as<Tensor>();
  return score && select(*score, budget, decl.name.loc(), "score `" + decl.name.text.str() + "`",
                         Together());
}

void Evaluator::runFn(const Decl &decl, std::shared_ptr<Env> env) {
  frames.push_back({&decl, {}});
  if (statements(decl, *env))
    evaluate(*decl.result, *env);
}
