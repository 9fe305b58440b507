//===- Compile.cpp - from source text to a kvp program ----------------------------------------===//
#include "lib/Frontend/Check.h"
#include "lib/Frontend/Export.h"
#include "lib/Frontend/Parser.h"
#include "lib/Frontend/Sources.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/Verifier.h"

using namespace kvpc;
using llvm::StringRef;

namespace {

class Compilation {
public:
  Compilation(mlir::MLIRContext *context, llvm::SourceMgr &sources, const CompileInput &input)
      : context(context), diagnostics(context, sources), input(input), program(diagnostics, input) {
    context->loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
  }

  bool load() {
    if (!program.load())
      return false;
    bool ok = true;
    for (const File *file : program.ownFiles())
      ok &= checkDeclarations(program, *file, diagnostics);
    ok &= readDefines();
    if (!ok) // what the other declarations have to say
      checkAll();
    return ok;
  }

  mlir::OwningOpRef<mlir::ModuleOp> compile() {
    auto module = mlir::ModuleOp::create(mlir::FileLineColLoc::get(context, input.path, 1, 1));
    mlir::OwningOpRef<mlir::ModuleOp> owner(module);
    std::vector<const Decl *> decls = exported();
    bool ok = !decls.empty();
    for (const Decl *decl : decls) {
      auto press = Export(program, diagnostics, defines, *decl, /*assume=*/false).run();
      if (press)
        module.push_back(press.release());
      else
        ok = false;
    }
    if (!ok || !definesUsed() || mlir::failed(mlir::verify(module)))
      return {};
    return owner;
  }

  bool check() { return checkAll() && definesUsed(); }

private:
  bool checkAll() {
    bool ok = true;
    for (const Item &item : program.mainFile().items) {
      if (!item.decl || item.decl->kind == DeclKind::Fn || program.isBroken(*item.decl) ||
          (!input.press.empty() && item.decl->name.text != input.press))
        continue;
      Export one(program, diagnostics, defines, *item.decl, /*assume=*/true);
      ok &= bool(one.run());
    }
    return ok;
  }

  bool readDefines() {
    bool ok = true;
    for (const Define &d : input.defines) {
      ReadDefine read;
      auto [first, second] = StringRef(d.name).split('.');
      read.name = second.empty() ? first : second;
      read.press = second.empty() ? "" : first;
      StringRef text = addSource(diagnostics.getSources(), "<-D " + d.name + ">", d.value);
      read.value = parseExpression(text, program.commandLine(), diagnostics);
      ok &= read.value && checkDefine(d, read);
      if (read.value)
        defines.push_back(read);
    }
    return ok;
  }

  bool checkDefine(const Define &d, const ReadDefine &read) {
    std::vector<StringRef> names;
    const Param *found = nullptr;
    bool pressFound = read.press.empty(), budget = false;
    for (const Item &item : program.mainFile().items) {
      if (!item.decl || item.decl->kind == DeclKind::Fn ||
          (!read.press.empty() && item.decl->name.text != read.press))
        continue;
      pressFound = true;
      for (const Param &p : item.decl->params) {
        names.push_back(p.name.text);
        if (p.name.text == read.name)
          found = &p;
      }
      budget |= item.decl->kind == DeclKind::Score;
    }
    if (budget)
      names.push_back("budget");
    llvm::SMLoc loc = read.value->loc();
    if (!pressFound) {
      diagnostics.error(loc, Diag::DefinePress, d.name, read.press);
      return false;
    }
    if (!found && !(budget && read.name == "budget")) {
      auto diag = diagnostics.error(loc, Diag::DefineUnknown, d.name);
      if (StringRef near = nearest(read.name, names); !near.empty())
        diag.attachNote(diagnostics.location(loc)) << "did you mean `" << near << "`";
      else if (!names.empty())
        diag.attachNote(diagnostics.location(loc)) << "it has " << quoteList(names);
      return false;
    }
    if (found && !found->axes.empty()) {
      auto diag = diagnostics.error(loc, Diag::DefineWeight, d.name);
      diag.attachNote(diagnostics.location(found->loc())) << "declared here";
      return false;
    }
    bool press = found && found->type == ParamType::Press;
    return checkExpression(program, *read.value, press, read.name, diagnostics);
  }

  bool definesUsed() {
    bool ok = true;
    for (const ReadDefine &d : defines) {
      if (d.used)
        continue;
      std::string name = d.press.empty() ? d.name : d.press + "." + d.name;
      diagnostics.error(d.value->loc(), Diag::DefineUnknown, name);
      ok = false;
    }
    return ok;
  }

  /// The main file's own scores and presses that need nothing more to be compiled.
  std::vector<const Decl *> exported() {
    std::vector<const Decl *> all, out;
    for (const Item &item : program.mainFile().items)
      if (item.decl && item.decl->kind != DeclKind::Fn)
        all.push_back(item.decl.get());
    auto one = [&](const Decl &decl) {
      return Export(program, diagnostics, defines, decl, /*assume=*/false);
    };
    if (!input.press.empty()) {
      std::vector<StringRef> names;
      for (const Decl *decl : all) {
        names.push_back(decl->name.text);
        if (decl->name.text != input.press)
          continue;
        auto unset = one(*decl).unset(/*allowRuntime=*/true);
        for (const Param *p : unset)
          reportUnset(*decl, *p);
        return unset.empty() ? std::vector{decl} : std::vector<const Decl *>{};
      }
      auto diag = diagnostics.error(startOfFile(), Diag::PressUnknown, input.press);
      if (StringRef near = nearest(input.press, names); !near.empty())
        diag.attachNote(diagnostics.location(startOfFile())) << "did you mean `" << near << "`";
      else if (!names.empty())
        diag.attachNote(diagnostics.location(startOfFile())) << "it has " << quoteList(names);
      return {};
    }
    for (const Decl *decl : all)
      if (one(*decl).unset(/*allowRuntime=*/false).empty())
        out.push_back(decl);
    if (!out.empty())
      return out;
    // What is wrong with the declarations themselves comes first.
    if (!checkAll())
      return {};
    auto diag = diagnostics.error(startOfFile(), Diag::NothingExported, input.path);
    for (const Decl *decl : all) {
      const Param *p = one(*decl).unset(/*allowRuntime=*/false).front();
      diag.attachNote(diagnostics.location(p->loc()))
          << "`" << p->name.text << "` of `" << decl->name.text
          << "` has no default: give one, or compile with `" << example(*p) << "`";
    }
    if (all.empty())
      diag.attachNote(diagnostics.location(startOfFile())) << "it declares no score and no press";
    return {};
  }

  llvm::SMLoc startOfFile() const {
    return llvm::SMLoc::getFromPointer(program.mainFile().source.begin());
  }

  void reportUnset(const Decl &decl, const Param &p) {
    auto diag = diagnostics.error(p.loc(), Diag::ParamUnset, p.name.text, decl.name.text);
    diag.attachNote(diagnostics.location(p.loc()))
        << "give it a default, or compile with `" << example(p) << "`";
  }

  static std::string example(const Param &p) {
    static constexpr StringRef values[] = {"8",           "0.5",        "true",        "0.5",
                                           "'drop(0.5)'", "'snapkv()'", "'chunkkv()'", ""};
    return ("-D " + p.name.text + "=" + values[static_cast<int>(p.type)]).str();
  }

  mlir::MLIRContext *context;
  Diagnostics diagnostics;
  const CompileInput &input;
  Program program;
  std::vector<ReadDefine> defines;
};

} // namespace

mlir::OwningOpRef<mlir::ModuleOp> kvpc::compileToKvp(mlir::MLIRContext *context,
                                                     llvm::SourceMgr &sources,
                                                     const CompileInput &input) {
  Compilation compilation(context, sources, input);
  return compilation.load() ? compilation.compile() : mlir::OwningOpRef<mlir::ModuleOp>();
}

bool kvpc::check(mlir::MLIRContext *context, llvm::SourceMgr &sources, const CompileInput &input) {
  Compilation compilation(context, sources, input);
  return compilation.load() && compilation.check();
}
