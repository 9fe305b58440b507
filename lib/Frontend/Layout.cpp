//===- Layout.cpp - documents that choose their line breaks -----------------------------------===//
#include "lib/Frontend/Layout.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallPtrSet.h"

using namespace kvpc;

const Doc *Layout::leaf(Doc::Kind kind, llvm::StringRef text) {
  docs.push_back(std::make_unique<Doc>(Doc{kind, text.str(), {}}));
  return docs.back().get();
}

/// Whether the document cannot stand on one line.
static bool forcesBreak(const Doc *doc) {
  switch (doc->kind) {
  case Doc::Kind::HardLine:
  case Doc::Kind::BlankLine:
  case Doc::Kind::Trailing:
  case Doc::Kind::OwnLine:
    return true;
  case Doc::Kind::Concat:
  case Doc::Kind::Indent:
  case Doc::Kind::Group:
    return doc->broken;
  default:
    return false;
  }
}

const Doc *Layout::node(Doc::Kind kind, std::vector<const Doc *> children, const Doc *follows) {
  bool broken = llvm::any_of(children, forcesBreak);
  docs.push_back(std::make_unique<Doc>(Doc{kind, "", std::move(children), broken, follows}));
  return docs.back().get();
}

namespace {

struct Frame {
  const Doc *doc;
  unsigned indent;
  bool broken;
};

class Renderer {
public:
  explicit Renderer(unsigned width) : width(width) {}

  std::string run(const Doc *root) {
    stack.push_back({root, 0, true});
    while (!stack.empty()) {
      Frame f = stack.back();
      stack.pop_back();
      one(f);
    }
    endLine();
    return std::move(out);
  }

private:
  void one(const Frame &f) {
    switch (f.doc->kind) {
    case Doc::Kind::Text:
      return write(f.doc->text);
    case Doc::Kind::IfBroken:
      if (f.broken)
        write(f.doc->text);
      return;
    case Doc::Kind::Line:
    case Doc::Kind::SoftLine:
      if (f.broken)
        newLine(f.indent);
      else if (f.doc->kind == Doc::Kind::Line)
        write(" ");
      return;
    case Doc::Kind::HardLine:
      return newLine(f.indent);
    case Doc::Kind::BlankLine:
      newLine(0);
      return newLine(f.indent);
    case Doc::Kind::Trailing:
      comments += (comments.empty() ? "  " : " ") + f.doc->text;
      return;
    case Doc::Kind::OwnLine:
      if (!lineIsBlank())
        newLine(f.indent);
      write(f.doc->text);
      return newLine(f.indent);
    case Doc::Kind::Concat:
      return push(f.doc, f.indent, f.broken);
    case Doc::Kind::Indent:
      return push(f.doc, f.indent + 2, f.broken);
    case Doc::Kind::Group: {
      bool broken = f.doc->broken || brokenGroups.contains(f.doc->follows) || !fits(f);
      if (broken)
        brokenGroups.insert(f.doc);
      return push(f.doc, f.indent, broken);
    }
    }
  }

  void push(const Doc *doc, unsigned indent, bool broken) {
    for (const Doc *child : llvm::reverse(doc->children))
      stack.push_back({child, indent, broken});
  }

  /// Whether the group on one line, with what follows up to the next possible break, fits.
  bool fits(const Frame &group) const {
    long room = static_cast<long>(width) - static_cast<long>(out.size() - lineStart);
    std::vector<Frame> todo{{group.doc, group.indent, false}};
    size_t rest = stack.size();
    while (room >= 0) {
      if (todo.empty()) {
        if (rest == 0)
          return true;
        todo.push_back(stack[--rest]);
      }
      Frame f = todo.back();
      todo.pop_back();
      switch (f.doc->kind) {
      case Doc::Kind::Text:
        room -= static_cast<long>(f.doc->text.size());
        break;
      case Doc::Kind::IfBroken:
        room -= f.broken ? static_cast<long>(f.doc->text.size()) : 0;
        break;
      case Doc::Kind::Line:
      case Doc::Kind::SoftLine:
        if (f.broken)
          return true;
        room -= f.doc->kind == Doc::Kind::Line;
        break;
      case Doc::Kind::HardLine:
      case Doc::Kind::BlankLine:
      case Doc::Kind::OwnLine:
        return true;
      case Doc::Kind::Trailing:
        break;
      default:
        // A group that follows may still break: its first break ends the line.
        for (const Doc *child : llvm::reverse(f.doc->children))
          todo.push_back({child, f.indent, f.broken});
      }
    }
    return false;
  }

  void write(llvm::StringRef text) { out += text; }

  bool lineIsBlank() const {
    return comments.empty() && llvm::StringRef(out).drop_front(lineStart).find_first_not_of(' ') ==
                                   llvm::StringRef::npos;
  }

  void endLine() {
    out += comments;
    comments.clear();
    while (out.size() > lineStart && out.back() == ' ')
      out.pop_back();
  }

  void newLine(unsigned indent) {
    endLine();
    out += '\n';
    lineStart = out.size();
    out.append(indent, ' ');
  }

  unsigned width;
  std::vector<Frame> stack;
  llvm::SmallPtrSet<const Doc *, 8> brokenGroups;
  std::string out;
  std::string comments;
  size_t lineStart = 0;
};

} // namespace

std::string Layout::render(const Doc *doc, unsigned width) { return Renderer(width).run(doc); }
