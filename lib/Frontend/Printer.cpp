//===- Printer.cpp - the canonical form of a program ------------------------------------------===//
#include "lib/Frontend/Printer.h"

#include "lib/Frontend/Layout.h"
#include "llvm/ADT/STLExtras.h"

using namespace kvpc;
using llvm::dyn_cast;
using llvm::SMLoc;
using llvm::StringRef;

namespace {

constexpr unsigned columns = 100;

using Docs = std::vector<const Doc *>;

/// Walks the tree in the order of the text, and sets each comment before the token it stood before.
class Printer {
public:
  explicit Printer(const File &file) : file(file) {}

  std::string run() {
    Docs docs;
    bool first = true;
    for (const Item &item : file.items) {
      SMLoc start = item.import ? item.import->loc : item.decl->keyword;
      startLine(docs, start, first);
      if (item.import)
        docs.push_back(layout.text("import " + item.import->name.text.str()));
      else
        decl(docs, *item.decl);
      first = false;
    }
    startLine(docs, SMLoc::getFromPointer(file.source.end()), first, /*atEnd=*/true);
    std::string text = Layout::render(layout.concat(docs), columns);
    while (!text.empty() && text.back() == '\n')
      text.pop_back();
    return text.empty() ? text : text + "\n";
  }

private:
  //===----------------------------------------------------------------------------------------===//
  // Comments
  //===----------------------------------------------------------------------------------------===//

  const Comment *nextComment(SMLoc before) const {
    if (comment == file.comments.size())
      return nullptr;
    const Comment &c = file.comments[comment];
    return c.start().getPointer() < before.getPointer() ? &c : nullptr;
  }

  /// Comments at the end of a line of code.
  void trailing(Docs &docs, SMLoc before) {
    for (; const Comment *c = nextComment(before); ++comment) {
      if (c->ownLine)
        return;
      docs.push_back(layout.trailing(c->text));
    }
  }

  /// All comments that stand before a token.
  void flush(Docs &docs, SMLoc before) {
    for (; const Comment *c = nextComment(before); ++comment)
      docs.push_back(c->ownLine ? layout.ownLine(c->text) : layout.trailing(c->text));
  }

  const Doc *token(SMLoc loc, StringRef text) {
    Docs docs;
    flush(docs, loc);
    docs.push_back(layout.text(text));
    return docs.size() == 1 ? docs[0] : layout.concat(docs);
  }
  const Doc *token(Name name) { return token(name.loc(), name.text); }

  /// `line`, with the comments of the line that it ends before it.
  void breakBefore(Docs &docs, const Doc *line, SMLoc next) {
    trailing(docs, next);
    docs.push_back(line);
  }

  bool blankAbove(SMLoc loc) const {
    unsigned lines = 0;
    for (const char *p = loc.getPointer(); p != file.source.begin();) {
      --p;
      if (*p == '\n')
        ++lines;
      else if (*p != ' ' && *p != '\t' && *p != '\r')
        break;
    }
    return lines > 1;
  }

  /// Ends the line before an item or a statement, and sets the comments above it. Blank lines stay,
  /// at most one at a time.
  void startLine(Docs &docs, SMLoc start, bool first, bool atEnd = false) {
    trailing(docs, start);
    auto lineAt = [&](bool blank) {
      if (!first)
        docs.push_back(blank ? layout.blankLine() : layout.hardLine());
      first = false;
    };
    for (; const Comment *c = nextComment(start); ++comment) {
      lineAt(c->blankAbove);
      docs.push_back(layout.text(c->text));
    }
    if (!atEnd)
      lineAt(blankAbove(start));
  }

  //===----------------------------------------------------------------------------------------===//
  // Declarations
  //===----------------------------------------------------------------------------------------===//

  void decl(Docs &docs, const Decl &d) {
    docs.push_back(layout.text(spelling(d.kind).str() + " "));
    docs.push_back(token(d.name));
    docs.push_back(token(d.open, "("));
    const Doc *params = nullptr;
    if (!d.params.empty()) {
      Docs inside;
      for (const Param &p : d.params) {
        if (&p != &d.params.front())
          inside.push_back(layout.text(","));
        breakBefore(inside, &p == &d.params.front() ? layout.softLine() : layout.line(), p.loc());
        param(inside, p);
      }
      inside.push_back(layout.ifBroken(","));
      trailing(inside, d.close);
      params = layout.group({layout.indent(inside), layout.softLine(), token(d.close, ")")});
      docs.push_back(params);
    } else {
      docs.push_back(token(d.close, ")"));
    }
    docs.push_back(layout.text(" "));
    docs.push_back(token(d.equals, "="));
    if (!d.block) {
      docs.push_back(value(d.result, params));
      return;
    }
    docs.push_back(layout.text(" "));
    docs.push_back(token(d.blockOpen, "{"));
    Docs body;
    bool first = true;
    for (const Statement &s : d.statements) {
      statementLine(body, s.loc, first);
      first = false;
      if (s.isLet) {
        body.push_back(layout.text("let "));
        body.push_back(token(s.name));
        body.push_back(layout.text(" ="));
        body.push_back(value(s.value));
      } else {
        body.push_back(layout.text("require "));
        body.push_back(expr(s.value));
        body.push_back(layout.text(", "));
        body.push_back(token(s.messageLoc, "\"" + s.message.str() + "\""));
      }
    }
    statementLine(body, d.returnLoc, first);
    body.push_back(layout.text("return "));
    body.push_back(expr(d.result));
    startLine(body, d.blockClose, false, /*atEnd=*/true);
    docs.push_back(layout.indent(body));
    docs.push_back(layout.hardLine());
    docs.push_back(token(d.blockClose, "}"));
  }

  void statementLine(Docs &docs, SMLoc loc, bool first) {
    if (!first)
      return startLine(docs, loc, false);
    // No blank line under the brace.
    trailing(docs, loc);
    docs.push_back(layout.hardLine());
    startLine(docs, loc, true);
  }

  /// ` value` behind `=`, on a line of its own if it does not fit or the parameters took several.
  const Doc *value(const Expr *e, const Doc *params = nullptr) {
    Docs docs;
    breakBefore(docs, layout.line(), firstLoc(e));
    docs.push_back(expr(e));
    return layout.group({layout.indent(docs)}, params);
  }

  void param(Docs &docs, const Param &p) {
    docs.push_back(token(p.name));
    docs.push_back(layout.text(": "));
    docs.push_back(token(p.typeName));
    if (!p.axes.empty()) {
      docs.push_back(layout.text("["));
      for (const Name &axis : p.axes) {
        if (&axis != &p.axes.front())
          docs.push_back(layout.text(", "));
        docs.push_back(token(axis));
      }
      docs.push_back(token(p.axesEnd, "]"));
    }
    if (p.defaultValue) {
      docs.push_back(layout.text(" = "));
      docs.push_back(expr(p.defaultValue));
    }
    if (p.hasRange) {
      docs.push_back(layout.text(" "));
      docs.push_back(token(p.rangeLoc, "in "));
      if (p.low)
        docs.push_back(expr(p.low));
      docs.push_back(token(p.dots, ".."));
      if (p.high)
        docs.push_back(expr(p.high));
    }
  }

  //===----------------------------------------------------------------------------------------===//
  // Expressions
  //===----------------------------------------------------------------------------------------===//

  static SMLoc firstLoc(const Expr *e) { return e->range.Start; }

  const Doc *expr(const Expr *e) {
    if (auto *call = dyn_cast<CallExpr>(e)) {
      if (call->style == CallExpr::Style::Piped)
        return pipe(call);
      return call->style == CallExpr::Style::Plain ? layout.concat(plainCall(call)) : chain(call);
    }
    if (auto *binary = dyn_cast<BinaryExpr>(e))
      return operators(binary);
    if (auto *unary = dyn_cast<UnaryExpr>(e))
      return layout.concat(
          {token(unary->op), layout.text(unary->op.text == "-" ? "" : " "), expr(unary->operand)});
    if (auto *paren = dyn_cast<ParenExpr>(e)) {
      Docs docs{token(paren->loc(), "(")};
      docs.push_back(layout.indent({expr(paren->inner)}));
      docs.push_back(token(SMLoc::getFromPointer(paren->range.End.getPointer() - 1), ")"));
      return layout.group(docs);
    }
    if (auto *axes = dyn_cast<AxesExpr>(e))
      return axisList(axes);
    return token(e->loc(), e->text());
  }

  const Doc *axisList(const AxesExpr *axes) {
    Docs docs{token(axes->loc(), "[")};
    for (const AxesExpr::Item &item : axes->items) {
      if (&item != &axes->items.front())
        docs.push_back(layout.text(", "));
      docs.push_back(token(item.axis));
      if (item.size) {
        docs.push_back(layout.text(": "));
        docs.push_back(expr(item.size));
      }
    }
    docs.push_back(token(SMLoc::getFromPointer(axes->range.End.getPointer() - 1), "]"));
    return layout.concat(docs);
  }

  /// `(a, b)`.
  const Doc *arguments(const CallExpr *call) {
    if (call->args.empty())
      return layout.concat({token(call->open, "("), token(call->close, ")")});
    const Doc *open = token(call->open, "(");
    Docs inside;
    for (const Argument &a : call->args) {
      bool first = &a == &call->args.front();
      if (!first)
        inside.push_back(layout.text(","));
      breakBefore(inside, first ? layout.softLine() : layout.line(), a.loc());
      if (a.isArrow()) {
        inside.push_back(token(a.from));
        inside.push_back(layout.text(" -> "));
        inside.push_back(token(a.to));
        continue;
      }
      if (a.name) {
        inside.push_back(token(a.name));
        inside.push_back(layout.text(" = "));
      }
      inside.push_back(expr(a.value));
    }
    inside.push_back(layout.ifBroken(","));
    trailing(inside, call->close);
    return layout.group({open, layout.indent(inside), layout.softLine(), token(call->close, ")")});
  }

  Docs plainCall(const CallExpr *call) { return {token(call->callee), arguments(call)}; }

  /// `x.f(a).g(b)`: two or more calls break before each of them.
  const Doc *chain(const CallExpr *last) {
    std::vector<const CallExpr *> links;
    const Expr *head = last;
    unsigned calls = 0;
    for (auto *call = last;
         call && (call->style == CallExpr::Style::Method || call->style == CallExpr::Style::Member);
         call = dyn_cast<CallExpr>(head)) {
      links.push_back(call);
      calls += call->style == CallExpr::Style::Method;
      head = call->base;
    }
    Docs docs{expr(head)};
    Docs rest;
    for (const CallExpr *call : llvm::reverse(links)) {
      bool breaks = calls > 1 && call->style == CallExpr::Style::Method;
      if (breaks)
        breakBefore(rest, layout.softLine(), call->dot);
      rest.push_back(token(call->dot, "."));
      rest.push_back(token(call->callee));
      if (call->style == CallExpr::Style::Method)
        rest.push_back(arguments(call));
    }
    docs.push_back(calls > 1 ? layout.indent(rest) : layout.concat(rest));
    return layout.group(docs);
  }

  const Doc *pipe(const CallExpr *last) {
    std::vector<const CallExpr *> stages;
    const Expr *head = last;
    for (auto *call = last; call && call->style == CallExpr::Style::Piped;
         call = dyn_cast<CallExpr>(head)) {
      stages.push_back(call);
      head = call->base;
    }
    Docs docs{expr(head)};
    Docs rest;
    for (const CallExpr *call : llvm::reverse(stages)) {
      breakBefore(rest, layout.line(), call->dot);
      rest.push_back(token(call->dot, "|>"));
      rest.push_back(layout.text(" "));
      rest.push_back(token(call->callee));
      rest.push_back(arguments(call));
    }
    docs.push_back(layout.indent(rest));
    return layout.group(docs);
  }

  static unsigned precedence(StringRef op) {
    if (op == "or")
      return 0;
    if (op == "and")
      return 1;
    if (op == "+" || op == "-")
      return 3;
    if (op == "*" || op == "/" || op == "%")
      return 4;
    return op == "**" ? 5 : 2;
  }

  /// A run of operators of one precedence breaks before each of them.
  const Doc *operators(const BinaryExpr *last) {
    unsigned level = precedence(last->op.text);
    std::vector<const BinaryExpr *> run;
    const Expr *head = last;
    for (auto *b = last; b && precedence(b->op.text) == level; b = dyn_cast<BinaryExpr>(head)) {
      run.push_back(b);
      head = b->lhs;
      if (b->op.text == "**")
        break;
    }
    Docs docs{expr(head)};
    Docs rest;
    for (const BinaryExpr *b : llvm::reverse(run)) {
      breakBefore(rest, layout.line(), b->op.loc());
      rest.push_back(token(b->op));
      rest.push_back(layout.text(" "));
      rest.push_back(expr(b->rhs));
    }
    docs.push_back(layout.indent(rest));
    return layout.group(docs);
  }

  const File &file;
  Layout layout;
  size_t comment = 0;
};

} // namespace

std::string kvpc::print(const File &file) { return Printer(file).run(); }
