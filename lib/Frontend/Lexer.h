//===- Lexer.h - tokens of the press language -------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_LEXER_H
#define KVPC_LIB_FRONTEND_LEXER_H

#include "lib/Frontend/Diagnostics.h"
#include "llvm/ADT/StringRef.h"
#include <vector>

namespace kvpc {

enum class TokenKind {
  End,
  Name,    // an identifier that is not a keyword
  Primed,  // an axis name with primes: channel'
  Keyword, // see isKeyword
  Int,
  Float,
  String, // the text includes the quotes
  LParen,
  RParen,
  LSquare,
  RSquare,
  LBrace,
  RBrace,
  Comma,
  Colon,
  Dot,
  DotDot,
  Arrow,    // ->
  Pipe,     // |>
  Assign,   // =
  Operator, // + - * / ** % < <= > >= == !=
  Foreign,  // an operator of other languages: // && || ! ^ @ ...
  Error,    // reported by the lexer already
};

struct Token {
  TokenKind kind = TokenKind::End;
  llvm::StringRef text;
  /// How many comments stand before this token in the file.
  unsigned comments = 0;

  llvm::SMLoc start() const { return llvm::SMLoc::getFromPointer(text.begin()); }
  llvm::SMLoc end() const { return llvm::SMLoc::getFromPointer(text.end()); }
  bool is(TokenKind k) const { return kind == k; }
  bool is(TokenKind k, llvm::StringRef t) const { return kind == k && text == t; }
  bool isKeyword(llvm::StringRef word) const { return is(TokenKind::Keyword, word); }
};

struct Comment {
  llvm::StringRef text; // from # to the end of the line, without trailing blanks
  bool doc = false;     // starts with exactly two #
  bool ownLine = false; // nothing but blanks before it on its line
  bool blankAbove = false;
  llvm::SMLoc start() const { return llvm::SMLoc::getFromPointer(text.begin()); }
};

struct TokenStream {
  std::vector<Token> tokens; // ends with an End token
  std::vector<Comment> comments;
};

/// Words that no declaration, parameter or `let` may be called.
bool isKeyword(llvm::StringRef word);

/// Splits a buffer of `diagnostics`' source manager. Wrong characters are reported and left out.
TokenStream lex(llvm::StringRef source, Diagnostics &diagnostics);

} // namespace kvpc

#endif
