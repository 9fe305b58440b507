//===- SyntaxTest.cpp - lexer, parser and printer ---------------------------------------------===//
#include "Capture.h"

#include "lib/Frontend/Frontend.h"
#include "lib/Frontend/Parser.h"
#include "lib/Frontend/Printer.h"
#include "lib/Frontend/Sources.h"
#include "gtest/gtest.h"

#include <random>

using namespace kvpc;
using kvpc::test::Capture;

namespace {

using Messages = std::vector<std::string>;

std::vector<std::string> texts(const TokenStream &stream) {
  std::vector<std::string> all;
  for (const Token &t : stream.tokens)
    all.push_back(t.text.str());
  return all;
}

TEST(Lexer, Tokens) {
  Capture c;
  auto stream = lex(addSource(c.sources, "a.kv", "a.b(1..2, channel'' ** -3.5e-2) |> x <= y -> z"),
                    c.diagnostics);
  EXPECT_EQ(texts(stream), (std::vector<std::string>{
                               "a", ".",      "b", "(",  "1", "..", "2", ",",  "channel''", "**",
                               "-", "3.5e-2", ")", "|>", "x", "<=", "y", "->", "z",         ""}));
  EXPECT_TRUE(c.messages.empty());
}

TEST(Lexer, ARangeIsNotAFraction) {
  Capture c;
  auto stream = lex(addSource(c.sources, "a.kv", "in 1.. 0.5..1"), c.diagnostics);
  EXPECT_EQ(texts(stream), (std::vector<std::string>{"in", "1", "..", "0.5", "..", "1", ""}));
}

TEST(Lexer, Comments) {
  Capture c;
  auto stream =
      lex(addSource(c.sources, "a.kv", "## doc\nx # end  \n\n### rule\n#tight"), c.diagnostics);
  ASSERT_EQ(stream.comments.size(), 4u);
  EXPECT_TRUE(stream.comments[0].doc && stream.comments[0].ownLine);
  EXPECT_EQ(stream.comments[1].text, "# end");
  EXPECT_FALSE(stream.comments[1].ownLine || stream.comments[1].doc);
  EXPECT_TRUE(stream.comments[2].blankAbove && !stream.comments[2].doc);
  EXPECT_FALSE(stream.comments[3].blankAbove);
}

TEST(Lexer, LineEndsOfOtherSystems) {
  Capture c;
  auto stream =
      lex(addSource(c.sources, "a.kv", "\xEF\xBB\xBFx # end\r\n\r\ny\r\n"), c.diagnostics);
  EXPECT_EQ(texts(stream), (std::vector<std::string>{"x", "y", ""}));
  EXPECT_EQ(stream.comments[0].text, "# end");
  EXPECT_TRUE(c.messages.empty());
  // One alone would hide what stands behind a comment.
  lex(addSource(c.sources, "b.kv", "x # end\ry"), c.diagnostics);
  EXPECT_EQ(c.messages, Messages{"1:8: `byte 13` has no meaning here [kv-character]"});
}

TEST(Lexer, Errors) {
  Capture c;
  lex(addSource(c.sources, "a.kv", "$ 12ab \"open\n 99999999999999999999 1e999 \xe2\x80\x93"),
      c.diagnostics);
  EXPECT_EQ(c.messages,
            (Messages{"1:1: `$` has no meaning here [kv-character]",
                      "1:3: `12ab` is not a number: write it with digits, a point and an exponent "
                      "alone [kv-number]",
                      "1:8: this string has no closing `\"` on its line [kv-string-end]",
                      "2:2: `99999999999999999999` is not a number: it does not fit in 64 bits "
                      "[kv-number]",
                      "2:23: `1e999` is not a number: it does not fit in 64 bits [kv-number]",
                      "2:29: `\xe2\x80\x93` has no meaning here [kv-character]"}));
}

std::string tree(llvm::StringRef source) {
  Capture c;
  std::string text;
  llvm::raw_string_ostream os(text);
  if (!dumpAst(&c.context, c.sources, "a.kv", source, os))
    return c.messages.empty() ? "failed without a message" : c.messages.front();
  return text;
}

TEST(Parser, PrecedenceIsPythons) {
  EXPECT_EQ(tree("fn f() = not a < b + c * -d ** e.g or x and y"), R"(file
  1:1 fn f
    1:8 result
      1:10 binary or
        1:10 unary not
          1:14 binary <
            1:14 name a
            1:18 binary +
              1:18 name b
              1:22 binary *
                1:22 name c
                1:26 unary -
                  1:27 binary **
                    1:27 name d
                    1:32 member g
                      1:32 name e
        1:39 binary and
          1:39 name x
          1:45 name y
)");
}

TEST(Parser, PowerGroupsToTheRight) {
  EXPECT_EQ(tree("fn f() = a ** b ** c - d - e"), R"(file
  1:1 fn f
    1:8 result
      1:10 binary -
        1:10 binary -
          1:10 binary **
            1:10 name a
            1:15 binary **
              1:15 name b
              1:20 name c
          1:24 name d
        1:28 name e
)");
}

TEST(Parser, Declarations) {
  EXPECT_EQ(tree(R"(import other
## A doc
## of two lines.
press p(
  ## How wide.
  w: int = 4 in 1..64, f: float[layer, head], budget: budget
) = {
  let a = f(x, [head, sketch: 48]).rename(channel -> channel')
  require w < 3, "w is too large"
  return s |> topk(b = budget)
}
)"),
            R"(file
  1:1 import other
  4:1 press p
    doc "A doc\nof two lines."
    6:3 param w: int in 1..64
      doc "How wide."
      6:12 constant 4
    6:24 param f: float[layer, head]
    6:47 param budget: budget
    8:3 let a
      8:11 method rename
        8:11 call f
          8:13 name x
          8:16 axes
            8:17 axis head
            8:23 axis sketch
              8:31 constant 48
        8:43 channel -> channel'
    9:3 require "w is too large"
      9:11 binary <
        9:11 name w
        9:15 constant 3
    10:3 result
      10:10 pipe topk
        10:10 name s
        10:24 b = name budget
)");
}

Messages errorsOf(llvm::StringRef source) {
  Capture c;
  parse("a.kv", addSource(c.sources, "a.kv", source), c.diagnostics);
  return c.messages;
}

TEST(Parser, OperatorsOfOtherLanguages) {
  EXPECT_EQ(errorsOf("fn f() = length // lag"),
            (Messages{"1:17: there is no operator `//` [kv-operator-unknown]",
                      "1:17: note: write `floor(a / b)`"}));
  EXPECT_EQ(
      errorsOf("fn f() = !a && b"),
      (Messages{"1:10: there is no operator `!` [kv-operator-unknown]", "1:10: note: write `not a`",
                "1:13: there is no operator `&&` [kv-operator-unknown]",
                "1:13: note: write `a and b`"}));
}

TEST(Parser, SeveralErrorsInOneRun) {
  EXPECT_EQ(errorsOf(R"(score a( = 1
score b() = keys.norm(channel
press c() = {
  let x =
  let y = 1 < 2 < 3
  require y
  return
}
fn if(in: int) = 1
stray
score d() = -keys.norm(channel))"),
            (Messages{"1:10: expected a parameter's name or `)`, found `=` [kv-syntax]",
                      "3:1: expected an operator, `,` or `)`, found `press` [kv-syntax]",
                      "5:3: expected an expression, found `let` [kv-syntax]",
                      "5:17: a comparison has two sides; this one goes on with `<` "
                      "[kv-compare-chain]",
                      "5:17: note: write `a < b and b < c`",
                      "7:3: expected `,` and a message in quotes, found `return` [kv-syntax]",
                      "8:1: expected an expression, found `}` [kv-syntax]",
                      "9:7: `in` is a word of the language and cannot name a parameter "
                      "[kv-keyword]",
                      "10:1: expected an operator or the next declaration, found `stray` "
                      "[kv-syntax]"}));
}

TEST(Parser, NamedArgumentsComeLast) {
  EXPECT_EQ(errorsOf("fn f() = g(a = 1, 2)"),
            (Messages{"1:19: a positional argument stands after a named one "
                      "[kv-argument-order]"}));
}

TEST(Parser, DepthIsBounded) {
  std::string deep(5000, '('), sum = "1", minus(5000, '-'), dots = "a";
  for (int i = 0; i < 5000; ++i)
    sum += " + 1", dots += ".b()";
  for (const std::string &text : {deep, sum, minus + "1", dots}) {
    Messages m = errorsOf("fn f() = " + text);
    ASSERT_FALSE(m.empty());
    EXPECT_NE(m[0].find("[kv-depth]"), std::string::npos) << m[0];
  }
}

std::string formatted(llvm::StringRef source) {
  Capture c;
  auto text = format(&c.context, c.sources, "a.kv", source);
  return text ? *text : c.messages.front();
}

/// The tree without its places and docs' columns.
std::string shape(llvm::StringRef source) {
  std::string out;
  llvm::SmallVector<llvm::StringRef> lines;
  std::string text = tree(source);
  llvm::StringRef(text).split(lines, '\n');
  for (llvm::StringRef line : lines) {
    llvm::StringRef rest = line.ltrim();
    out.append(line.size() - rest.size(), ' ');
    out += rest.ltrim("0123456789:").str() + "\n";
  }
  return out;
}

TEST(Printer, Chains) {
  EXPECT_EQ(formatted(R"(## Doc.
score snapkv( window:int=64 in 1.., kernel: int = 5 in 1..) = attention(queries.last(window), keys) # [head]
 .mean(query , group).avg_pool(token, kernel, where = position < length - window)
 # own
 .protect(position>=length-window))"),
            R"(## Doc.
score snapkv(window: int = 64 in 1.., kernel: int = 5 in 1..) =
  attention(queries.last(window), keys)  # [head]
    .mean(query, group)
    .avg_pool(token, kernel, where = position < length - window)
    # own
    .protect(position >= length - window)
)");
}

TEST(Printer, Pipes) {
  EXPECT_EQ(formatted("press think(window: int = 32 in 1.., ratio: fraction = 0.5) = "
                      "(queries.last(window) ** 2).mean(query, group) * (keys ** 2).mean(token) "
                      "|> topk(keep(channels - int(channels * ratio)))"),
            R"(press think(window: int = 32 in 1.., ratio: fraction = 0.5) =
  (queries.last(window) ** 2).mean(query, group) * (keys ** 2).mean(token)
    |> topk(keep(channels - int(channels * ratio)))
)");
}

TEST(Printer, BlocksAndComments) {
  EXPECT_EQ(formatted(R"(# head


# again
import a
press p(
  ## The width.
  w: int = 1, # one
  b: budget) = { # open

  let x = not (a or b)   # x


  # before y
  let y = -x ** 2
  require y > 0 , "positive"
  return x |> topk( b, )   # end
  # last
} # after
# eof)"),
            R"(# head

# again
import a
press p(
  ## The width.
  w: int = 1,  # one
  b: budget,
) = {  # open
  let x = not (a or b)  # x

  # before y
  let y = -x ** 2
  require y > 0, "positive"
  return x |> topk(b)  # end
  # last
}  # after
# eof
)");
}

TEST(Printer, LongOperandsBreakBeforeOperators) {
  EXPECT_EQ(formatted("score s() = aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa * bbbbbbbbbbbbbbbbbbbbbbbb + "
                      "ccccccccccccccccccccccccccccccc - dddddddddddddddddddddddddddd(eeeeeeee)"),
            R"(score s() =
  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa * bbbbbbbbbbbbbbbbbbbbbbbb
    + ccccccccccccccccccccccccccccccc
    - dddddddddddddddddddddddddddd(eeeeeeee)
)");
}

TEST(Printer, TheLibraryIsAFixedPoint) {
  for (const LibraryFile &file : library()) {
    EXPECT_EQ(formatted(file.source), file.source.str()) << file.path.str();
    EXPECT_EQ(shape(formatted(file.source)), shape(file.source));
  }
}

TEST(Printer, EmptyFile) {
  EXPECT_EQ(formatted(""), "");
  EXPECT_EQ(formatted("\n\n# only\n"), "# only\n");
}

/// Random edits of the library's tokens: never a crash, and what still parses formats to a fixed
/// point of the same meaning with all of its comments.
TEST(Fuzz, TokensOfTheLibrary) {
  std::mt19937 random(7);
  auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  static const char *const spices[] = {
      "(",   ")", "[",  "]",     "{",      "}",  ",",   "->",     "|>",    "..",     ".",
      "=",   "'", "#",  "# c\n", "## d\n", "\n", "let", "return", "score", "press",  "in",
      "not", "-", "**", "1",     "1e",     "\"", "//",  "\xff",   "int",   "import", "\n\n"};
  int parsed = 0;
  for (const LibraryFile &file : library()) {
    for (int round = 0; round < 60; ++round) {
      Capture c;
      llvm::StringRef base = addSource(c.sources, "base.kv", file.source);
      TokenStream stream = lex(base, c.diagnostics);
      std::string text = file.source.str();
      for (size_t edits = 1 + below(3); edits; --edits) {
        const Token &t = stream.tokens[below(stream.tokens.size())];
        size_t at = std::min<size_t>(t.text.begin() - base.begin(), text.size());
        switch (below(4)) {
        case 0:
          text.erase(at, t.text.size());
          break;
        case 1:
          text.insert(at, spices[below(std::size(spices))]);
          break;
        case 2:
          text.insert(at, stream.tokens[below(stream.tokens.size())].text.str() + " ");
          break;
        default:
          text.insert(at, " # comment\n");
        }
      }
      Capture fresh;
      auto result = format(&fresh.context, fresh.sources, "a.kv", text);
      EXPECT_EQ(result.has_value(), fresh.messages.empty()) << text;
      if (!result)
        continue;
      ++parsed;
      EXPECT_EQ(formatted(*result), *result) << text;
      EXPECT_EQ(shape(*result), shape(text)) << text;
      EXPECT_EQ(llvm::StringRef(*result).count('#') >= 1, llvm::StringRef(text).count('#') >= 1);
    }
  }
  EXPECT_GT(parsed, 10);
}

} // namespace
