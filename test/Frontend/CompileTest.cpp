//===- CompileTest.cpp - programs to kvp: the library, parameters, closures, fuzz -------------===//
#include "Capture.h"

#include "dialect/IR/Kvp.h"
#include "lib/Frontend/Frontend.h"
#include "lib/Frontend/Lexer.h"
#include "lib/Frontend/Sources.h"
#include "llvm/ADT/STLExtras.h"
#include "gtest/gtest.h"

#include <random>

using namespace kvpc;
using kvpc::test::Capture;

namespace {

struct Compiled : Capture {
  mlir::OwningOpRef<mlir::ModuleOp> module;

  Compiled(llvm::StringRef source, std::vector<Define> defines = {}, std::string press = "",
           std::string path = "a.kv") {
    CompileInput input;
    input.path = path;
    input.source = source.str();
    input.defines = std::move(defines);
    input.press = std::move(press);
    module = compileToKvp(&context, sources, input);
  }

  kvp::PressOp press(llvm::StringRef name) {
    return module ? module->lookupSymbol<kvp::PressOp>(name) : kvp::PressOp();
  }

  /// A parameter's entry in the header, as text.
  std::string parameter(llvm::StringRef press, llvm::StringRef name) {
    kvp::PressOp op = this->press(press);
    if (!op)
      return messages.empty() ? "no press" : messages.front();
    for (mlir::Attribute a : op.getParameters()) {
      auto entry = llvm::cast<mlir::DictionaryAttr>(a);
      if (entry.getAs<mlir::StringAttr>("name") != name)
        continue;
      std::string text;
      llvm::raw_string_ostream os(text);
      a.print(os);
      return text;
    }
    return "no parameter";
  }

  template <typename OpT>
  std::vector<OpT> ops(llvm::StringRef name) {
    std::vector<OpT> found;
    if (kvp::PressOp op = press(name))
      op.walk([&](OpT o) { found.push_back(o); });
    return found;
  }
};

std::string codeOf(llvm::StringRef message) {
  size_t open = message.rfind('[');
  return open == llvm::StringRef::npos || message.back() != ']'
             ? ""
             : message.slice(open + 1, message.size() - 1).str();
}

//===------------------------------------------------------------------------------------------===//
// The library
//===------------------------------------------------------------------------------------------===//

TEST(Library, CompilesOrSaysWhatIsMissing) {
  for (const LibraryFile &file : library()) {
    Compiled c(file.source, {}, "", file.path.str());
    EXPECT_EQ(bool(c.module), c.messages.empty()) << file.path.str();
    bool missing = false, unset = false;
    for (const std::string &m : c.messages) {
      std::string code = codeOf(m);
      EXPECT_TRUE(code.empty() || code == "kv-not-implemented" || code == "kv-nothing-exported")
          << file.path.str() << ": " << m;
      missing |= code == "kv-not-implemented";
      unset |= code == "kv-nothing-exported";
    }
    EXPECT_FALSE(missing && unset);
  }
}

TEST(Library, HasThePressesThatMustCompile) {
  for (const char *name : {"knorm", "random", "streaming_llm", "keydiff", "tova", "snapkv",
                           "pyramidkv", "qfilter", "chunkkv", "chunkkv_reuse", "per_layer", "think",
                           "snap_think", "chunk_snap_think", "lagkv", "cur", "simlayerkv"}) {
    const LibraryFile *file = findLibraryFile(name);
    ASSERT_TRUE(file) << name;
    Compiled c(file->source, {}, "", file->path.str());
    EXPECT_TRUE(c.press(name)) << name << ": " << (c.messages.empty() ? "" : c.messages.front());
  }
  Compiled composed(findLibraryFile("composed")->source,
                    {{"p", "snapkv() |> topk(drop(0.5))"}, {"q", "think()"}});
  EXPECT_TRUE(composed.press("composed"));
}

TEST(Library, HasADocForEveryPress) {
  for (const LibraryFile &file : library()) {
    Compiled c(file.source, {}, "", file.path.str());
    if (c.module)
      c.module->walk([&](kvp::PressOp op) { EXPECT_TRUE(op.getDoc()) << op.getSymName().str(); });
  }
}

//===------------------------------------------------------------------------------------------===//
// Parameters
//===------------------------------------------------------------------------------------------===//

TEST(Parameters, WhatDecidesAShapeIsStatic) {
  Compiled c(R"(
score s(window: int = 64 in 1.., scale: float = 2.0, twice: int = 1, on: bool = true) = {
  let w = window * 2 - 1
  return attention(queries.last(w + 1), keys).mean(query, group) * scale * where(on, 1, twice)
}
)");
  EXPECT_EQ(c.parameter("s", "window"),
            R"({default = 64 : i64, doc = "", min = 1 : i64, name = "window", static = true, )"
            R"(type = "int", value = 64 : i64})");
  EXPECT_EQ(c.parameter("s", "scale"),
            R"({default = 2.000000e+00 : f64, doc = "", name = "scale", static = false, )"
            R"(type = "float"})");
  EXPECT_EQ(c.parameter("s", "on"), R"({default = true, doc = "", name = "on", static = true, )"
                                    R"(type = "bool", value = true})");
  EXPECT_EQ(c.parameter("s", "budget"),
            R"({default = {drop = 5.000000e-01 : f64}, doc = "How much of the cache stays.", )"
            R"(name = "budget", static = false, type = "budget"})");
  // The cache, then scale, twice, budget.
  ASSERT_TRUE(c.press("s"));
  EXPECT_EQ(c.press("s").getBody().front().getNumArguments(), 4u);
}

TEST(Parameters, StaticThroughCalls) {
  Compiled c("press p(n: int = 8, r: fraction = 0.5) = chunkkv(snapkv(window = n + 1), n * 2, "
             "drop(r))");
  EXPECT_NE(c.parameter("p", "n").find("static = true"), std::string::npos);
  EXPECT_NE(c.parameter("p", "r").find("static = false"), std::string::npos);
}

TEST(Parameters, DefinesFixThem) {
  const char *source = R"(
score s(scale: float = 2.0) = knorm() * scale
press p(inner: score, scale: float = 2.0, budget: budget = drop(0.5)) =
  inner * scale |> topk(budget)
)";
  Compiled c(source, {{"inner", "tova()"}, {"p.scale", "3"}, {"p.budget", "keep(64)"}});
  EXPECT_NE(c.parameter("s", "scale").find("static = false"), std::string::npos);
  EXPECT_NE(c.parameter("p", "scale").find("static = true, type = \"float\", value = 3.0"),
            std::string::npos);
  EXPECT_NE(c.parameter("p", "inner").find("value = \"tova()\""), std::string::npos);
  EXPECT_NE(c.parameter("p", "budget").find("value = {keep = 64 : i64}"), std::string::npos);
}

TEST(Parameters, TheLastDefineWinsAndAPresssOwnBeforeAll) {
  Compiled c("score s(n: int = 1) = position * n\nscore t(n: int = 1) = position * n",
             {{"s.n", "2"}, {"n", "3"}, {"s.n", "4"}, {"n", "5"}});
  EXPECT_NE(c.parameter("s", "n").find("value = 4"), std::string::npos);
  EXPECT_NE(c.parameter("t", "n").find("value = 5"), std::string::npos);
}

TEST(Parameters, OneLayersNumberIsAScalarOfTheCall) {
  Compiled c("press p(w: float[layer, head], ratios: fraction[layer], b: float = 1.0) = "
             "knorm() * w * b |> topk(drop(ratios))");
  ASSERT_TRUE(c.press("p"));
  std::string types;
  llvm::raw_string_ostream os(types);
  llvm::interleaveComma(c.press("p").getBody().front().getArgumentTypes(), os);
  EXPECT_EQ(types, "!kvp.cache<0>, f64, f64, !kvp.tensor<[head], f32>");
}

TEST(Parameters, RangesOfCalleesAreRequired) {
  Compiled c(R"(
press inner(share: fraction = 0.5) = knorm() |> topk(drop(share))
press same(r: fraction = 0.5) = inner(r)
press other(r: float = 0.5) = inner(r)
)");
  EXPECT_EQ(c.ops<kvp::RequireOp>("same").size(), 0u);
  auto requires_ = c.ops<kvp::RequireOp>("other");
  ASSERT_EQ(requires_.size(), 2u);
  EXPECT_EQ(requires_[0].getMessage(), "`share` of `inner` must be at least 0 and less than 1");
}

TEST(Parameters, AScoresOwnBudgetIsItsPresss) {
  Compiled c("score s(budget: budget = keep(8)) = position * budget.of(length)");
  ASSERT_TRUE(c.press("s"));
  EXPECT_EQ(c.press("s").getParameters().size(), 1u);
  EXPECT_NE(c.parameter("s", "budget").find("default = {keep = 8 : i64}"), std::string::npos);
}

TEST(Exports, NeedTheirStaticParameters) {
  const char *source = R"(
press p(inner: score) = inner |> topk(drop(0.5))
press q(n: int) = knorm() |> topk(keep(n))
press r() = knorm() |> topk(drop(0.5))
fn f() = 1
)";
  Compiled all(source);
  EXPECT_TRUE(all.press("r"));
  EXPECT_FALSE(all.press("p") || all.press("q"));
  Compiled q(source, {}, "q");
  EXPECT_NE(q.parameter("q", "n").find("static = false"), std::string::npos);
  EXPECT_FALSE(q.press("r"));
}

TEST(Names, OwnComesBeforeTheLibrary) {
  Compiled c("score knorm() = keys.norm(channel)\npress p() = knorm() |> topk(drop(0.5))");
  for (kvp::MapOp op : c.ops<kvp::MapOp>("p"))
    EXPECT_NE(op.getFn(), kvp::Fn::Neg);
  EXPECT_TRUE(c.press("p"));
}

//===------------------------------------------------------------------------------------------===//
// Closures and states of the cache
//===------------------------------------------------------------------------------------------===//

/// The states of the caches whose length is asked for.
std::vector<int64_t> lengths(Compiled &c, llvm::StringRef press) {
  std::vector<int64_t> states;
  for (kvp::DimOp op : c.ops<kvp::DimOp>(press))
    if (op.getDim() == kvp::Dim::Length)
      states.push_back(op.getCache().getType().getState());
  return states;
}

TEST(Closures, ArgumentsAreEvaluatedWhereTheyAreWritten) {
  // `length` stands in the body of p, which sees the whole cache, although q uses it after a topk.
  Compiled c(R"(
press q(inner: score) = compose(knorm() |> topk(keep(9)), inner |> topk(keep(8)))
score far(n: int) = -abs(position - n)
press p() = q(far(int(length / 2)))
)");
  EXPECT_TRUE(c.press("p"));
  std::vector<int64_t> states = lengths(c, "p");
  ASSERT_EQ(states.size(), 2u); // one of them counts for the second topk
  EXPECT_EQ(states[0], 0);
}

TEST(Closures, StagesSeeWhatIsLeft) {
  Compiled c("press p() = compose(knorm() |> topk(keep(9)), "
             "knorm() |> topk(keep(int(length / 2))))");
  EXPECT_EQ(lengths(c, "p"), (std::vector<int64_t>{0, 1}));
}

TEST(Closures, AHeadlessScoreIsTheSameInAllHeads) {
  Compiled c(R"(
press summed(inner: score = tova()) = inner.sum(head) |> topk(drop(0.5))
press averaged(inner: score = tova()) = inner.mean(head) |> topk(drop(0.5))
press ranked(inner: score = tova()) = -inner.rank(head, token) |> topk(drop(0.5))
press plain(inner: score = tova()) = inner |> topk(drop(0.5))
)");
  auto uniform = [&](llvm::StringRef press) {
    auto ops = c.ops<kvp::TopkOp>(press);
    return ops.size() == 1 && ops[0].isUniform();
  };
  EXPECT_TRUE(uniform("summed"));
  EXPECT_TRUE(uniform("averaged"));
  EXPECT_TRUE(uniform("plain"));
  EXPECT_FALSE(uniform("ranked"));
  // The sum over heads is one product with their number.
  auto dims = c.ops<kvp::DimOp>("summed");
  EXPECT_TRUE(llvm::any_of(dims, [](kvp::DimOp d) { return d.getDim() == kvp::Dim::Heads; }));
}

TEST(Conditions, KnownOnesEvaluateOneSide) {
  Compiled c("score s(on: bool = false) = where(on, hidden.mean(feature), 0) + knorm()");
  EXPECT_TRUE(c.press("s"));
  Compiled other("score s(on: bool = false) = where(on, hidden.mean(feature), 0) + knorm()",
                 {{"on", "true"}});
  ASSERT_FALSE(other.messages.empty());
}

TEST(Deadwood, UnusedInputsAreNotAskedFor) {
  Compiled c("score s() = { let a = values.norm(channel) return queries.last(4).mean(query, group)"
             ".norm(channel) * keys.norm(channel) }");
  for (kvp::InputOp op : c.ops<kvp::InputOp>("s")) {
    EXPECT_NE(op.getInput(), kvp::Input::Values);
    EXPECT_EQ(op.getInput() == kvp::Input::Queries, op.getLast().has_value());
  }
}

//===------------------------------------------------------------------------------------------===//
// Fuzz
//===------------------------------------------------------------------------------------------===//

/// Random edits of the library's tokens that keep most programs readable: the compiler answers with
/// a program or with messages, and both are never missing.
TEST(Fuzz, EditedProgramsCompileOrAreExplain) {
  std::mt19937 random(11);
  auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  static const char *const names[] = {
      "head",   "group",   "query",  "token",    "channel", "part", "slot",  "keys",
      "values", "queries", "length", "position", "layer",   "sum",  "mean",  "max",
      "rank",   "softmax", "norm",   "knorm",    "think",   "topk", "count", "where",
      "drop",   "keep",    "index",  "at",       "chunk",   "join", "dot",   "attention"};
  static const char *const symbols[] = {"+", "-",  "*",  "/",   "**", "%",
                                        "<", ">=", "==", "and", "or"};
  int compiled = 0, refused = 0;
  for (const LibraryFile &file : library()) {
    for (int round = 0; round < 12; ++round) {
      Capture base;
      llvm::StringRef source = addSource(base.sources, "base.kv", file.source);
      TokenStream stream = lex(source, base.diagnostics);
      std::string text;
      size_t edit = below(stream.tokens.size()), second = below(stream.tokens.size());
      const char *from = source.begin();
      for (auto [i, t] : llvm::enumerate(stream.tokens)) {
        text.append(from, t.text.begin());
        from = t.text.end();
        bool change = i == edit || i == second;
        if (change && t.is(TokenKind::Name))
          text += names[below(std::size(names))];
        else if (change && t.is(TokenKind::Operator))
          text += symbols[below(std::size(symbols))];
        else if (change && t.is(TokenKind::Int))
          text += std::to_string(static_cast<int>(below(6)) - 1);
        else if (change && below(3) == 0)
          text += stream.tokens[below(stream.tokens.size())].text.str() + " ";
        else
          text += t.text.str();
      }
      Compiled c(text, {}, "", "edited.kv");
      EXPECT_EQ(bool(c.module), c.messages.empty()) << text;
      for (const std::string &m : c.messages)
        if (m.find("note: ") == std::string::npos) {
          EXPECT_NE(codeOf(m), "") << m << "\n" << text;
        }
      ++(c.module ? compiled : refused);
    }
  }
  EXPECT_GT(compiled, 20);
  EXPECT_GT(refused, 100);
}

} // namespace
