//===- Values.h - what expressions evaluate to ------------------------------------------------===//
//
// A program is evaluated by inlining: numbers of the host, budgets and tensors become values of the
// kvp dialect as soon as they are met, scores and presses stay closures until they are used.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_VALUES_H
#define KVPC_LIB_FRONTEND_VALUES_H

#include "dialect/IR/Kvp.h"
#include "lib/Frontend/AST.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringMap.h"
#include <memory>
#include <optional>
#include <variant>

namespace kvpc {

/// The order is that of widening.
enum class Element { Bool, Int, Float };

struct Number {
  Element element = Element::Int;
  int64_t integer = 0; // of a bool: 0 or 1
  double real = 0;

  static Number of(bool b) { return {Element::Bool, b, double(b)}; }
  static Number of(int64_t i) { return {Element::Int, i, double(i)}; }
  static Number of(double d) { return {Element::Float, 0, d}; }
  bool truth() const { return integer != 0; }
};

/// `low <= x <= high`, or `x < high`.
struct Range {
  std::optional<double> low, high;
  bool open = false; // high itself is out
  bool contains(double x) const;
  bool within(const Range &outer) const;
};

/// A scalar that the host knows before anything runs.
struct Host {
  Element element = Element::Int;
  /// Null while it is only a number.
  mlir::Value value;
  /// What it is, if the program alone decides that.
  std::optional<Number> known;
  /// What it would be if the exported parameters in `params` had their defaults.
  std::optional<Number> guess;
  llvm::SmallVector<unsigned, 2> params;
  /// Why no parameter can make it known: `length`, a budget, ...
  std::string runtime;
  /// Differs from layer to layer.
  bool perLayer = false;
  std::optional<Range> range;

  /// The parameter of an inlined declaration that it was first given to.
  struct Binding {
    llvm::StringRef param, decl;
    llvm::SMLoc argument;
  };
  std::optional<Binding> binding;

  static Host number(Number n) {
    Host h;
    h.element = n.element;
    h.known = h.guess = n;
    return h;
  }
};

/// How axes `part` and `slot` came to be.
struct PartInfo {
  int64_t size = 0;
  mlir::Value from, to; // null: the whole axis
  bool whole = false;
  mlir::Value like; // a tensor over the axis as it was
  bool operator==(const PartInfo &o) const {
    return size == o.size && from == o.from && to == o.to && whole == o.whole;
  }
};

/// What a value made of weights alone is over all layers.
struct Layers {
  mlir::Value slice; // the value that it belongs to: what this layer sees
  mlir::Value whole; // over `layer` too; null until the program proves to need it
  llvm::SmallVector<unsigned, 1> params; // exported weights that it is made of
};

struct Tensor {
  mlir::Value value;
  /// i1 over some of the axes: where the score is protected. Null: nowhere.
  mlir::Value protect;
  llvm::SMLoc protectedAt;
  /// A score without `head` that its user sees as [head, ...].
  bool repeated = false;
  std::shared_ptr<const PartInfo> part;
  /// Axes over channels that a selection thinned, by name.
  llvm::SmallVector<std::string, 1> thinned;
  /// What the name of an axis does not say since it was renamed.
  struct Renamed {
    std::string name;
    std::string entries; // the axis whose entries it numbers
    std::string heads;   // the axis of heads that have entries of their own along it, or ""
  };
  llvm::SmallVector<Renamed, 0> renamed;
  /// An input as it came from the host, for `.last` and `.unrotated`.
  struct Input {
    kvp::Input kind;
    mlir::Value cache;
    bool last = false;
  };
  std::optional<Input> input;
  std::shared_ptr<const Layers> layers;

  /// The value over all layers, or null if it is not made of weights alone.
  const Layers *allLayers() const {
    return layers && layers->slice == value ? layers.get() : nullptr;
  }
  kvp::NamedTensorType type() const { return llvm::cast<kvp::NamedTensorType>(value.getType()); }
  Element element() const;
  bool has(llvm::StringRef axis) const { return type().hasAxis(axis); }
  bool isThinned(llvm::StringRef axis) const;
  const Renamed *findRenamed(llvm::StringRef axis) const;
  /// The axis whose entries `axis` numbers: `token` of `token'`, unless it was renamed.
  llvm::StringRef entriesOf(llvm::StringRef axis) const;
  /// Drops what is said of axes that are gone.
  void forgetAxes();
};

struct Budget {
  enum class Kind { Drop, Keep, Runtime };
  Kind kind = Kind::Runtime;
  Host amount;                   // of Drop and Keep
  std::optional<Tensor> amounts; // in its place: a count from data, or per head
  mlir::Value value;             // of Runtime
  std::string parameter;         // of Runtime: its name
};

struct Env;

/// A score or press that is evaluated where it is used.
struct Closure {
  /// Null: stands for any score or press, while a declaration is checked by itself.
  const Expr *expr = nullptr;
  std::shared_ptr<Env> env;
  /// Arguments inside `expr`, evaluated where it was written.
  llvm::DenseMap<const Expr *, std::shared_ptr<struct Value>> captured;
  /// Whom it was given to, for messages.
  std::string subject;
};

struct ScoreRef {
  std::shared_ptr<const Closure> closure;
};
struct PressRef {
  std::shared_ptr<const Closure> closure;
};

/// Poison follows a reported error and is never reported about.
struct Poison {};

struct Value : std::variant<Poison, Host, Tensor, Budget, ScoreRef, PressRef> {
  using variant::variant;
  template <typename T>
  T *as() {
    return std::get_if<T>(this);
  }
  template <typename T>
  const T *as() const {
    return std::get_if<T>(this);
  }
  bool isPoison() const { return as<Poison>(); }
};

/// The values that a declaration's body sees.
struct Env {
  const Decl *decl = nullptr; // null on the command line
  const File *file = nullptr;
  llvm::StringMap<Value> values;
  /// Text of what a let was given, for messages.
  llvm::StringMap<const Expr *> lets;
};

/// "`head`, `token`".
std::string axesText(llvm::ArrayRef<kvp::AxisAttr> axes);
std::string axesText(const Tensor &tensor);

Element elementOf(mlir::Type type);

} // namespace kvpc

#endif
