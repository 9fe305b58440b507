//===- Check.cpp - names and kinds, before anything is evaluated ------------------------------===//
#include "lib/Frontend/Check.h"

#include "lib/Frontend/Builtins.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallPtrSet.h"

using namespace kvpc;
using llvm::dyn_cast;
using llvm::isa;
using llvm::StringRef;

//===------------------------------------------------------------------------------------------===//
// Kinds
//===------------------------------------------------------------------------------------------===//

static const Statement *findLet(const Decl &decl, StringRef name) {
  auto it = llvm::find_if(decl.statements,
                          [&](const Statement &s) { return s.isLet && s.name.text == name; });
  return it == decl.statements.end() ? nullptr : &*it;
}

/// Whether `x.f(...)` is an operation of budgets and queries alone, not a declared function.
static bool isBudget(Program &program, const Expr &expr, const Decl *decl) {
  const Expr *e = strip(&expr);
  if (auto *name = dyn_cast<NameExpr>(e)) {
    if (!decl)
      return false;
    if (const Param *p = decl->findParam(name->name.text))
      return p->type == ParamType::Budget;
    const Statement *let = findLet(*decl, name->name.text);
    return let && let->value->loc().getPointer() < e->loc().getPointer() &&
           isBudget(program, *let->value, decl);
  }
  auto *call = dyn_cast<CallExpr>(e);
  return call && (call->callee.text == "drop" || call->callee.text == "keep");
}

static ExprKind kindWithin(Program &program, const Expr &expr, const Decl *decl, const File &file,
                           unsigned depth) {
  const Expr *e = strip(&expr);
  if (depth > 64)
    return ExprKind::Unknown; // a cycle, reported elsewhere
  if (auto *name = dyn_cast<NameExpr>(e)) {
    if (!decl)
      return ExprKind::Value;
    if (const Param *p = decl->findParam(name->name.text))
      return p->type == ParamType::Press   ? ExprKind::Press
             : p->type == ParamType::Score ? ExprKind::Score
                                           : ExprKind::Value;
    const Statement *let = findLet(*decl, name->name.text);
    if (let && let->value->loc().getPointer() < e->loc().getPointer())
      return kindWithin(program, *let->value, decl, file, depth + 1);
    return ExprKind::Value;
  }
  auto *call = dyn_cast<CallExpr>(e);
  if (!call)
    return ExprKind::Value;
  if (const Builtin *b = findBuiltin(call->callee.text); b && !b->methodOnly)
    return b->isPress() ? ExprKind::Press : ExprKind::Value;
  const Decl *callee = program.find(call->callee.text, file);
  if (!callee)
    return ExprKind::Unknown;
  if (callee->kind == DeclKind::Score)
    return ExprKind::Score;
  if (callee->kind == DeclKind::Press)
    return ExprKind::Press;
  ExprKind kind = kindWithin(program, *callee->result, callee, *callee->file, depth + 1);
  return kind == ExprKind::Score ? ExprKind::Value : kind;
}

ExprKind kvpc::kindOf(Program &program, const Expr &expr, const Decl *decl, const File &file) {
  return kindWithin(program, expr, decl, file, 0);
}

StringRef kvpc::describeKind(Program &program, const Expr &expr, const Decl *decl,
                             const File &file) {
  const Expr *e = strip(&expr);
  switch (kindOf(program, expr, decl, file)) {
  case ExprKind::Score:
    return "a score";
  case ExprKind::Press:
    return "a press";
  default:
    if (isBudget(program, expr, decl))
      return "a budget";
    if (isa<AxesExpr>(e))
      return "a list of axes";
    return isa<NumberExpr>(e) ? "a number" : "a value";
  }
}

//===------------------------------------------------------------------------------------------===//
// Names and arguments
//===------------------------------------------------------------------------------------------===//

namespace {

class Checker {
public:
  Checker(Program &program, const File &file, Diagnostics &diagnostics)
      : program(program), file(file), diagnostics(diagnostics) {}

  void check(const Decl &d) {
    decl = &d;
    visible.clear();
    if (findBuiltin(d.name.text) && !findBuiltin(d.name.text)->methodOnly)
      diagnostics.error(d.name.loc(), Diag::ShadowsOperation, d.name.text);
    for (const Param &p : d.params)
      param(p);
    for (const Statement &s : d.statements) {
      ExprKind kind = expr(*s.value);
      if (s.isLet)
        declare(s.name, s.loc);
      else if (kind == ExprKind::Press)
        valueExpected(*s.value, "`require`");
    }
    ExprKind kind = expr(*d.result);
    if (d.kind == DeclKind::Press && (kind == ExprKind::Value || kind == ExprKind::Score))
      pressExpected(*d.result, "the body of press `" + d.name.text.str() + "`");
    if (d.kind == DeclKind::Score && kind == ExprKind::Press)
      valueExpected(*d.result, "the body of score `" + d.name.text.str() + "`");
  }

  void checkLone(const Expr &e, bool wantPress, StringRef parameter) {
    decl = nullptr;
    ExprKind kind = expr(e);
    if (wantPress && kind != ExprKind::Press && kind != ExprKind::Unknown)
      pressExpected(e, "`" + parameter.str() + "`");
    if (!wantPress && kind == ExprKind::Press)
      valueExpected(e, "`" + parameter.str() + "`");
  }

private:
  void note(mlir::InFlightDiagnostic &diag, llvm::SMLoc loc, const llvm::Twine &text) {
    diag.attachNote(diagnostics.location(loc)) << oneLine(text.str());
  }

  void didYouMean(mlir::InFlightDiagnostic &diag, Name name,
                  const std::vector<StringRef> &candidates) {
    if (StringRef near = nearest(name.text, candidates); !near.empty())
      note(diag, name.loc(), "did you mean `" + near + "`");
  }

  /// Axes that exist without being named: the program is about one row, and layers and steps are
  /// reduced, never spread.
  void newAxis(Name axis) {
    static constexpr StringRef hidden[] = {"batch", "layer", "step"};
    if (!llvm::is_contained(hidden, axis.text))
      return;
    auto diag = diagnostics.error(axis.loc(), Diag::AxisHidden, axis.text);
    if (axis.text == "batch")
      note(diag, axis.loc(), "a program is about one row of the batch");
  }

  /// A parameter or a let: one name, once, and not that of a value which every program sees.
  void declare(Name name, llvm::SMLoc loc) {
    if (llvm::is_contained(hostValues(), name.text)) {
      diagnostics.error(name.loc(), Diag::ShadowsValue, name.text);
      return;
    }
    auto [it, isNew] = visible.try_emplace(name.text, name.loc());
    if (isNew)
      return;
    auto diag = diagnostics.error(name.loc(), Diag::Duplicate, name.text);
    note(diag, it->second, "first declared here");
  }

  void param(const Param &p) {
    if (p.type == ParamType::Tensor && decl->kind != DeclKind::Fn)
      diagnostics.error(p.typeName.loc(), Diag::TensorParam, p.name.text);
    if (!p.axes.empty()) {
      if (decl->kind == DeclKind::Fn)
        diagnostics.error(p.typeName.loc(), Diag::WeightParam, p.name.text);
      if (p.defaultValue)
        diagnostics.error(p.defaultValue->loc(), Diag::WeightDefault, p.name.text);
      static constexpr StringRef ofTheCall[] = {"token", "query", "part", "slot", "gone", "step"};
      for (const Name &axis : p.axes) {
        if (llvm::is_contained(ofTheCall, axis.text.rtrim('\'')))
          diagnostics.error(axis.loc(), Diag::WeightAxis, p.name.text, axis.text);
        else if (axis.text != "layer")
          newAxis(axis);
      }
      for (auto [i, axis] : llvm::enumerate(p.axes))
        for (const Name &other : llvm::ArrayRef(p.axes).take_front(i))
          if (other.text == axis.text) {
            auto diag = diagnostics.error(axis.loc(), Diag::AxisTwice, axis.text);
            note(diag, other.loc(), "first here");
          }
    }
    bool number =
        p.type == ParamType::Int || p.type == ParamType::Float || p.type == ParamType::Fraction;
    if (p.hasRange) {
      if (!number)
        diagnostics.error(p.rangeLoc, Diag::RangeType, p.name.text, spelling(p.type));
      auto *low = p.low ? dyn_cast<NumberExpr>(p.low) : nullptr;
      auto *high = p.high ? dyn_cast<NumberExpr>(p.high) : nullptr;
      if (low && high && low->real > high->real)
        diagnostics.error(p.rangeLoc, Diag::RangeEmpty, low->text(), high->text());
    }
    // A default sees no parameter: it must mean the same wherever the press is called from.
    if (p.defaultValue) {
      auto hidden = std::move(visible);
      visible.clear();
      argument(*p.defaultValue, p, "the default of `" + p.name.text.str() + "`");
      visible = std::move(hidden);
    }
    declare(p.name, p.loc());
  }

  /// What is given for a declared parameter.
  void argument(const Expr &e, const Param &p, const std::string &subject) {
    ExprKind kind = expr(e);
    if (p.type == ParamType::Press) {
      if (kind == ExprKind::Value || kind == ExprKind::Score)
        pressExpected(e, subject);
    } else if (kind == ExprKind::Press) {
      if (p.type != ParamType::Score)
        return valueExpected(e, subject);
      diagnostics.error(e.loc(), Diag::ScoreExpected, subject, e.text());
    }
  }

  void pressExpected(const Expr &e, const std::string &subject) {
    auto diag = diagnostics.error(e.loc(), Diag::PressExpected, subject, e.text(),
                                  describeKind(program, e, decl, file));
    StringRef text = e.text();
    bool bare = isa<NameExpr>(e) || isa<CallExpr>(e) || isa<ParenExpr>(e);
    if (!isBudget(program, e, decl) && !isa<NumberExpr>(e))
      note(diag, e.loc(),
           "select from it: `" + (bare ? text.str() : "(" + text.str() + ")") +
               " |> topk(drop(0.5))`");
  }

  void valueExpected(const Expr &e, const std::string &subject) {
    diagnostics.error(e.loc(), Diag::ValueExpected, subject, e.text());
  }

  ExprKind expr(const Expr &whole) {
    const Expr &e = *strip(&whole);
    if (auto *name = dyn_cast<NameExpr>(&e)) {
      if (!value(*name))
        return ExprKind::Unknown;
    } else if (auto *call = dyn_cast<CallExpr>(&e)) {
      checkCall(*call);
    } else if (auto *unary = dyn_cast<UnaryExpr>(&e)) {
      operand(*unary->operand, unary->op.text);
    } else if (auto *binary = dyn_cast<BinaryExpr>(&e)) {
      operand(*binary->lhs, binary->op.text);
      operand(*binary->rhs, binary->op.text);
    } else if (auto *axes = dyn_cast<AxesExpr>(&e)) {
      diagnostics.error(axes->loc(), Diag::AxesNotAValue, axes->text());
    } else if (isa<ErrorExpr>(e)) {
      return ExprKind::Unknown;
    }
    return kindOf(program, e, decl, file);
  }

  void operand(const Expr &e, StringRef op) {
    if (expr(e) == ExprKind::Press)
      valueExpected(e, "`" + op.str() + "`");
  }

  bool value(const NameExpr &e) {
    StringRef text = e.name.text;
    if (visible.count(text) || llvm::is_contained(hostValues(), text))
      return true;
    unknownValue(e, text);
    return false;
  }

  void unknownValue(const NameExpr &e, StringRef text) {
    auto diag = diagnostics.error(e.loc(), Diag::NameUnknown, text);
    if (const Statement *let = decl ? findLet(*decl, text) : nullptr)
      return note(diag, let->name.loc(), "`" + text + "` is computed only here, further down");
    if (const Decl *callable = program.find(text, file))
      return note(diag, e.loc(),
                  "`" + text + "` is a " + spelling(callable->kind) + ": write `" + text + "()`");
    if (isKnownAxis(text))
      return note(diag, e.loc(), "`" + text + "` is an axis; its index is `index(" + text + ")`");
    std::vector<StringRef> names(hostValues());
    for (auto &entry : visible)
      names.push_back(entry.getKey());
    llvm::sort(names);
    didYouMean(diag, e.name, names);
  }

  void checkCall(const CallExpr &call) {
    StringRef name = call.callee.text;
    const Builtin *builtin = findBuiltin(name);
    if (builtin && builtin->methodOnly) {
      bool budget = builtin->id == BuiltinId::Of || builtin->id == BuiltinId::Share;
      bool here = call.base &&
                  (!budget || isBudget(program, *call.base, decl) || !program.find(name, file));
      if (!here)
        builtin = nullptr;
    }
    if (call.style == CallExpr::Style::Member && !(builtin && builtin->methodOnly)) {
      if (call.base)
        expr(*call.base);
      auto diag = diagnostics.error(call.callee.loc(), Diag::MemberUnknown, name);
      if (builtin || program.find(name, file))
        note(diag, call.callee.loc(), "write `" + name + "(...)`");
      else
        didYouMean(diag, call.callee, {"unrotated", "last", "of", "share"});
      return;
    }
    if (builtin)
      return checkBuiltin(call, *builtin);
    if (const Decl *callee = program.find(name, file))
      return checkDecl(call, *callee);
    unknownCallee(call);
    if (call.base)
      expr(*call.base);
    for (const Argument &a : call.args)
      if (a.value && !isa<NameExpr>(strip(a.value)) && !isa<AxesExpr>(a.value))
        expr(*a.value);
  }

  void unknownCallee(const CallExpr &call) {
    StringRef name = call.callee.text;
    auto diag = diagnostics.error(call.callee.loc(), Diag::CallableUnknown, name);
    if (visible.count(name))
      return note(diag, call.callee.loc(),
                  "`" + name + "` is a value here and takes no arguments: write `" + name + "`");
    std::vector<StringRef> names = program.callables(file);
    for (const Builtin &b : builtins())
      if (!b.methodOnly || call.base)
        names.push_back(b.name);
    didYouMean(diag, call.callee, names);
  }

  void checkBuiltin(const CallExpr &call, const Builtin &builtin) {
    Arguments args;
    bool bound = bindArguments(call, builtin, &diagnostics, args);
    if (!bound && args.values.empty())
      return;
    for (auto [i, p] : llvm::enumerate(builtin.params)) {
      const Expr *e = args.values[i];
      if (!e)
        continue;
      std::string subject = "`" + p.name.str() + "` of `" + builtin.name.str() + "`";
      if (p.kind == ArgumentKind::Value) {
        if (expr(*e) == ExprKind::Press)
          valueExpected(*e, subject);
      } else if (p.kind == ArgumentKind::Press) {
        press(*e, subject);
      } else if (auto *axes = dyn_cast<AxesExpr>(e)) {
        bool over = builtin.id == BuiltinId::Topk; // names axes, makes none
        for (const AxesExpr::Item &item : axes->items) {
          if (!over)
            newAxis(item.axis);
          if (item.size)
            expr(*item.size);
        }
      } else if (p.kind == ArgumentKind::AxisOrList && !isa<NameExpr>(e)) {
        diagnostics.error(e->loc(), Diag::AxisExpected, builtin.name, e->text());
      }
    }
    if (args.to)
      newAxis(args.to);
    for (auto [i, e] : llvm::enumerate(args.presses))
      press(*e, "argument " + std::to_string(i + 1) + " of `" + builtin.name.str() + "`");
  }

  void press(const Expr &e, const std::string &subject) {
    ExprKind kind = expr(e);
    if (kind == ExprKind::Value || kind == ExprKind::Score)
      pressExpected(e, subject);
  }

  void checkDecl(const CallExpr &call, const Decl &callee) {
    Arguments args;
    bool bound = bindArguments(call, callee, &diagnostics, args);
    if (!bound && args.values.empty())
      return;
    for (auto [i, p] : llvm::enumerate(callee.params))
      if (args.values[i])
        argument(*args.values[i], p,
                 "`" + p.name.text.str() + "` of `" + callee.name.text.str() + "`");
  }

  Program &program;
  const File &file;
  Diagnostics &diagnostics;
  const Decl *decl = nullptr;
  llvm::StringMap<llvm::SMLoc> visible;
};

//===------------------------------------------------------------------------------------------===//
// Cycles
//===------------------------------------------------------------------------------------------===//

/// Finds declarations that call themselves: programs are evaluated by inlining.
class Cycles {
public:
  Cycles(Program &program, Diagnostics &diagnostics) : program(program), diagnostics(diagnostics) {}

  void visit(const Decl &d) {
    if (!done.insert(&d).second)
      return;
    path.push_back(&d);
    for (const Param &p : d.params)
      if (p.defaultValue)
        expr(*p.defaultValue, d);
    for (const Statement &s : d.statements)
      expr(*s.value, d);
    expr(*d.result, d);
    path.pop_back();
  }

private:
  void expr(const Expr &e, const Decl &in) {
    if (auto *call = dyn_cast<CallExpr>(&e)) {
      if (call->base)
        expr(*call->base, in);
      for (const Argument &a : call->args)
        if (a.value)
          expr(*a.value, in);
      const Builtin *b = findBuiltin(call->callee.text);
      if (b && (!b->methodOnly || (call->base && isBudget(program, *call->base, &in))))
        return;
      if (const Decl *callee = program.find(call->callee.text, *in.file))
        edge(*call, *callee);
    } else if (auto *unary = dyn_cast<UnaryExpr>(&e)) {
      expr(*unary->operand, in);
    } else if (auto *binary = dyn_cast<BinaryExpr>(&e)) {
      expr(*binary->lhs, in);
      expr(*binary->rhs, in);
    } else if (auto *paren = dyn_cast<ParenExpr>(&e)) {
      expr(*paren->inner, in);
    } else if (auto *axes = dyn_cast<AxesExpr>(&e)) {
      for (const AxesExpr::Item &item : axes->items)
        if (item.size)
          expr(*item.size, in);
    }
  }

  void edge(const CallExpr &call, const Decl &callee) {
    auto begin = llvm::find(path, &callee);
    if (begin == path.end()) {
      calls.push_back(call.callee.loc());
      visit(callee);
      calls.pop_back();
      return;
    }
    auto diag = diagnostics.error(call.callee.loc(), Diag::Cycle, callee.name.text);
    for (const Decl *d : path)
      program.markBroken(*d);
    for (size_t i = begin - path.begin(); i + 1 < path.size(); ++i)
      diag.attachNote(diagnostics.location(calls[i]))
          << "`" << path[i]->name.text << "` calls `" << path[i + 1]->name.text << "` here";
  }

  Program &program;
  Diagnostics &diagnostics;
  llvm::SmallPtrSet<const Decl *, 32> done;
  std::vector<const Decl *> path;
  std::vector<llvm::SMLoc> calls; // calls[i]: from path[i] to path[i + 1]
};

} // namespace

bool kvpc::checkDeclarations(Program &program, const File &file, Diagnostics &diagnostics) {
  unsigned before = diagnostics.errorCount();
  Checker checker(program, file, diagnostics);
  Cycles cycles(program, diagnostics);
  for (const Item &item : file.items) {
    if (!item.decl)
      continue;
    unsigned errors = diagnostics.errorCount();
    checker.check(*item.decl);
    if (diagnostics.errorCount() != errors)
      program.markBroken(*item.decl);
    cycles.visit(*item.decl);
  }
  return diagnostics.errorCount() == before;
}

bool kvpc::checkExpression(Program &program, const Expr &expr, bool wantPress, StringRef parameter,
                           Diagnostics &diagnostics) {
  unsigned before = diagnostics.errorCount();
  Checker(program, program.commandLine(), diagnostics).checkLone(expr, wantPress, parameter);
  return diagnostics.errorCount() == before;
}
