//===- Lexer.cpp - tokens of the press language -----------------------------------------------===//
#include "lib/Frontend/Lexer.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSwitch.h"
#include <cmath>

using namespace kvpc;
using llvm::StringRef;

bool kvpc::isKeyword(StringRef word) {
  return llvm::StringSwitch<bool>(word)
      .Cases({"import", "score", "press", "fn", "let", "require", "return"}, true)
      .Cases({"and", "or", "not", "true", "false", "inf", "in", "int", "float", "bool"}, true)
      .Default(false);
}

namespace {

bool isNameStart(char c) { return llvm::isAlpha(c) || c == '_'; }
bool isNamePart(char c) { return llvm::isAlnum(c) || c == '_'; }

class Lexer {
public:
  Lexer(StringRef source, Diagnostics &diagnostics)
      : at(source.begin()), end(source.end()), diagnostics(diagnostics) {
    if (starts("\xEF\xBB\xBF")) // the mark that some editors put before UTF-8
      at += 3;
  }

  TokenStream run() {
    while (skipBlanks() && diagnostics.errorCount() < maxTextErrors)
      one();
    add(TokenKind::End, at);
    return std::move(out);
  }

private:
  char peek(size_t n = 0) const { return static_cast<size_t>(end - at) > n ? at[n] : '\0'; }
  bool starts(StringRef text) const { return StringRef(at, end - at).starts_with(text); }
  static llvm::SMLoc place(const char *p) { return llvm::SMLoc::getFromPointer(p); }

  void add(TokenKind kind, const char *start) {
    out.tokens.push_back(
        {kind, StringRef(start, at - start), static_cast<unsigned>(out.comments.size())});
    lineHasToken = true;
    lines = 0;
  }

  /// Blanks and comments; false at the end.
  bool skipBlanks() {
    for (; at != end; ++at) {
      if (*at == '\n') {
        lineHasToken = false;
        ++lines;
      } else if (*at == '#') {
        comment();
        --at; // the line break is counted above
      } else if (*at != ' ' && *at != '\t' && !starts("\r\n")) {
        return true;
      }
    }
    return false;
  }

  void comment() {
    const char *start = at;
    while (at != end && *at != '\n' && (*at != '\r' || starts("\r\n")))
      ++at;
    StringRef text = StringRef(start, at - start).rtrim();
    bool doc = text.starts_with("##") && !text.starts_with("###");
    out.comments.push_back({text, doc, !lineHasToken, lines > 1});
    lineHasToken = true;
    lines = 0;
  }

  void one() {
    const char *start = at;
    if (isNameStart(*at))
      return name(start);
    if (llvm::isDigit(*at))
      return number(start);
    if (*at == '"')
      return string(start);
    // Longest first. Operators of other languages become one token, so that the parser can say
    // what to write instead.
    struct Symbol {
      StringRef text;
      TokenKind kind;
    };
    static constexpr Symbol symbols[] = {
        {"|>", TokenKind::Pipe},     {"->", TokenKind::Arrow},    {"..", TokenKind::DotDot},
        {"**=", TokenKind::Foreign}, {"**", TokenKind::Operator}, {"<=", TokenKind::Operator},
        {">=", TokenKind::Operator}, {"==", TokenKind::Operator}, {"!=", TokenKind::Operator},
        {"//", TokenKind::Foreign},  {"&&", TokenKind::Foreign},  {"||", TokenKind::Foreign},
        {"<<", TokenKind::Foreign},  {">>", TokenKind::Foreign},  {"=>", TokenKind::Foreign},
        {"+=", TokenKind::Foreign},  {"-=", TokenKind::Foreign},  {"*=", TokenKind::Foreign},
        {"/=", TokenKind::Foreign},  {"%=", TokenKind::Foreign},  {"++", TokenKind::Foreign},
        {"<>", TokenKind::Foreign},  {":=", TokenKind::Foreign},  {"!", TokenKind::Foreign},
        {"^", TokenKind::Foreign},   {"@", TokenKind::Foreign},   {"&", TokenKind::Foreign},
        {"|", TokenKind::Foreign},   {"~", TokenKind::Foreign},   {"?", TokenKind::Foreign},
        {"+", TokenKind::Operator},  {"-", TokenKind::Operator},  {"*", TokenKind::Operator},
        {"/", TokenKind::Operator},  {"%", TokenKind::Operator},  {"<", TokenKind::Operator},
        {">", TokenKind::Operator},  {"(", TokenKind::LParen},    {")", TokenKind::RParen},
        {"[", TokenKind::LSquare},   {"]", TokenKind::RSquare},   {"{", TokenKind::LBrace},
        {"}", TokenKind::RBrace},    {",", TokenKind::Comma},     {":", TokenKind::Colon},
        {".", TokenKind::Dot},       {"=", TokenKind::Assign},
    };
    for (const Symbol &symbol : symbols) {
      if (!starts(symbol.text))
        continue;
      at += symbol.text.size();
      return add(symbol.kind, start);
    }
    // One report for a run of bytes outside ASCII: a letter, a quote or a dash pasted from prose.
    do
      ++at;
    while (at != end && (*at & 0x80) && (*start & 0x80));
    std::string shown(start, at);
    if (!(*start & 0x80) && !llvm::isPrint(*start))
      shown = "byte " + std::to_string(static_cast<unsigned char>(*start));
    diagnostics.error(place(start), Diag::Character, shown);
    add(TokenKind::Error, start);
  }

  void name(const char *start) {
    while (at != end && isNamePart(*at))
      ++at;
    StringRef text(start, at - start);
    if (peek() != '\'')
      return add(isKeyword(text) ? TokenKind::Keyword : TokenKind::Name, start);
    while (peek() == '\'')
      ++at;
    add(TokenKind::Primed, start);
  }

  void number(const char *start) {
    auto digits = [&] {
      while (llvm::isDigit(peek()))
        ++at;
    };
    bool real = false;
    digits();
    // `1..` is a range, and `1.mean` a member.
    if (peek() == '.' && llvm::isDigit(peek(1))) {
      real = true;
      ++at;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      size_t sign = peek(1) == '+' || peek(1) == '-';
      if (llvm::isDigit(peek(1 + sign))) {
        real = true;
        at += 1 + sign;
        digits();
      }
    }
    if (isNamePart(peek())) {
      while (isNamePart(peek()))
        ++at;
      diagnostics.error(place(start), Diag::Number, StringRef(start, at - start),
                        "write it with digits, a point and an exponent alone");
      return add(TokenKind::Error, start);
    }
    StringRef text(start, at - start);
    int64_t integer;
    double value = 0;
    bool wrong = real ? text.getAsDouble(value) : text.getAsInteger(10, integer);
    if (wrong || std::isinf(value)) {
      diagnostics.error(place(start), Diag::Number, text, "it does not fit in 64 bits");
      return add(TokenKind::Error, start);
    }
    add(real ? TokenKind::Float : TokenKind::Int, start);
  }

  void string(const char *start) {
    ++at;
    while (at != end && *at != '"' && *at != '\n')
      ++at;
    if (peek() != '"') {
      diagnostics.error(place(start), Diag::StringEnd);
      return add(TokenKind::String, start);
    }
    ++at;
    add(TokenKind::String, start);
  }

  const char *at;
  const char *end;
  Diagnostics &diagnostics;
  TokenStream out;
  bool lineHasToken = false;
  unsigned lines = 1; // line breaks since the last token or comment
};

} // namespace

TokenStream kvpc::lex(StringRef source, Diagnostics &diagnostics) {
  return Lexer(source, diagnostics).run();
}
