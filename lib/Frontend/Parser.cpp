//===- Parser.cpp - recursive descent over the grammar of docs/Language.md --------------------===//
#include "lib/Frontend/Parser.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSwitch.h"

using namespace kvpc;
using llvm::SMLoc;
using llvm::SMRange;
using llvm::StringRef;

namespace {

/// Deeper trees are refused, so that walking one never exhausts the stack.
constexpr unsigned maxHeight = 400;

class Parser {
public:
  Parser(StringRef source, File &file, Diagnostics &diagnostics)
      : stream(lex(source, diagnostics)), file(file), diagnostics(diagnostics) {}

  void parseFile() {
    file.comments = stream.comments;
    if (diagnostics.errorCount() >= maxTextErrors)
      at = stream.tokens.size() - 1; // where the lexer gave up
    while (!token().is(TokenKind::End) && diagnostics.errorCount() < maxTextErrors) {
      if (token().isKeyword("import"))
        parseImport();
      else if (atDecl())
        parseDecl();
      else {
        expected("`score`, `press`, `fn` or `import`");
        take();
        skipToItem();
      }
    }
    if (diagnostics.errorCount() >= maxTextErrors)
      softError(token().start(), Diag::TooMany);
  }

  Expr *parseLone() {
    Expr *value = parsePipe();
    if (!failed && !token().is(TokenKind::End))
      expected("the end of the expression");
    return failed ? nullptr : value;
  }

private:
  //===----------------------------------------------------------------------------------------===//
  // Tokens and errors
  //===----------------------------------------------------------------------------------------===//

  const Token &token(size_t ahead = 0) const {
    return stream.tokens[std::min(at + ahead, stream.tokens.size() - 1)];
  }
  Token take() {
    Token t = token();
    if (at + 1 < stream.tokens.size())
      ++at;
    lastEnd = t.end();
    return t;
  }
  bool takeIf(TokenKind kind) {
    if (!token().is(kind))
      return false;
    take();
    return true;
  }

  std::string describe(const Token &t) const {
    if (t.is(TokenKind::End))
      return "the end of the file";
    return "`" + t.text.str() + "`";
  }

  /// The first error of a construct is told; what follows from it until the parser has found its
  /// feet again is not.
  void expected(StringRef what) {
    if (!failed && !token().is(TokenKind::Error))
      diagnostics.error(token().start(), Diag::Expected, what, describe(token()));
    failed = true;
    file.hasErrors = true;
  }
  bool expect(TokenKind kind, StringRef what) {
    if (takeIf(kind))
      return true;
    expected(what);
    return false;
  }
  template <typename... Args>
  mlir::InFlightDiagnostic softError(SMLoc loc, Diag id, Args &&...args) {
    file.hasErrors = true;
    return diagnostics.error(loc, id, std::forward<Args>(args)...);
  }
  void note(mlir::InFlightDiagnostic &diag, SMLoc loc, const llvm::Twine &text) {
    diag.attachNote(diagnostics.location(loc)) << oneLine(text.str());
  }

  //===----------------------------------------------------------------------------------------===//
  // Recovery
  //===----------------------------------------------------------------------------------------===//

  /// `score`, `press` and `fn` are also types: a declaration has a name and `(` behind it.
  bool atDecl(size_t ahead = 0) const {
    const Token &t = token(ahead);
    if (!t.isKeyword("score") && !t.isKeyword("press") && !t.isKeyword("fn"))
      return false;
    TokenKind next = token(ahead + 1).kind;
    return t.text == "fn" || next == TokenKind::Name || next == TokenKind::Keyword ||
           next == TokenKind::Primed || next == TokenKind::Error;
  }
  void skipToItem() {
    while (!token().is(TokenKind::End) && !token().isKeyword("import") && !atDecl())
      take();
    failed = false;
  }
  void skipToStatement() {
    while (!token().is(TokenKind::End) && !token().is(TokenKind::RBrace) && !atDecl() &&
           !token().isKeyword("let") && !token().isKeyword("require") &&
           !token().isKeyword("return") && !token().isKeyword("import"))
      take();
    failed = false;
  }

  //===----------------------------------------------------------------------------------------===//
  // Declarations
  //===----------------------------------------------------------------------------------------===//

  /// Doc comments that stand directly before the current token, with no other comment between.
  std::string docs() const {
    unsigned last = token().comments;
    unsigned first = at == 0 ? 0 : stream.tokens[at - 1].comments;
    unsigned from = last;
    while (from > first && stream.comments[from - 1].doc && stream.comments[from - 1].ownLine)
      --from;
    std::string text;
    for (unsigned i = from; i < last; ++i) {
      StringRef line = stream.comments[i].text.drop_front(2);
      line.consume_front(" ");
      text += (text.empty() ? "" : "\n") + line.str();
    }
    return text;
  }

  /// The name of something that a program declares.
  Name declaredName(StringRef what, StringRef expectation) {
    if (token().is(TokenKind::Keyword)) {
      softError(token().start(), Diag::Keyword, token().text, what);
      return {take().text};
    }
    if (token().is(TokenKind::Primed)) {
      softError(token().start(), Diag::AxisName, token().text);
      return {take().text};
    }
    if (token().is(TokenKind::Name))
      return {take().text};
    expected(expectation);
    return {};
  }

  void parseImport() {
    Import import;
    import.loc = take().start();
    import.name = declaredName("a file", "the name of a file to import");
    if (failed)
      return skipToItem();
    Item item;
    item.import = import;
    file.items.push_back(std::move(item));
  }

  void parseDecl() {
    auto decl = std::make_unique<Decl>();
    decl->file = &file;
    decl->doc = docs();
    Token keyword = take();
    decl->keyword = keyword.start();
    decl->kind = llvm::StringSwitch<DeclKind>(keyword.text)
                     .Case("score", DeclKind::Score)
                     .Case("press", DeclKind::Press)
                     .Default(DeclKind::Fn);
    decl->name = declaredName("a declaration", "a name");
    decl->open = token().start();
    if (failed || !expect(TokenKind::LParen, "`(`"))
      return skipToItem();
    parseParams(*decl);
    decl->close = token().start();
    if (failed || !expect(TokenKind::RParen, "`,` or `)`"))
      return skipToItem();
    decl->equals = token().start();
    if (!expect(TokenKind::Assign, "`=` and the body"))
      return skipToItem();
    if (token().is(TokenKind::LBrace))
      parseBlock(*decl);
    else
      decl->result = parsePipe();
    // What is left of a declaration that failed is of no use; a whole one must be followed by
    // another or the end.
    if (!failed && !token().is(TokenKind::End) && !token().isKeyword("import") && !atDecl())
      expected("an operator or the next declaration");
    if (!decl->result)
      decl->result = errorExpr();
    Item item;
    item.decl = std::move(decl);
    file.items.push_back(std::move(item));
    if (failed)
      skipToItem();
  }

  void parseParams(Decl &decl) {
    while (!token().is(TokenKind::RParen) && !failed) {
      decl.params.push_back(parseParam());
      if (!takeIf(TokenKind::Comma))
        break;
    }
  }

  Param parseParam() {
    Param p;
    p.doc = docs();
    p.name = declaredName("a parameter", "a parameter's name or `)`");
    if (failed || !expect(TokenKind::Colon, "`:` and a type"))
      return p;
    p.typeName = {token().text};
    int type = llvm::StringSwitch<int>(token().text)
                   .Case("int", 0)
                   .Case("float", 1)
                   .Case("bool", 2)
                   .Case("fraction", 3)
                   .Case("budget", 4)
                   .Case("score", 5)
                   .Case("press", 6)
                   .Case("tensor", 7)
                   .Default(-1);
    if (type < 0) {
      expected("a type (`int`, `float`, `bool`, `fraction`, `budget`, `score`, `press` or "
               "`tensor`)");
      return p;
    }
    p.type = static_cast<ParamType>(type);
    take();
    if (token().is(TokenKind::LSquare)) {
      if (p.type > ParamType::Fraction)
        expected("no axes after `" + spelling(p.type).str() + "`");
      take();
      do
        p.axes.push_back(parseAxis());
      while (!failed && takeIf(TokenKind::Comma));
      p.axesEnd = token().start();
      expect(TokenKind::RSquare, "`,` or `]`");
    }
    if (!failed && takeIf(TokenKind::Assign))
      p.defaultValue = parsePipe();
    if (!failed && token().isKeyword("in")) {
      p.hasRange = true;
      p.rangeLoc = take().start();
      p.low = parseBound();
      p.dots = token().start();
      if (expect(TokenKind::DotDot, "`..`"))
        p.high = parseBound();
    }
    return p;
  }

  Expr *parseBound() {
    if (!token().is(TokenKind::Int) && !token().is(TokenKind::Float))
      return nullptr;
    return parseNumber();
  }

  Name parseAxis() {
    if (token().is(TokenKind::Name) || token().is(TokenKind::Primed))
      return {take().text};
    expected("the name of an axis");
    return {};
  }

  void parseBlock(Decl &decl) {
    decl.block = true;
    decl.blockOpen = take().start();
    bool told = false;
    while (token().isKeyword("let") || token().isKeyword("require")) {
      Statement s;
      s.isLet = token().text == "let";
      s.loc = take().start();
      if (s.isLet) {
        s.name = declaredName("a value", "a name");
        if (!failed && expect(TokenKind::Assign, "`=`"))
          s.value = parsePipe();
      } else {
        s.value = parsePipe();
        if (!failed && expect(TokenKind::Comma, "`,` and a message in quotes")) {
          s.messageLoc = token().start();
          StringRef text = token().text;
          if (expect(TokenKind::String, "a message in quotes"))
            s.message = text.drop_front().drop_back(text.size() > 1 && text.back() == '"');
        }
      }
      if (!s.value)
        s.value = errorExpr();
      // The next statement begins with a word of its own; anything else belongs to no expression.
      if (!failed && !token().isKeyword("let") && !token().isKeyword("require") &&
          !token().isKeyword("return"))
        expected(token().is(TokenKind::RBrace) ? "`return` and the result"
                                               : "an operator, `let`, `require` or `return`");
      decl.statements.push_back(s);
      told = failed;
      if (failed)
        skipToStatement();
    }
    decl.returnLoc = token().start();
    if (!token().isKeyword("return")) {
      if (told) { // the last statement had an error, and the block ends with it
        failed = true;
        takeIf(TokenKind::RBrace);
        return;
      }
      expected("`let`, `require` or `return`");
      return;
    }
    take();
    decl.result = parsePipe();
    decl.blockClose = token().start();
    if (!failed)
      expect(TokenKind::RBrace, "an operator or `}`");
  }

  //===----------------------------------------------------------------------------------------===//
  // Expressions
  //===----------------------------------------------------------------------------------------===//

  SMRange since(SMLoc start) const { return {start, lastEnd}; }
  Expr *errorExpr() { return file.make<ErrorExpr>(SMRange(token().start(), token().start())); }

  /// Sets the height of a node above its children, and refuses one that is too high.
  template <typename T>
  T *raise(T *node, std::initializer_list<const Expr *> children) {
    for (const Expr *child : children)
      if (child)
        node->height = std::max(node->height, child->height + 1);
    if (node->height > maxHeight && !failed) {
      softError(node->loc(), Diag::Depth, maxHeight);
      failed = true;
    }
    return node;
  }

  /// Guards the recursion itself, which runs ahead of the nodes' heights.
  struct Nesting {
    Nesting(Parser &parser) : parser(parser) { ++parser.depth; }
    ~Nesting() { --parser.depth; }
    Parser &parser;
  };
  bool tooDeep() {
    if (depth <= maxHeight)
      return false;
    if (!failed)
      softError(token().start(), Diag::Depth, maxHeight);
    failed = true;
    return true;
  }

  /// An operator of another language, one of `which` (empty: any): says what to write here, and
  /// reads on as if it were ours.
  bool foreignOperator(std::initializer_list<StringRef> which) {
    StringRef op = token().text;
    if (!token().is(TokenKind::Foreign) || failed ||
        (which.size() && !llvm::is_contained(which, op)))
      return false;
    auto diag = softError(token().start(), Diag::OperatorUnknown, op);
    StringRef instead = llvm::StringSwitch<StringRef>(op)
                            .Case("//", "write `floor(a / b)`")
                            .Cases({"&&", "&"}, "write `a and b`")
                            .Cases({"||", "|"}, "write `a or b`")
                            .Cases({"!", "~"}, "write `not a`")
                            .Cases({"^", "**="}, "write `a ** b` for a power")
                            .Case("@", "write `dot(a, b, axis)`")
                            .Case("<>", "write `a != b`")
                            .Case("?", "write `where(condition, a, b)`")
                            .Case("<<", "write `a * 2 ** b`")
                            .Case(">>", "write `floor(a / 2 ** b)`")
                            .Case("=>", "write `>=` to compare, `->` to rename an axis")
                            .Default("values do not change: write `let` with a new name");
    note(diag, token().start(), instead);
    return true;
  }

  /// Those that no other level of precedence takes.
  bool foreignFactor() {
    static constexpr StringRef others[] = {"||", "|", "&&", "&", "<>", "=>"};
    return token().is(TokenKind::Foreign) && !llvm::is_contained(others, token().text) &&
           foreignOperator({});
  }

  Expr *binary(Expr *lhs, const Token &op, Expr *rhs) {
    return raise(file.make<BinaryExpr>(Name{op.text}, lhs, rhs, since(lhs->loc())), {lhs, rhs});
  }

  Expr *parsePipe() {
    Nesting nesting(*this);
    if (tooDeep())
      return errorExpr();
    Expr *value = parseOr();
    while (!failed && token().is(TokenKind::Pipe)) {
      SMLoc dot = take().start();
      Name callee = parseCallee("the name of a stage");
      if (failed)
        break;
      if (!token().is(TokenKind::LParen)) {
        expected("`(` after `" + callee.text.str() + "`");
        break;
      }
      value = parseCall(CallExpr::Style::Piped, callee, value, dot);
    }
    return value;
  }

  Expr *parseOr() {
    Expr *lhs = parseAnd();
    while (!failed && (token().isKeyword("or") || foreignOperator({"||", "|"}))) {
      Token op = take();
      lhs = binary(lhs, op, parseAnd());
    }
    return lhs;
  }

  Expr *parseAnd() {
    Expr *lhs = parseNot();
    while (!failed && (token().isKeyword("and") || foreignOperator({"&&", "&"}))) {
      Token op = take();
      lhs = binary(lhs, op, parseNot());
    }
    return lhs;
  }

  Expr *unary(Expr *(Parser::*operand)()) {
    Nesting nesting(*this);
    if (tooDeep())
      return errorExpr();
    Token op = take();
    Expr *inner = (this->*operand)();
    return raise(file.make<UnaryExpr>(Name{op.text}, inner, since(op.start())), {inner});
  }

  Expr *parseNot() {
    if (token().isKeyword("not"))
      return unary(&Parser::parseNot);
    return parseCompare();
  }

  bool atCompare() const {
    return token().is(TokenKind::Operator) && llvm::StringSwitch<bool>(token().text)
                                                  .Cases({"<", "<=", ">", ">=", "==", "!="}, true)
                                                  .Default(false);
  }

  Expr *parseCompare() {
    Expr *lhs = parseSum();
    if (failed || !(atCompare() || foreignOperator({"<>", "=>"})))
      return lhs;
    Token op = take();
    lhs = binary(lhs, op, parseSum());
    while (!failed && atCompare()) {
      auto diag = softError(token().start(), Diag::CompareChain, token().text);
      note(diag, token().start(), "write `a < b and b < c`");
      Token next = take();
      lhs = binary(lhs, next, parseSum());
    }
    return lhs;
  }

  bool atOperator(StringRef a, StringRef b, StringRef c = "") const {
    return token().is(TokenKind::Operator) &&
           (token().text == a || token().text == b || token().text == c);
  }

  Expr *parseSum() {
    Expr *lhs = parseTerm();
    while (!failed && atOperator("+", "-")) {
      Token op = take();
      lhs = binary(lhs, op, parseTerm());
    }
    return lhs;
  }

  Expr *parseTerm() {
    Expr *lhs = parseUnary();
    while (!failed && (atOperator("*", "/", "%") || foreignFactor())) {
      Token op = take();
      lhs = binary(lhs, op, parseUnary());
    }
    return lhs;
  }

  Expr *parseUnary() {
    if (token().is(TokenKind::Operator, "-") ||
        ((token().is(TokenKind::Foreign, "!") || token().is(TokenKind::Foreign, "~")) &&
         foreignOperator({})))
      return unary(&Parser::parseUnary);
    return parsePower();
  }

  Expr *parsePower() {
    Expr *lhs = parsePostfix();
    if (failed || !token().is(TokenKind::Operator, "**"))
      return lhs;
    Nesting nesting(*this); // right associative: a ** b ** c
    if (tooDeep())
      return lhs;
    Token op = take();
    return binary(lhs, op, parseUnary());
  }

  /// The callee after `.` or `|>`.
  Name parseCallee(StringRef what) {
    if (token().is(TokenKind::Name) || token().isKeyword("int") || token().isKeyword("float"))
      return {take().text};
    expected(what);
    return {};
  }

  Expr *parsePostfix() {
    Expr *value = parsePrimary();
    while (!failed && token().is(TokenKind::Dot)) {
      SMLoc dot = take().start();
      Name callee = parseCallee("a name after `.`");
      if (failed)
        break;
      if (token().is(TokenKind::LParen)) {
        value = parseCall(CallExpr::Style::Method, callee, value, dot);
        continue;
      }
      auto *member = file.make<CallExpr>(CallExpr::Style::Member, callee, since(value->loc()));
      member->base = value;
      member->dot = dot;
      value = raise(member, {value});
    }
    return value;
  }

  Expr *parseCall(CallExpr::Style style, Name callee, Expr *base, SMLoc dot) {
    auto *call = file.make<CallExpr>(style, callee, SMRange());
    call->base = base;
    call->dot = dot;
    call->open = take().start();
    bool named = false;
    while (!token().is(TokenKind::RParen) && !failed) {
      Argument a = parseArgument();
      if (named && !a.name && !failed)
        softError(a.loc(), Diag::ArgumentOrder);
      named |= bool(a.name);
      call->args.push_back(a);
      if (!takeIf(TokenKind::Comma))
        break;
    }
    call->close = token().start();
    if (!failed)
      expect(TokenKind::RParen, "an operator, `,` or `)`");
    call->range = since(base ? base->loc() : callee.loc());
    raise(call, {base});
    for (const Argument &a : call->args)
      raise(call, {a.value});
    return call;
  }

  Argument parseArgument() {
    Argument a;
    if (token(1).is(TokenKind::Arrow)) {
      a.from = parseAxis();
      if (failed) {
        a.value = errorExpr();
        return a;
      }
      take();
      a.to = parseAxis();
      return a;
    }
    // Axes and parameters may be called `int`, `where`, ...: only `=` behind a word makes a name.
    if ((token().is(TokenKind::Name) || token().is(TokenKind::Keyword)) &&
        token(1).is(TokenKind::Assign)) {
      a.name = {take().text};
      take();
    }
    a.value = parsePipe();
    return a;
  }

  Expr *parseNumber() {
    Token t = take();
    auto *number = file.make<NumberExpr>(since(t.start()));
    number->isInt = t.is(TokenKind::Int);
    if (number->isInt)
      (void)t.text.getAsInteger(10, number->integer);
    (void)t.text.getAsDouble(number->real);
    return number;
  }

  Expr *parsePrimary() {
    const Token t = token();
    switch (t.kind) {
    case TokenKind::Int:
    case TokenKind::Float:
      return parseNumber();
    case TokenKind::Primed:
      take();
      return file.make<NameExpr>(Name{t.text}, since(t.start()));
    case TokenKind::Name:
      take();
      if (token().is(TokenKind::LParen))
        return parseCall(CallExpr::Style::Plain, {t.text}, nullptr, SMLoc());
      return file.make<NameExpr>(Name{t.text}, since(t.start()));
    case TokenKind::Keyword:
      if (t.text == "true" || t.text == "false" || t.text == "inf") {
        take();
        return file.make<ConstantExpr>(since(t.start()));
      }
      if ((t.text == "int" || t.text == "float") && token(1).is(TokenKind::LParen)) {
        take();
        return parseCall(CallExpr::Style::Plain, {t.text}, nullptr, SMLoc());
      }
      break;
    case TokenKind::LParen: {
      take();
      Expr *inner = parsePipe();
      if (!failed)
        expect(TokenKind::RParen, "an operator or `)`");
      return raise(file.make<ParenExpr>(inner, since(t.start())), {inner});
    }
    case TokenKind::LSquare:
      return parseAxes();
    default:
      break;
    }
    expected("an expression");
    return errorExpr();
  }

  Expr *parseAxes() {
    Token open = take();
    auto *axes = file.make<AxesExpr>(SMRange());
    do {
      AxesExpr::Item item;
      item.axis = parseAxis();
      if (!failed && takeIf(TokenKind::Colon))
        item.size = parsePipe();
      axes->items.push_back(item);
    } while (!failed && takeIf(TokenKind::Comma));
    if (!failed)
      expect(TokenKind::RSquare, "`,` or `]`");
    axes->range = since(open.start());
    for (const AxesExpr::Item &item : axes->items)
      raise(axes, {item.size});
    return axes;
  }

  TokenStream stream;
  size_t at = 0;
  SMLoc lastEnd;
  File &file;
  Diagnostics &diagnostics;
  bool failed = false; // an error was told and the parser has not recovered yet
  unsigned depth = 0;
};

} // namespace

std::unique_ptr<File> kvpc::parse(StringRef path, StringRef source, Diagnostics &diagnostics) {
  auto file = std::make_unique<File>();
  file->path = path.str();
  file->source = source;
  unsigned before = diagnostics.errorCount();
  Parser(source, *file, diagnostics).parseFile();
  file->hasErrors |= diagnostics.errorCount() != before;
  return file;
}

Expr *kvpc::parseExpression(StringRef source, File &file, Diagnostics &diagnostics) {
  unsigned before = diagnostics.errorCount();
  Expr *value = Parser(source, file, diagnostics).parseLone();
  return diagnostics.errorCount() == before ? value : nullptr;
}
