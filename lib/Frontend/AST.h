//===- AST.h - programs of the press language as written --------------------------------------===//
//
// Nodes belong to their File and keep views into the source buffer, which must outlive them. Method
// and pipe syntax stay as written (the printer needs them); their meaning is the same call.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_AST_H
#define KVPC_LIB_FRONTEND_AST_H

#include "lib/Frontend/Lexer.h"
#include "llvm/Support/Casting.h"
#include "llvm/Support/raw_ostream.h"
#include <memory>
#include <optional>

namespace kvpc {

/// A name where it stands.
struct Name {
  llvm::StringRef text;
  llvm::SMLoc loc() const { return llvm::SMLoc::getFromPointer(text.begin()); }
  explicit operator bool() const { return !text.empty(); }
};

struct Expr {
  enum class Kind { Number, Constant, Name, Call, Unary, Binary, Paren, Axes, Error };

  Expr(Kind kind, llvm::SMRange range) : kind(kind), range(range) {}
  virtual ~Expr() = default;

  const Kind kind;
  llvm::SMRange range;
  unsigned height = 1; // of the tree below, bounded by the parser

  llvm::SMLoc loc() const { return range.Start; }
  /// The source text.
  llvm::StringRef text() const {
    return {range.Start.getPointer(),
            static_cast<size_t>(range.End.getPointer() - range.Start.getPointer())};
  }
};

struct NumberExpr : Expr {
  NumberExpr(llvm::SMRange range) : Expr(Kind::Number, range) {}
  bool isInt = true;
  int64_t integer = 0;
  double real = 0; // also of an integer
  static bool classof(const Expr *e) { return e->kind == Kind::Number; }
};

/// `true`, `false`, `inf`.
struct ConstantExpr : Expr {
  ConstantExpr(llvm::SMRange range) : Expr(Kind::Constant, range) {}
  static bool classof(const Expr *e) { return e->kind == Kind::Constant; }
};

/// A value or an axis: which of the two, its place says.
struct NameExpr : Expr {
  NameExpr(Name name, llvm::SMRange range) : Expr(Kind::Name, range), name(name) {}
  Name name;
  static bool classof(const Expr *e) { return e->kind == Kind::Name; }
};

/// `value`, `name = value` or `from -> to`.
struct Argument {
  Name name;
  Expr *value = nullptr; // null for from -> to
  Name from, to;
  bool isArrow() const { return bool(from); }
  llvm::SMLoc loc() const { return name ? name.loc() : value ? value->loc() : from.loc(); }
};

/// `f(a)`, `x.f(a)`, `x.f` and `x |> f(a)`.
struct CallExpr : Expr {
  enum class Style { Plain, Method, Member, Piped };
  CallExpr(Style style, Name callee, llvm::SMRange range)
      : Expr(Kind::Call, range), style(style), callee(callee) {}
  Style style;
  Name callee;
  Expr *base = nullptr; // of all but Plain: the first argument
  llvm::SMLoc dot;      // of `.` or `|>`
  std::vector<Argument> args;
  llvm::SMLoc open, close; // of the parentheses; invalid for Member
  static bool classof(const Expr *e) { return e->kind == Kind::Call; }
};

struct UnaryExpr : Expr {
  UnaryExpr(Name op, Expr *operand, llvm::SMRange range)
      : Expr(Kind::Unary, range), op(op), operand(operand) {}
  Name op; // - or not
  Expr *operand;
  static bool classof(const Expr *e) { return e->kind == Kind::Unary; }
};

struct BinaryExpr : Expr {
  BinaryExpr(Name op, Expr *lhs, Expr *rhs, llvm::SMRange range)
      : Expr(Kind::Binary, range), op(op), lhs(lhs), rhs(rhs) {}
  Name op;
  Expr *lhs, *rhs;
  static bool classof(const Expr *e) { return e->kind == Kind::Binary; }
};

/// Parentheses as written.
struct ParenExpr : Expr {
  ParenExpr(Expr *inner, llvm::SMRange range) : Expr(Kind::Paren, range), inner(inner) {}
  Expr *inner;
  static bool classof(const Expr *e) { return e->kind == Kind::Paren; }
};

/// `[head, token, sketch: 48]`.
struct AxesExpr : Expr {
  struct Item {
    Name axis;
    Expr *size = nullptr;
  };
  AxesExpr(llvm::SMRange range) : Expr(Kind::Axes, range) {}
  std::vector<Item> items;
  static bool classof(const Expr *e) { return e->kind == Kind::Axes; }
};

/// Stands where an expression could not be read; the parser reported it.
struct ErrorExpr : Expr {
  ErrorExpr(llvm::SMRange range) : Expr(Kind::Error, range) {}
  static bool classof(const Expr *e) { return e->kind == Kind::Error; }
};

/// Without parentheses.
const Expr *strip(const Expr *expr);

enum class ParamType { Int, Float, Bool, Fraction, Budget, Score, Press, Tensor };
llvm::StringRef spelling(ParamType type);

struct Param {
  std::string doc;
  Name name;
  Name typeName;
  ParamType type = ParamType::Int;
  std::vector<Name> axes; // of `float[layer, head]`
  llvm::SMLoc axesEnd;
  Expr *defaultValue = nullptr;
  llvm::SMLoc rangeLoc; // of `in`
  bool hasRange = false;
  Expr *low = nullptr, *high = nullptr; // numbers
  llvm::SMLoc dots;
  llvm::SMLoc loc() const { return name.loc(); }
};

struct Statement {
  bool isLet = true; // else require
  llvm::SMLoc loc;
  Name name;               // of a let
  Expr *value = nullptr;   // of a let; the condition of a require
  llvm::StringRef message; // of a require, without quotes
  llvm::SMLoc messageLoc;
};

enum class DeclKind { Score, Press, Fn };
llvm::StringRef spelling(DeclKind kind);

struct File;

struct Decl {
  File *file = nullptr;
  std::string doc;
  DeclKind kind = DeclKind::Score;
  llvm::SMLoc keyword;
  Name name;
  llvm::SMLoc open, close;
  std::vector<Param> params;
  llvm::SMLoc equals;
  bool block = false;
  llvm::SMLoc blockOpen, returnLoc, blockClose;
  std::vector<Statement> statements;
  Expr *result = nullptr;

  const Param *findParam(llvm::StringRef text) const;
};

struct Import {
  llvm::SMLoc loc;
  Name name;
};

/// Imports and declarations in the order of the file.
struct Item {
  std::optional<Import> import;
  std::unique_ptr<Decl> decl;
};

struct File {
  std::string path;
  llvm::StringRef source;
  std::vector<Comment> comments;
  std::vector<Item> items;
  /// Some declaration could not be read whole.
  bool hasErrors = false;

  template <typename T, typename... Args>
  T *make(Args &&...args) {
    auto node = std::make_unique<T>(std::forward<Args>(args)...);
    T *raw = node.get();
    nodes.push_back(std::move(node));
    return raw;
  }

private:
  std::vector<std::unique_ptr<Expr>> nodes;
};

/// The tree as text, with `line:column` of each node.
void dump(const File &file, const llvm::SourceMgr &sources, llvm::raw_ostream &os);

} // namespace kvpc

#endif
