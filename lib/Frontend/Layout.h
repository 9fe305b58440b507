//===- Layout.h - documents that choose their line breaks -------------------------------------===//
//
// The printer describes a program as nested groups; a group stands on one line if it fits, else
// all of its own breaks are taken. After Wadler's "A prettier printer", with line comments.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_LAYOUT_H
#define KVPC_LIB_FRONTEND_LAYOUT_H

#include "llvm/ADT/StringRef.h"
#include <memory>
#include <string>
#include <vector>

namespace kvpc {

struct Doc {
  enum class Kind {
    Text,
    Line,      // a blank, or a break in a broken group
    SoftLine,  // nothing, or a break
    HardLine,  // a break; breaks the groups around it
    BlankLine, // a hard line with an empty line above
    IfBroken,  // text that is there only in a broken group
    Trailing,  // a comment that goes to the end of the line, whatever else comes
    OwnLine,   // a comment alone on its line
    Concat,
    Indent,
    Group,
  };
  Kind kind;
  std::string text;
  std::vector<const Doc *> children;
  bool broken = false;          // of a group: it cannot stand on one line
  const Doc *follows = nullptr; // of a group: it breaks if that earlier group broke
};

/// Makes documents and owns them.
class Layout {
public:
  const Doc *text(llvm::StringRef text) { return leaf(Doc::Kind::Text, text); }
  const Doc *line() { return leaf(Doc::Kind::Line); }
  const Doc *softLine() { return leaf(Doc::Kind::SoftLine); }
  const Doc *hardLine() { return leaf(Doc::Kind::HardLine); }
  const Doc *blankLine() { return leaf(Doc::Kind::BlankLine); }
  const Doc *ifBroken(llvm::StringRef text) { return leaf(Doc::Kind::IfBroken, text); }
  const Doc *trailing(llvm::StringRef text) { return leaf(Doc::Kind::Trailing, text); }
  const Doc *ownLine(llvm::StringRef text) { return leaf(Doc::Kind::OwnLine, text); }
  const Doc *concat(std::vector<const Doc *> children) {
    return node(Doc::Kind::Concat, std::move(children));
  }
  const Doc *indent(std::vector<const Doc *> children) {
    return node(Doc::Kind::Indent, std::move(children));
  }
  const Doc *group(std::vector<const Doc *> children, const Doc *follows = nullptr) {
    return node(Doc::Kind::Group, std::move(children), follows);
  }

  /// Lines of at most `width` columns where the document has breaks for it; indents by 2.
  static std::string render(const Doc *doc, unsigned width);

private:
  const Doc *leaf(Doc::Kind kind, llvm::StringRef text = "");
  const Doc *node(Doc::Kind kind, std::vector<const Doc *> children, const Doc *follows = nullptr);

  std::vector<std::unique_ptr<Doc>> docs;
};

} // namespace kvpc

#endif
