//===- Builtins.cpp - operations of the language, and the arguments of calls ------------------===//
#include "lib/Frontend/Builtins.h"

#include "llvm/ADT/STLExtras.h"

using namespace kvpc;
using llvm::dyn_cast;
using llvm::StringRef;

static Builtin makeBuiltin(BuiltinId id, StringRef name, StringRef signature, bool methodOnly) {
  Builtin b{id, name, {}, methodOnly};
  while (!signature.empty()) {
    StringRef one;
    std::tie(one, signature) = signature.split(' ');
    auto [text, kind] = one.split(':');
    BuiltinParam param;
    param.optional = text.consume_back("?");
    param.name = text;
    if (!kind.empty())
      param.kind = static_cast<ArgumentKind>(kind.front());
    b.params.push_back(param);
  }
  return b;
}

llvm::ArrayRef<Builtin> kvpc::builtins() {
  static const std::vector<Builtin> table = {
#define KVPC_BUILTIN(ID, NAME, SIGNATURE) makeBuiltin(BuiltinId::ID, NAME, SIGNATURE, false),
#define KVPC_METHOD(ID, NAME, SIGNATURE) makeBuiltin(BuiltinId::ID, NAME, SIGNATURE, true),
#include "lib/Frontend/Builtins.def"
  };
  return table;
}

const Builtin *kvpc::findBuiltin(StringRef name) {
  for (const Builtin &b : builtins())
    if (b.name == name)
      return &b;
  return nullptr;
}

llvm::ArrayRef<StringRef> kvpc::hostValues() {
  static constexpr StringRef names[] = {
      "keys",   "values", "queries", "hidden", "output_weight", "position", "original_position",
      "length", "seen",   "layer",   "layers", "heads",         "groups",   "channels"};
  return names;
}

bool kvpc::isKnownAxis(StringRef name) {
  static constexpr StringRef names[] = {"head", "group",   "query", "token", "channel", "part",
                                        "slot", "feature", "layer", "step",  "gone"};
  return llvm::is_contained(names, name.rtrim('\''));
}

namespace {

/// Reports about one call, or stays silent.
class Binder {
public:
  Binder(const CallExpr &call, Diagnostics *diagnostics, Arguments &out)
      : call(call), diagnostics(diagnostics), out(out) {}

  bool decl(const Decl &d) {
    for (const Param &p : d.params)
      names.push_back(p.name.text);
    if (!place())
      return false;
    for (auto [i, p] : llvm::enumerate(d.params)) {
      if (out.values[i] || p.defaultValue)
        continue;
      fail(call.callee.loc(), Diag::ArgumentMissing, p.name.text, call.callee.text)
          .note(p.loc(), "declared here");
      return false;
    }
    return ok;
  }

  bool builtin(const Builtin &b) {
    for (const BuiltinParam &p : b.params)
      names.push_back(p.name);
    for (const BuiltinParam &p : b.params) {
      rename |= p.kind == ArgumentKind::Rename;
      if (p.kind == ArgumentKind::Axes || p.kind == ArgumentKind::Presses)
        variadic = static_cast<int>(&p - b.params.begin());
    }
    // `index(token)`: the value may be left out in front of the axis.
    bool skipFirst = b.params.front().optional && positional() == 1;
    if (!place(skipFirst))
      return false;
    for (auto [i, p] : llvm::enumerate(b.params))
      if (!one(i, p))
        ok = false;
    return ok;
  }

private:
  struct Report {
    Diagnostics *diagnostics;
    std::optional<mlir::InFlightDiagnostic> diag;
    Report &note(llvm::SMLoc loc, const llvm::Twine &text) {
      if (diag)
        diag->attachNote(diagnostics->location(loc)) << oneLine(text.str());
      return *this;
    }
  };

  template <typename... Args>
  Report fail(llvm::SMLoc loc, Diag id, Args &&...args) {
    ok = false;
    Report report{diagnostics, std::nullopt};
    if (diagnostics)
      report.diag.emplace(diagnostics->error(loc, id, std::forward<Args>(args)...));
    return report;
  }

  size_t positional() const {
    return (call.base ? 1 : 0) +
           llvm::count_if(call.args, [](const Argument &a) { return !a.name; });
  }

  /// Gives positional arguments their places, then named ones. Those beyond belong to the variadic
  /// parameter, which takes all that are positional from its place on.
  bool place(bool skipFirst = false) {
    out.values.assign(names.size(), nullptr);
    size_t next = skipFirst;
    auto positionalOne = [&](const Expr *e) {
      if (variadic >= 0 && next >= static_cast<size_t>(variadic)) {
        rest.push_back(e);
        return true;
      }
      if (next >= names.size()) {
        fail(e->loc(), Diag::ArgumentCount, call.callee.text, names.size(),
             names.size() == 1 ? "" : "s", quoteList(names));
        return false;
      }
      out.values[next++] = e;
      return true;
    };
    if (call.base && !positionalOne(call.base))
      return false;
    for (const Argument &a : call.args) {
      if (a.isArrow()) {
        if (!rename || out.from) {
          fail(a.loc(), Diag::RenameUnexpected, call.callee.text);
          return false;
        }
        out.from = a.from, out.to = a.to;
        continue;
      }
      if (!a.name) {
        if (!positionalOne(a.value))
          return false;
        continue;
      }
      auto it = llvm::find(names, a.name.text);
      if (it == names.end()) {
        auto report = fail(a.name.loc(), Diag::ArgumentUnknown, call.callee.text, a.name.text,
                           quoteList(names));
        if (StringRef near = nearest(a.name.text, names); !near.empty())
          report.note(a.name.loc(), "did you mean `" + near + "`");
        continue;
      }
      const Expr *&slot = out.values[it - names.begin()];
      if (slot) {
        fail(a.name.loc(), Diag::ArgumentTwice, a.name.text, call.callee.text)
            .note(slot->loc(), "first here");
        continue;
      }
      slot = a.value;
    }
    return true;
  }

  bool axis(const Expr *e) {
    if (auto *name = dyn_cast<NameExpr>(e)) {
      out.axes.push_back(name->name);
      return true;
    }
    fail(e->loc(), Diag::AxisExpected, call.callee.text, e->text());
    return false;
  }

  bool missing(const BuiltinParam &p) {
    if (p.optional)
      return true;
    auto report = fail(call.callee.loc(), Diag::ArgumentMissing, p.name, call.callee.text);
    if (p.kind == ArgumentKind::Rename)
      report.note(call.callee.loc(), "write `" + call.callee.text.str() + "(from -> to)`");
    return false;
  }

  bool one(size_t i, const BuiltinParam &p) {
    const Expr *e = out.values[i];
    switch (p.kind) {
    case ArgumentKind::Value:
    case ArgumentKind::Press:
    case ArgumentKind::AxisOrList:
      return e || missing(p);
    case ArgumentKind::Axis:
      return e ? axis(e) : missing(p);
    case ArgumentKind::AxisList:
      if (!e)
        return missing(p);
      if (llvm::isa<AxesExpr>(e))
        return true;
      fail(e->loc(), Diag::AxisListExpected, call.callee.text, e->text());
      return false;
    case ArgumentKind::Rename:
      if (e) {
        fail(e->loc(), Diag::RenameExpected, call.callee.text, e->text());
        return false;
      }
      return out.from ? true : missing(p);
    case ArgumentKind::Axes:
      if (e)
        rest.push_back(e);
      for (const Expr *one : rest)
        if (!axis(one))
          return false;
      return !rest.empty() || missing(p);
    case ArgumentKind::Presses:
      if (e)
        rest.push_back(e);
      out.presses.assign(rest.begin(), rest.end());
      return !rest.empty() || missing(p);
    }
    return false;
  }

  const CallExpr &call;
  Diagnostics *diagnostics;
  Arguments &out;
  llvm::SmallVector<StringRef, 8> names;
  llvm::SmallVector<const Expr *, 4> rest;
  int variadic = -1;
  bool rename = false;
  bool ok = true;
};

} // namespace

bool kvpc::bindArguments(const CallExpr &call, const Decl &decl, Diagnostics *diagnostics,
                         Arguments &out) {
  out = {};
  return Binder(call, diagnostics, out).decl(decl);
}

bool kvpc::bindArguments(const CallExpr &call, const Builtin &builtin, Diagnostics *diagnostics,
                         Arguments &out) {
  out = {};
  return Binder(call, diagnostics, out).builtin(builtin);
}
