//===- Evaluator.h - types and emits a press in one walk --------------------------------------===//
//
// A press is evaluated once, with all that it uses inlined: each expression is checked as it is met
// and becomes operations of the kvp dialect. Which exported parameters must be static is found on
// the way (see `takeStatic`); the caller evaluates again until none is added.
//
// The members are spread over EvaluateCalls (names, declarations, closures), EvaluateMap
// (element-wise), EvaluateReduce, EvaluateAxes, EvaluateInputs and EvaluateStages (selections).
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_EVALUATOR_H
#define KVPC_LIB_FRONTEND_EVALUATOR_H

#include "lib/Frontend/Builtins.h"
#include "lib/Frontend/Emitter.h"
#include "lib/Frontend/Program.h"
#include "llvm/ADT/SmallSet.h"
#include "llvm/ADT/StringSet.h"

namespace kvpc {

/// One selection that has been made, for what later stages may do and are told.
struct Selection {
  llvm::SMLoc loc;
  llvm::StringRef by;   // topk or mask
  std::string name;     // the declaration that it stands in, or `by`
  llvm::StringRef axis; // token or channel
  bool perHead = false;
  int64_t reuse = 0;   // layers that share it
  bool ragged = false; // heads may have kept different numbers
};

/// What is left of the cache at some point of the pipeline. Its number is that of its selections.
struct CacheState {
  mlir::Value cache;
  llvm::SmallVector<Selection, 2> selections;

  int64_t number() const { return static_cast<int64_t>(selections.size()); }
  /// The last selection of `axis` that each head made for itself, or null.
  const Selection *misaligned(llvm::StringRef axis) const;
  /// The selection of tokens after which heads may have different numbers of them, or null.
  const Selection *ragged() const;
  /// The last selection of `axis`, or null.
  const Selection *last(llvm::StringRef axis) const;
};

class Evaluator {
public:
  Evaluator(Program &program, Diagnostics &diagnostics, Emitter &emitter, mlir::Value cache);

  //===----------------------------------------------------------------------------------------===//
  // What exports use
  //===----------------------------------------------------------------------------------------===//

  /// Evaluates the body of an exported declaration: a press, or a score followed by
  /// `topk(budget)`. False after reporting errors.
  bool runPress(const Decl &decl, std::shared_ptr<Env> env);
  bool runScore(const Decl &decl, std::shared_ptr<Env> env, const Budget &budget);
  /// Evaluates the body of a function, or of any declaration for its checks alone.
  void runFn(const Decl &decl, std::shared_ptr<Env> env);

  /// The value of a parameter: `expr` as written in `env`, converted and checked.
  Value parameter(const Param &param, const Decl &decl, const Expr &expr, std::shared_ptr<Env> env);
  /// What this layer sees of a tensor over `layer`.
  mlir::Value thisLayer(mlir::Value whole, mlir::Location loc);
  /// Tells what is not implemented, unless errors were told already.
  bool finish();

  const CacheState &state() const { return current; }
  /// Of the first stage; null where it has none.
  std::optional<Tensor> firstScore;
  /// Exported parameters that must be static, by index.
  llvm::SmallSet<unsigned, 8> statics;
  /// Exported weights that are needed for all layers, by index.
  llvm::SmallSet<unsigned, 4> wholes;

private:
  //===----------------------------------------------------------------------------------------===//
  // Messages
  //===----------------------------------------------------------------------------------------===//

  /// An error that is told once, with notes about the calls that led to its place.
  class Report {
  public:
    Report(Evaluator &evaluator, llvm::SMLoc loc) : evaluator(evaluator), loc(loc) {}
    Report(Report &&other)
        : diag(std::move(other.diag)), evaluator(other.evaluator), loc(other.loc) {
      other.diag.reset();
    }
    ~Report();
    Report &note(llvm::SMLoc at, const llvm::Twine &text);
    std::optional<mlir::InFlightDiagnostic> diag;

  private:
    Evaluator &evaluator;
    llvm::SMLoc loc;
  };
  friend class Report;

  template <typename... Args>
  Report error(llvm::SMLoc loc, Diag id, Args &&...args) {
    Report report(*this, loc);
    std::string text =
        llvm::formatv(false, diagnosticFormat(id), std::forward<Args>(args)...).str();
    if (firstTime(loc, text))
      report.diag.emplace(diagnostics.errorText(loc, id, text));
    ++errors;
    return report;
  }
  bool firstTime(llvm::SMLoc loc, const std::string &text);
  mlir::Location at(const Expr &expr) { return diagnostics.location(expr.loc()); }
  mlir::Location at(llvm::SMLoc loc) { return diagnostics.location(loc); }
  void notImplemented(llvm::SMLoc loc, const llvm::Twine &what);
  /// A short text of the expression for messages.
  static std::string shown(const Expr &expr);
  Value typeError(const Expr &operand, llvm::StringRef op, llvm::StringRef wanted,
                  const Value &got);
  static std::string describe(const Value &value);

  //===----------------------------------------------------------------------------------------===//
  // Names, calls, closures
  //===----------------------------------------------------------------------------------------===//

  Value evaluate(const Expr &expr, Env &env);
  Value evaluateInner(const Expr &expr, Env &env);
  Value evaluateName(const NameExpr &name, Env &env);
  Value evaluateCall(const CallExpr &call, Env &env);
  Value evaluateBuiltin(const CallExpr &call, const Builtin &builtin, Env &env);
  /// Which of the two a call means; sets one.
  void callee(const CallExpr &call, Env &env, const Builtin *&builtin, const Decl *&decl);

  std::shared_ptr<Env> enter(const CallExpr &call, const Decl &decl, Env &env);
  bool statements(const Decl &decl, Env &env);
  Value evaluateDecl(const CallExpr &call, const Decl &decl, Env &env);
  Value finishScore(const Decl &decl, Value value);
  void capture(const Expr &expr, Env &env, Closure &closure);
  std::shared_ptr<Closure> close(const Expr &expr, std::shared_ptr<Env> env, std::string subject);
  Value evaluateScore(const Closure &closure, llvm::SMLoc use);
  Value hostParameter(const Param &param, const Decl &decl, const Expr &expr, const Value &value);
  Value weightParameter(const Param &param, const Decl &decl, const Expr &expr, const Value &value);
  /// A tensor of an earlier state of the cache is refused.
  Value fresh(const Tensor &tensor, const NameExpr &name, Env &env);
  Value weightNow(Tensor weight, const NameExpr &name);
  Value restated(Tensor tensor, mlir::Location loc);

  //===----------------------------------------------------------------------------------------===//
  // Host scalars
  //===----------------------------------------------------------------------------------------===//

  mlir::Value get(const Host &host, mlir::Location loc);
  Host runtimeHost(Element element, mlir::Value value, std::string reason);
  Host mapHost(kvp::Fn fn, llvm::ArrayRef<Host> operands, mlir::Location loc);
  static std::optional<Number> fold(kvp::Fn fn, llvm::ArrayRef<Number> operands, Element result);
  Host toFloat(const Host &host, mlir::Location loc);
  Host dim(kvp::Dim dim, mlir::Location loc);
  /// The number that decides a shape at `use`, or nothing after an error.
  std::optional<Number> takeStatic(const Value &value, const Expr &expr, llvm::SMLoc use,
                                   llvm::StringRef op, Element element);
  std::optional<int64_t> staticInt(const Expr &expr, Env &env, const CallExpr &call,
                                   llvm::StringRef what, int64_t least);

  //===----------------------------------------------------------------------------------------===//
  // Element-wise
  //===----------------------------------------------------------------------------------------===//

  struct Operand {
    const Expr *expr;
    Value value;
  };
  Value mapValues(kvp::Fn fn, llvm::ArrayRef<Operand> operands, llvm::SMLoc loc,
                  llvm::StringRef op);
  Value evaluateUnary(const UnaryExpr &unary, Env &env);
  Value evaluateBinary(const BinaryExpr &binary, Env &env);
  Value evaluateWhere(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateClamp(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateElementwise(const CallExpr &call, kvp::Fn fn, const Arguments &args, Env &env);
  void protectResult(kvp::Fn fn, llvm::ArrayRef<Operand> operands, Tensor &out, mlir::Location loc);
  bool compareProtected(kvp::Fn fn, llvm::ArrayRef<Operand> operands, Tensor &out,
                        mlir::Location loc);
  /// Whether two tensors may meet; reports where they may not.
  bool compatible(const Operand &a, const Operand &b, llvm::SMLoc loc);
  /// Axes and bookkeeping of the union, without a value.
  bool unite(llvm::ArrayRef<Operand> operands, llvm::SMLoc loc, Tensor &out);
  /// The axis of heads whose choice decides what stands at an index of `axis`, or "".
  llvm::StringRef headsOf(const Tensor &tensor, llvm::StringRef axis) const;
  /// Whether the axis numbers what its name says; reports one that was renamed to it.
  bool namedRight(const Tensor &tensor, llvm::StringRef axis, llvm::SMLoc loc,
                  const std::string &subject);

  Tensor toFloat(Tensor tensor, mlir::Location loc);
  mlir::Value mapTensor(kvp::Fn fn, mlir::ValueRange operands, mlir::Location loc) {
    return emitter.map(loc, fn, operands);
  }
  mlir::Value orNull(mlir::Value a, mlir::Value b, mlir::Location loc);
  /// Places along an entry axis: of each head its own, once heads kept different numbers.
  mlir::Value placesOfHeads(mlir::Value places, mlir::Location loc);
  /// A condition over `axis` of `like` that always holds.
  mlir::Value always(mlir::Value like, llvm::StringRef axis, mlir::Location loc);
  /// The host scalar over `axis` of `like`.
  mlir::Value spread(const Host &host, mlir::Value like, llvm::StringRef axis, mlir::Location loc);
  /// A repeated score with its head axis.
  Tensor materialize(Tensor tensor, mlir::Location loc);
  /// The tensor over the axes of `other` too.
  Tensor broadcast(Tensor tensor, mlir::Value other, mlir::Location loc);

  //===----------------------------------------------------------------------------------------===//
  // Reductions, operations along an axis, axes
  //===----------------------------------------------------------------------------------------===//

  struct Where {
    bool failed = false;
    mlir::Value condition; // null: everywhere
  };
  /// The tensor of an operation that has axes; reports scalars and conditions or numbers out of
  /// place.
  std::optional<Tensor> tensorOperand(const Expr &expr, Env &env, llvm::StringRef op,
                                      std::optional<bool> wantBool = std::nullopt);
  bool hasAxis(const Tensor &tensor, Name axis, const Expr &expr);
  Where whereOf(const Expr *expr, Tensor &tensor, const Expr &of, llvm::StringRef axis, Env &env);
  bool refuseProtected(const Tensor &tensor, const CallExpr &call);
  bool refuseMisaligned(const Tensor &tensor, const CallExpr &call, Name axis,
                        llvm::ArrayRef<Name> beside);

  Value evaluateReduce(const CallExpr &call, kvp::Reduction kind, const Arguments &args, Env &env);
  /// The weights that make up a value are needed for all layers.
  Value needAllLayers(const Layers &layers, kvp::NamedTensorType result, mlir::Location loc);
  Tensor atThisLayer(mlir::Value whole, const Layers &from, Tensor like, mlir::Location loc);
  Value reduceLayers(const CallExpr &call, kvp::Reduction kind, const Tensor &x,
                     llvm::ArrayRef<llvm::StringRef> over);
  Value rankLayers(const CallExpr &call, const Tensor &x, llvm::ArrayRef<llvm::StringRef> over);
  std::shared_ptr<const Layers> layersOfMap(kvp::Fn fn, llvm::ArrayRef<Operand> operands,
                                            mlir::Value slice, mlir::Location loc);
  Value ofTokens(Tensor x, llvm::SMLoc loc);
  mlir::Value averageTurn(kvp::Reduction kind, mlir::Value value,
                          llvm::SmallVectorImpl<llvm::StringRef> &over, mlir::Location loc);
  Value reduceTensor(kvp::Reduction kind, Tensor x, llvm::ArrayRef<llvm::StringRef> over,
                     mlir::Value where, mlir::Location loc);
  Value evaluateAlong(const CallExpr &call, BuiltinId id, const Arguments &args, Env &env);
  Value evaluatePool(const CallExpr &call, BuiltinId id, const Arguments &args, Env &env);
  Value evaluateRank(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateSort(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateShift(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateRename(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluatePartition(const CallExpr &call, const Arguments &args, Env &env);
  std::optional<Tensor> partition(Tensor x, const PartInfo &info, mlir::Location loc);
  Value evaluateChunk(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateJoin(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateAt(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateIndex(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateExtent(const CallExpr &call, const Arguments &args, Env &env);
  /// A tensor that has the axis: of the program's inputs or a weight in sight.
  std::optional<Tensor> tensorWith(Name axis, Env &env, mlir::Location loc);
  Value evaluateProtect(const CallExpr &call, const Arguments &args, Env &env);

  //===----------------------------------------------------------------------------------------===//
  // Inputs and contractions
  //===----------------------------------------------------------------------------------------===//

  Value hostValue(const NameExpr &name);
  Tensor input(kvp::Input kind, mlir::Value cache, std::optional<int64_t> last, mlir::Location loc);
  Value evaluateLast(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateUnrotated(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateDot(const CallExpr &call, bool cosine, const Arguments &args, Env &env);
  std::optional<Tensor> dot(const Operand &a, const Operand &b, llvm::StringRef axis,
                            llvm::SMLoc loc);
  Value evaluateAttention(const CallExpr &call, bool softmax, const Arguments &args, Env &env);
  mlir::Value causal(const Tensor &logits, mlir::Location loc);
  Value evaluateRandom(const CallExpr &call, bool gaussian, const Arguments &args, Env &env);
  Value evaluateMatrix(const CallExpr &call, BuiltinId id, const Arguments &args, Env &env);
  Value evaluateRotate(const CallExpr &call, const Arguments &args, Env &env);
  Value evaluateDropped(const CallExpr &call, const Arguments &args, Env &env);
  kvp::AxisAttr axisAttr(llvm::StringRef name, int64_t extent, int64_t state);

  //===----------------------------------------------------------------------------------------===//
  // Budgets and stages
  //===----------------------------------------------------------------------------------------===//

  Value evaluateBudget(const CallExpr &call, bool keep, const Arguments &args, Env &env);
  Value evaluateBudgetMethod(const CallExpr &call, bool share, const Arguments &args, Env &env);
  mlir::Value budgetValue(const Budget &budget, mlir::Location loc);
  Host budgetOf(const Budget &budget, const Host &n, mlir::Location loc);

  bool apply(const Expr &expr, Env &env);
  bool applyClosure(const Closure &closure, llvm::SMLoc use);
  bool applyDecl(const CallExpr &call, const Decl &decl, Env &env);
  bool applyBuiltin(const CallExpr &call, const Builtin &builtin, Env &env);
  bool applyTopk(const CallExpr &call, const Arguments &args, Env &env);
  /// Who shares a budget, as `over =` and `at_least =` say.
  struct Together {
    bool heads = false;
    std::optional<Host> atLeast;
    bool implemented = true;
  };
  bool select(Tensor score, const Budget &budget, llvm::SMLoc loc, const std::string &subject,
              const Together &together);
  std::optional<Host> checkedShare(const Host &share, const Expr &expr);
  Host keptCount(const Budget &budget, const Tensor &score, llvm::StringRef axis, const Host &n,
                 mlir::Location at);
  mlir::Value keptCounts(const Budget &budget, const Tensor &score, llvm::StringRef axis,
                         mlir::Location at);
  bool applyMask(const CallExpr &call, const Arguments &args, Env &env);
  bool applyReuse(const CallExpr &call, const Arguments &args, Env &env);
  bool applyPhase(const CallExpr &call, const Builtin &builtin, const Arguments &args, Env &env);
  bool applyRuns(const CallExpr &call, bool scan, const Arguments &args, Env &env);
  bool applyUpdate(const CallExpr &call, const Arguments &args, Env &env);
  /// The one axis that a selection is along, besides `head`; "" after an error.
  llvm::StringRef elementAxis(const Tensor &score, llvm::SMLoc loc, const std::string &subject);
  bool checkReuse(llvm::SMLoc loc);
  void selected(llvm::SMLoc loc, llvm::StringRef by, llvm::StringRef axis, bool perHead,
                mlir::Value cache);

  struct Frame {
    const Decl *decl;
    llvm::SMLoc call; // invalid for the exported declaration itself
  };

  Program &program;
  Diagnostics &diagnostics;
  Emitter &emitter;
  CacheState current;
  std::optional<CacheState> beforeUpdate; // inside update: the state before the selection
  bool insideDropped = false;             // of its argument, seen in that state
  llvm::SmallVector<Frame, 8> frames;
  const llvm::DenseMap<const Expr *, std::shared_ptr<Value>> *captured = nullptr;
  llvm::StringRef phase;                      // prefill, decode, probe
  llvm::SmallVector<llvm::StringRef, 2> runs; // each, scan
  struct Reuse {
    int64_t layers = 0;
    llvm::SMLoc loc;
  } reuse;
  llvm::StringSet<> told;
  std::vector<std::pair<llvm::SMLoc, std::string>> missing;
  unsigned errors = 0, depth = 0, steps = 0;
};

} // namespace kvpc

#endif
