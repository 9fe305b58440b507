//===- Cut.h - a press on its way to a plan ---------------------------------------------------===//
#ifndef KVPC_DIALECT_TRANSFORMS_CUT_H
#define KVPC_DIALECT_TRANSFORMS_CUT_H

#include "dialect/Transforms/Passes.h"
#include "mlir/IR/IRMapping.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"

namespace kvpc::cut {

/// The axis a sweep that makes this tensor goes over, or null for a small value.
kvp::AxisAttr entryAxis(kvp::NamedTensorType type);

/// More than one number an entry: as large as the keys themselves, or larger.
bool isWide(kvp::NamedTensorType type);

/// Whether an operation reads an operand at other entries than its own.
bool movesEntries(mlir::Operation *op);

/// The axes of a rank or sort whose elements do not lie side by side in a buffer: several, or
/// heads. None for others.
llvm::SmallVector<llvm::StringRef> takenTogether(mlir::Operation *op);

/// Whether a value has all queries of a pass; whether it has entries beside them.
bool hasAllQueries(mlir::Value v);
bool isMatrix(mlir::Value v);

/// Whether nothing but the extents of an operation's result is asked for.
bool isOnlyAsked(mlir::Operation *op);

/// Whether what a matrix is reduced from is 0 where a query comes before the entry.
bool isVanishing(kvp::ReduceOp op);

/// Whether an operation reads its operand at other heads than its own.
bool readsHeads(mlir::Operation *op);

/// Where a step stands: what it sweeps, for whom.
struct Step {
  enum Kind { Pass, Small, Order, Select } kind = Small;
  kvplan::Space space = kvplan::Space::Head;
  kvp::AxisAttr over;
  kvp::PartitionOp partition; // that made `over`, of those alike the first
  unsigned alone = 0;         // not 0: nothing else may join
  unsigned rows = 0;          // the loop over blocks of queries; 0: none

  bool operator==(const Step &o) const {
    return kind == o.kind && space == o.space && over == o.over && partition == o.partition &&
           alone == o.alone && rows == o.rows;
  }
};

/// A value that is held in a buffer (or a selection), and how it gets there.
struct Root {
  enum Kind {
    Store,
    Accumulate,
    Merge,
    Contract,
    Form,
    Pack,
    Fold,
    Statistics,
    Order,
    Select
  } kind;
  mlir::Value value;                    // the kvp value; null for pack
  mlir::Operation *selection = nullptr; // topk or mask
  Step key;
  unsigned step = 0;
  unsigned inner = 0;                // its place among the steps of a loop over blocks of queries
  llvm::SmallVector<unsigned> after; // roots that must be finished before
  llvm::SmallVector<unsigned> consumers;
  int64_t reuse = 0, leader = 0;
  kvplan::BufferOp buffer, second; // second: 1 / z of statistics
  kvplan::BufferOp factors;        // statistics whose exponents stay in the buffer of their input
  kvplan::BufferOp references;     // what exponents are made again from
  bool keepsExponents = false;
  bool ownOfHeads = false; // no axis `head`, and yet each head has its own
  bool leavesRows = false; // of all queries, and filled block by block
  bool inPlace = false;    // shares the buffer of the contraction it masks
  bool tileWise = false;   // wide, and read by passes over its own entries alone
  bool again = false;      // made once more by each pass that reads it, tile by tile
  std::string last;        // innermost axis: rows of whole-row operations; empty: any
  // Contract, form and fold: the operands, the factor of the sum. Pack: what is packed, and for
  // which form.
  mlir::Value stream, rows, scale;
  kvp::FormOp form;
  // Fold: the contraction that a block takes the place of; the axis of its rows, of pack too.
  mlir::Value contraction;
  std::string along;
  kvplan::BufferOp block;

  /// What must be evaluated or loaded to make it.
  llvm::SmallVector<mlir::Value> operands() const;
  /// The same, and where that is the value itself, what its operation takes.
  llvm::SmallVector<mlir::Value> reads() const;
  /// Entries of a tile.
  int64_t tile() const;
  /// Tiles of a segment.
  int64_t segment() const;
  /// Whether an entry's value is there as soon as its tile is done.
  bool makesEntries() const {
    return kind == Store || kind == Contract || kind == Form || kind == Fold;
  }
};

/// Axes as the buffer of a root holds them, outermost first: head, the entries, what an entry has.
kvp::NamedTensorType memoryOrder(kvp::NamedTensorType type, const Root &root);

class Program {
public:
  Program(kvp::PressOp press, const PlanOptions &options)
      : press(press), stored(options.optimization == 0),
        recompute(options.recompute == Recompute::Always), without(options.without) {}

  mlir::LogicalResult hold();                 // Hold.cpp, Cost.cpp, Again.cpp
  void schedule();                            // Cut.cpp, Cost.cpp
  mlir::FailureOr<kvplan::PipelineOp> emit(); // EmitPlan.cpp
  /// Whether anything is made again by each pass that reads it.
  bool makesAgain() const;

private:
  kvp::PressOp press;
  bool stored, recompute;
  unsigned without; // optimisations that are left out
  std::vector<Root> roots;
  llvm::DenseMap<mlir::Value, unsigned> rootOf;
  llvm::DenseMap<mlir::Value, unsigned> statisticsOf; // softmax -> root
  llvm::DenseMap<mlir::Value, unsigned> selections;   // cache -> step of the selection that made it

  // Rows.cpp
  struct RowLoop {
    kvplan::Space space;
    bool causal;
  };
  llvm::SmallVector<RowLoop> rowLoops;
  llvm::DenseMap<mlir::Value, unsigned> rowsOf; // 1 for the first of them
  llvm::DenseSet<mlir::Value> leavesRows;       // copies of a block's values for what comes later
  mlir::LogicalResult separateRows();

  // Hold.cpp
  llvm::DenseMap<mlir::Value, bool> dear, own;
  llvm::DenseMap<int64_t, bool> apart; // cache state -> heads chose its tokens for themselves
  llvm::SmallVector<kvp::PartitionOp> partitions;
  void separateOrders();
  bool isApart(kvp::AxisAttr axis) const;
  bool ownOfHeads(mlir::Value v);
  bool expensive(mlir::Value v);
  bool mustHold(mlir::Value v);
  unsigned add(Root root);
  Step keyOf(mlir::Value made, mlir::Value of = {});
  mlir::LogicalResult holdOp(mlir::Operation &op);
  bool holdContraction(kvp::DotOp op);
  void holdForm(kvp::FormOp op);
  bool holdFold(kvp::ReduceOp op);
  unsigned holdRows(mlir::Value rows, unsigned loop, llvm::StringRef along = "");

  // Cost.cpp
  llvm::DenseSet<mlir::Value> shared; // worth a tile, as several loops take them
  llvm::DenseMap<mlir::Value, double> flops;
  void chooseShared();
  /// Of one element, computed where it is used; of what it is made of. Held values are read.
  double flopsAt(mlir::Value v);
  double flopsToMake(mlir::Value v);
  llvm::SmallDenseSet<mlir::Value, 2> streamsOf(llvm::ArrayRef<mlir::Value> values,
                                                mlir::Value held) const;
  /// Marks scheduled values that cost less to make again than to hold; whether there are any.
  bool weighAgain();
  void forgetSchedule();

  // Again.cpp
  void findTileWise();
  llvm::DenseSet<unsigned> passTiles;     // roots that the pass at work has made again
  llvm::DenseSet<unsigned> passExponents; // statistics whose exponents it has made again
  void bringReads(mlir::ImplicitLocOpBuilder &b, const Root &root, mlir::IRMapping &here);

  // Cut.cpp
  void chooseSteps();
  unsigned stepOfCache(mlir::Value cache) const;
  std::pair<unsigned, unsigned> earliest(const Root &root) const;
  /// Whether a root's tasks read what the tasks of other heads hold: all of those are over by then.
  bool meetsHeads(const Root &root) const;
  llvm::SmallSetVector<unsigned, 8> needs(const Root &root) const;
  /// Moves a root to the first step that reads it, if they can be one.
  void waitForConsumers(Root &root);

  // EmitPlan.cpp
  mlir::IRMapping top; // host scalars and caches of the press in the pipeline
  mlir::Value atTop(mlir::ImplicitLocOpBuilder &b, mlir::Value v);
  mlir::Value evaluate(mlir::ImplicitLocOpBuilder &b, mlir::Value v, mlir::IRMapping &here,
                       const Root &root);
  mlir::Value streamed(mlir::ImplicitLocOpBuilder &b, mlir::Value input, mlir::IRMapping &here,
                       const Root &root);
  void hostOperands(mlir::ImplicitLocOpBuilder &b, const Root &root);
  unsigned buffers = 0; // declared
  kvplan::BufferOp declareBuffer(mlir::ImplicitLocOpBuilder &b, kvp::NamedTensorType type,
                                 kvplan::Scope scope, mlir::IntegerAttr every = {});
  void declare(mlir::ImplicitLocOpBuilder &b);
  std::tuple<kvplan::Combine, mlir::Value, mlir::Value>
  emitCombine(mlir::ImplicitLocOpBuilder &b, Root &root, mlir::IRMapping &here);
  void emitRoot(mlir::ImplicitLocOpBuilder &b, Root &root, mlir::IRMapping &here);
  void emitSelection(mlir::ImplicitLocOpBuilder &b, Root &root);
};

} // namespace kvpc::cut

#endif
