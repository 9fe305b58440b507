//===- MessagesTest.cpp - every code has a test and a line in the docs ------------------------===//
#include "lib/Frontend/Diagnostics.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "gtest/gtest.h"

#include <regex>
#include <set>

using namespace kvpc;

namespace {

std::string read(const std::string &path) {
  auto buffer = llvm::MemoryBuffer::getFile(KVPC_SOURCE_DIR "/" + path);
  return buffer ? (*buffer)->getBuffer().str() : "";
}

TEST(Messages, EveryCodeHasATest) {
  for (llvm::StringRef code : diagnosticCodes())
    EXPECT_NE(read("test/Frontend/errors/" + code.str() + ".kv").find("[" + code.str() + "]"),
              std::string::npos)
        << code.str();
}

/// What a line with the message looks like, whatever its arguments are.
std::string pattern(llvm::StringRef code, llvm::StringRef format) {
  std::string text;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] == '{' && at + 2 < format.size() && format[at + 2] == '}') {
      text += ".*";
      at += 2;
      continue;
    }
    if (llvm::StringRef("\\^$.|?*+()[]{}").contains(format[at]))
      text += '\\';
    text += format[at];
  }
  return "# [A-Z]+(-[A-Z]+)?: .*error: " + text + " \\[" + code.str() + "\\]";
}

TEST(Messages, EveryMessageHasATest) {
  static const struct {
    const char *id, *code, *format;
  } rows[] = {
#define KVPC_DIAGNOSTIC(ID, CODE, FORMAT) {#ID, CODE, FORMAT},
#include "lib/Frontend/Diagnostics.def"
  };
  // Stale names are refused where they stand, and until now nothing else is stale.
  std::set<std::string> unreached = {"ScoreStale", "MixedStates"};
  for (const auto &row : rows) {
    std::string test = read(std::string("test/Frontend/errors/") + row.code + ".kv");
    EXPECT_NE(std::regex_search(test, std::regex(pattern(row.code, row.format))),
              unreached.contains(row.id))
        << row.id;
  }
}

TEST(Messages, EveryCodeHasALineInTheDocs) {
  std::string page = read("docs/Errors.md");
  std::set<std::string> documented;
  for (size_t at = 0; (at = page.find("\n| `kv-", at)) != std::string::npos; ++at) {
    size_t start = at + 4;
    documented.insert(page.substr(start, page.find('`', start) - start));
  }
  std::set<std::string> codes;
  for (llvm::StringRef code : diagnosticCodes())
    codes.insert(code.str());
  EXPECT_EQ(documented, codes);
}

TEST(Messages, AreWrittenAlike) {
  static const char *const formats[] = {
#define KVPC_DIAGNOSTIC(ID, CODE, FORMAT) FORMAT,
#include "lib/Frontend/Diagnostics.def"
  };
  for (llvm::StringRef format : formats) {
    EXPECT_FALSE(format.ends_with(".")) << format.str();
    EXPECT_FALSE(isupper(format.front())) << format.str();
    EXPECT_EQ(format.count('`') % 2, 0u) << format.str();
  }
}

TEST(Messages, NearNames) {
  EXPECT_EQ(nearest("chanel", {"head", "channel"}), "channel");
  EXPECT_EQ(nearest("windw", {"window", "kernel"}), "window");
  EXPECT_EQ(nearest("t", {"s"}), "");
  EXPECT_EQ(nearest("entirely", {"other", "words"}), "");
}

} // namespace
