//===- AST.cpp - names of kinds, and the tree as text -----------------------------------------===//
#include "lib/Frontend/AST.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

using namespace kvpc;
using llvm::dyn_cast;
using llvm::StringRef;

const Expr *kvpc::strip(const Expr *expr) {
  while (auto *paren = dyn_cast<ParenExpr>(expr))
    expr = paren->inner;
  return expr;
}

StringRef kvpc::spelling(ParamType type) {
  static constexpr StringRef names[] = {"int",    "float", "bool",  "fraction",
                                        "budget", "score", "press", "tensor"};
  return names[static_cast<int>(type)];
}

StringRef kvpc::spelling(DeclKind kind) {
  static constexpr StringRef names[] = {"score", "press", "fn"};
  return names[static_cast<int>(kind)];
}

const Param *Decl::findParam(StringRef text) const {
  auto it = llvm::find_if(params, [&](const Param &p) { return p.name.text == text; });
  return it == params.end() ? nullptr : &*it;
}

namespace {

class Dumper {
public:
  Dumper(const llvm::SourceMgr &sources, llvm::raw_ostream &os) : sources(sources), os(os) {}

  void file(const File &file) {
    os << "file\n";
    for (const Item &item : file.items) {
      if (item.import)
        line(1, item.import->loc) << "import " << item.import->name.text << "\n";
      else
        decl(*item.decl);
    }
  }

private:
  llvm::raw_ostream &line(unsigned depth, llvm::SMLoc loc) {
    os.indent(2 * depth);
    if (loc.isValid()) {
      auto [row, column] = sources.getLineAndColumn(loc);
      os << row << ":" << column << " ";
    }
    return os;
  }

  void doc(unsigned depth, StringRef text) {
    if (text.empty())
      return;
    os.indent(2 * depth) << "doc \"";
    os.write_escaped(text) << "\"\n";
  }

  void decl(const Decl &decl) {
    line(1, decl.keyword) << spelling(decl.kind) << " " << decl.name.text << "\n";
    doc(2, decl.doc);
    for (const Param &p : decl.params) {
      line(2, p.loc()) << "param " << p.name.text << ": " << spelling(p.type);
      if (!p.axes.empty()) {
        os << "[";
        llvm::interleaveComma(p.axes, os, [&](const Name &axis) { os << axis.text; });
        os << "]";
      }
      if (p.hasRange)
        os << " in " << (p.low ? p.low->text() : "") << ".." << (p.high ? p.high->text() : "");
      os << "\n";
      doc(3, p.doc);
      if (p.defaultValue)
        expr(3, *p.defaultValue);
    }
    for (const Statement &s : decl.statements) {
      line(2, s.loc) << (s.isLet ? "let " + s.name.text : "require \"" + s.message + "\"") << "\n";
      expr(3, *s.value);
    }
    line(2, decl.block ? decl.returnLoc : decl.equals) << "result\n";
    if (decl.result)
      expr(3, *decl.result);
  }

  void expr(unsigned depth, const Expr &e, StringRef label = "") {
    line(depth, e.loc());
    if (!label.empty())
      os << label << " = ";
    if (auto *call = dyn_cast<CallExpr>(&e)) {
      static constexpr StringRef styles[] = {"call", "method", "member", "pipe"};
      os << styles[static_cast<int>(call->style)] << " " << call->callee.text << "\n";
      if (call->base)
        expr(depth + 1, *call->base);
      for (const Argument &a : call->args) {
        if (a.isArrow())
          line(depth + 1, a.from.loc()) << a.from.text << " -> " << a.to.text << "\n";
        else
          expr(depth + 1, *a.value, a.name.text);
      }
    } else if (auto *unary = dyn_cast<UnaryExpr>(&e)) {
      os << "unary " << unary->op.text << "\n";
      expr(depth + 1, *unary->operand);
    } else if (auto *binary = dyn_cast<BinaryExpr>(&e)) {
      os << "binary " << binary->op.text << "\n";
      expr(depth + 1, *binary->lhs);
      expr(depth + 1, *binary->rhs);
    } else if (auto *paren = dyn_cast<ParenExpr>(&e)) {
      os << "paren\n";
      expr(depth + 1, *paren->inner);
    } else if (auto *axes = dyn_cast<AxesExpr>(&e)) {
      os << "axes\n";
      for (const AxesExpr::Item &item : axes->items) {
        line(depth + 1, item.axis.loc()) << "axis " << item.axis.text << "\n";
        if (item.size)
          expr(depth + 2, *item.size);
      }
    } else if (llvm::isa<ErrorExpr>(e)) {
      os << "error\n";
    } else {
      os << (llvm::isa<NameExpr>(e) ? "name " : "constant ") << e.text() << "\n";
    }
  }

  const llvm::SourceMgr &sources;
  llvm::raw_ostream &os;
};

} // namespace

void kvpc::dump(const File &file, const llvm::SourceMgr &sources, llvm::raw_ostream &os) {
  Dumper(sources, os).file(file);
}
