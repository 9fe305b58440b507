//===- Kernel.h - code of one pipeline for one variant ----------------------------------------===//
//
// From a kvplan pipeline to three kinds of functions: `plan` and `run` of the module's interface,
// and one function per parallel step, called as body(frame, begin, end). The frame is an array of
// 8-byte slots on run's stack: slot 0 is the kvpc_call, the others hold buffer addresses, strides
// and the current chunk of tasks.
//
// Expressions are evaluated on demand: `value(v, indices)` emits the code that computes element
// `indices` of tensor v from buffers and inputs. What is evaluated where, and what is held in
// memory, is what the plan says; this file decides only which axis runs on vector lanes.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DIALECT_CONVERSION_KERNEL_H
#define KVPC_DIALECT_CONVERSION_KERNEL_H

#include "dialect/Conversion/Emitter.h"
#include "dialect/IR/Kvplan.h"
#include "llvm/ADT/MapVector.h"
#include <map>

namespace kvpc::codegen {

/// What a variant of the code is specialised for.
struct Variant {
  int64_t dtype = 0;    // kvpc_dtype of keys, values, queries
  int64_t channels = 0; // 0: any number
  unsigned lanes = 8;   // f32 lanes of a vector register
  /// What tasks in flight may hold of wide values, as a share of the keys' bytes.
  double workspace = std::numeric_limits<double>::infinity();
};

/// Where an element stands on one axis.
struct Index {
  mlir::Value base;   // i64: the index, or that of lane 0
  mlir::Value vector; // i64 lanes, where they are not base, base + 1, ...
  bool lanes = false; // whether the axis runs over lanes
  /// Lanes whose first index is a multiple of their number, so that they lie in one tile.
  bool aligned = false;
};

/// The element being evaluated: an index per axis; `mask` says which lanes exist (null: all).
struct Indices {
  llvm::SmallVector<std::pair<std::string, Index>> axes;
  mlir::Value mask;

  const Index *find(llvm::StringRef axis) const;
  Indices with(llvm::StringRef axis, Index index) const;
  bool hasLanes() const;
};

/// The row (and head) that code works for; where the same host scalar was computed before.
struct Row {
  mlir::Value frame, call;
  mlir::Value batch, head;     // head is null in tasks over the batch
  mlir::Value slot;            // number of the task among those in flight
  mlir::Value lane;            // number of the thread's place among those of buffers of a tile
  mlir::Value tile;            // first entry of the tile at work
  mlir::Value segments;        // of a task in memory, in the pass at work
  mlir::Value block, blockEnd; // queries of the block at work; null where there are no blocks
  bool planning = false;       // lengths are upper bounds from shapes and arguments
};

/// Frame slots of a buffer.
struct BufferSlots {
  unsigned address = 0, stride = 0; // bytes of one task
  int64_t partials = -1;            // slot of the partial results of segments, if accumulated
};

/// A cache state: what it kept of the one before.
struct CacheState {
  mlir::Operation *selection = nullptr; // null: state 0
  mlir::Value before;                   // the cache it restricts
  unsigned tokens = 0, counts = 0;      // slots: absolute token ids, counts (0: as before)
  unsigned channels = 0;                // slot: channel ids (0: as before)
  bool tokensPerHead = false, channelsPerHead = false;
};

class Kernel {
public:
  enum class Fold { Sum, Max, Min, Any, All };

  Kernel(mlir::ModuleOp out, kvplan::PipelineOp pipeline, const Variant &variant,
         llvm::StringRef prefix);

  /// Emits plan, run and the parallel bodies. Fails with an error at what cannot be lowered.
  mlir::LogicalResult emit();
  std::string planName() const { return prefix + ".plan"; }
  std::string runName() const { return prefix + ".run"; }
  /// A function of the module's interface that calls `held` where what a task holds fits the
  /// workspace, else `tight`; returns its name.
  std::string emitChoice(llvm::StringRef name, llvm::StringRef held, llvm::StringRef tight);

private:
  Emitter e;
  kvplan::PipelineOp pipeline;
  Variant variant;
  std::string prefix;
  unsigned slots = 1, bodies = 0, messages = 0;
  bool failed = false;

  llvm::MapVector<mlir::Value, BufferSlots> buffers;
  llvm::MapVector<mlir::Value, CacheState> states;
  llvm::MapVector<mlir::Operation *, unsigned> flights; // tasks -> slot of tasks in flight
  unsigned chunkSlot = 0, chunkSizeSlot = 0, segmentsSlot = 0, scratchSlot = 0, scratchStride = 0;
  unsigned blockSlot = 0;
  mlir::func::FuncOp function; // that is being built
  bool alone = false;          // one thread takes all steps of a task
  kvplan::RowsOp rowsOp;       // the loop over blocks of queries whose steps are emitted

  // Host.cpp: the call, host scalars, extents.
  mlir::Value field(const Row &row, int64_t offset) { return e.loadI64(row.call, offset); }
  mlir::Value fieldPtr(const Row &row, int64_t offset) { return e.loadPtr(row.call, offset); }
  mlir::Value slotI64(const Row &row, unsigned slot);
  mlir::Value slotPtr(const Row &row, unsigned slot);
  void setSlot(const Row &row, unsigned slot, mlir::Value value);
  mlir::Value perRow(const Row &row, int64_t offset); // call.start[batch] and its like
  mlir::Value length(const Row &row, mlir::Value cache);
  mlir::Value channels(const Row &row, mlir::Value cache);
  mlir::Value cacheOfState(int64_t state);
  mlir::Value host(const Row &row, mlir::Value scalar);
  mlir::Value hostMap(const Row &row, kvp::MapOp op);
  mlir::Value budgetOf(const Row &row, mlir::Value budget, mlir::Value n);
  mlir::Value parameter(const Row &row, mlir::BlockArgument arg, int64_t offset, mlir::Type type);
  /// Kept entries of a selection, clamped to what there is.
  mlir::Value keptOf(const Row &row, kvplan::SelectOp op);
  mlir::Value floorOf(const Row &row, kvplan::SelectOp op, mlir::Value kept);
  mlir::Value jointBound(const Row &row, kvplan::SelectOp op);
  bool countsData(mlir::Value cache);
  bool ascends(mlir::Value scalar);
  mlir::Value partsOf(const Row &row, mlir::Value n, kvp::PartitionOp op);
  /// Extent of an axis of a tensor for this row; `bound`: for any row.
  mlir::Value extent(const Row &row, mlir::Value tensor, llvm::StringRef axis);
  mlir::Value bound(const Row &row, mlir::Value tensor, llvm::StringRef axis);
  std::optional<int64_t> staticExtent(mlir::Value tensor, llvm::StringRef axis);
  mlir::Value queryCount(const Row &row);
  /// Whether original positions are just counted.
  mlir::Value isCounted(const Row &row);

  // Expression.cpp: one element.
  mlir::Value value(const Row &row, mlir::Value v, const Indices &at);
  mlir::Value compute(const Row &row, mlir::Value v, const Indices &at);
  mlir::Value map(const Row &row, kvp::MapOp op, const Indices &at);
  mlir::Value input(const Row &row, kvp::InputOp op, const Indices &at);
  mlir::Value weights(const Row &row, mlir::BlockArgument arg, const Indices &at);
  /// Its place among the weights of the call.
  static int64_t weightIndex(mlir::BlockArgument arg);
  mlir::Value load(const Row &row, mlir::Value buffer, const Indices &at);
  Index blockIndex(const Row &row, mlir::Value buffer, kvp::AxisAttr axis, Index index);
  mlir::Value loadFrom(Storage storage, mlir::Value base,
                       llvm::ArrayRef<std::pair<Index, mlir::Value>> terms, mlir::Value mask);
  mlir::Value indexValue(const Index &index);
  mlir::Value originalPosition(const Row &row, mlir::Value cache, const Indices &at);
  Index absoluteToken(const Row &row, mlir::Value cache, const Indices &at);
  Index mapThrough(const Row &row, unsigned slot, bool perHead, const Index &index,
                   const Indices &at, mlir::Value width);
  mlir::Value pool(const Row &row, mlir::Operation *op, const Indices &at);
  mlir::Value uniform(const Row &row, kvp::UniformOp op, const Indices &at);
  mlir::Value rotary(const Row &row, kvp::RotaryOp op, const Indices &at);
  Index partner(const Row &row, const Index &channel);
  mlir::Value unary(kvp::Fn fn, mlir::Value x);
  mlir::Value applyFn(kvp::Fn fn, llvm::ArrayRef<mlir::Value> x, mlir::Type element);

  // Reduction.cpp: loops over axes, lanes.
  /// An axis from `from` to `to`; `extent` where it is known to the compiler.
  struct Range {
    std::string axis;
    mlir::Value from, to;
    std::optional<int64_t> extent;
  };
  using ElementAt = llvm::function_ref<mlir::Value(const Indices &)>;
  mlir::Value reduceRanges(const Row &row, mlir::Value of, llvm::ArrayRef<Range> ranges, Fold fold,
                           mlir::Type element, const Indices &at, ElementAt elementAt);
  llvm::SmallVector<Range> rangesOf(const Row &row, mlir::Value tensor,
                                    llvm::ArrayRef<llvm::StringRef> axes, const Indices &at);
  /// Slots of a part: fewer in a short last one.
  mlir::Value slotsOf(const Row &row, kvp::PartitionOp op, mlir::Value part);
  mlir::Value reduceOp(const Row &row, kvp::ReduceOp op, const Indices &at);
  mlir::Value foldPair(Fold fold, mlir::Value a, mlir::Value b);
  mlir::Value foldLanes(Fold fold, mlir::Value v);
  mlir::Value identity(Fold fold, mlir::Type type);
  /// The axis of `axes` to run on lanes when `v` is evaluated, or empty.
  llvm::StringRef laneAxis(mlir::Value v, llvm::ArrayRef<llvm::StringRef> axes);

  // Nest.cpp: loops that fill buffers.
  /// Memory of the function that is being built.
  mlir::Value onStack(int64_t bytes);
  /// Runs body for every element; the axis `lane` (if any) by vectors, its tail under a mask.
  void forEach(llvm::ArrayRef<Range> ranges, llvm::StringRef lane, const Indices &at,
               llvm::function_ref<void(const Indices &)> body);
  llvm::SmallVector<Range> bufferRanges(const Row &row, mlir::Value buffer, llvm::StringRef over,
                                        mlir::Value from, mlir::Value to);
  mlir::Value axesOf(mlir::Value buffer, llvm::StringRef axis);
  mlir::Value bufferExtent(const Row &row, mlir::Value buffer, llvm::StringRef axis, bool upper);
  mlir::Value axisStride(const Row &row, mlir::Value buffer, unsigned axis);
  mlir::Value taskBytes(const Row &row, mlir::Value buffer);
  mlir::Value bufferBase(const Row &row, mlir::Value buffer);
  mlir::Value elementBase(const Row &row, mlir::Value buffer);
  mlir::Value elementAddress(const Row &row, mlir::Value buffer, const Indices &at);
  mlir::Value elementCount(const Row &row, mlir::Value buffer);
  mlir::Value partialBase(const Row &row, mlir::Value buffer, mlir::Value segment);
  mlir::Value rowCount(const Row &row, mlir::Value buffer);
  mlir::Value entryStride(const Row &row, mlir::Value buffer);
  Indices headIndex(const Row &row);
  Storage storageOf(mlir::Value buffer);
  Storage inputStorage() const;
  bool isPanel(mlir::Value buffer);
  /// Whether a buffer has a place for every task in flight, and not for every row and head.
  static bool isOfTasks(mlir::Value buffer);
  int64_t panelRows() const { return variant.lanes == 8 ? 16 : 64; }
  int64_t packedParts(mlir::Value panels);
  llvm::StringRef packedAlong(mlir::Value panels);
  /// Over the entries [from, to) of axis `over` (none in a small step).
  void store(const Row &row, kvplan::StoreOp op, llvm::StringRef over, mlir::Value from,
             mlir::Value to);
  void storeNear(const Row &row, llvm::ArrayRef<kvplan::StoreOp> stores, llvm::StringRef over,
                 mlir::Value from, mlir::Value to);
  void fill(const Row &row, kvplan::StoreOp op, llvm::StringRef over, mlir::Value from,
            mlir::Value to);
  mlir::Value leavesTile(const Row &row, kvplan::StoreOp op, mlir::Value to);
  /// `first`: whether this is the segment's first tile.
  void accumulate(const Row &row, kvplan::AccumulateOp op, llvm::StringRef over,
                  mlir::Value segment, mlir::Value from, mlir::Value to, mlir::Value first);
  kvplan::Outer outerOf(const Row &row, kvplan::AccumulateOp op, llvm::StringRef over);
  void mirrorOuter(const Row &row, kvplan::AccumulateOp op, llvm::StringRef over,
                   mlir::Value target);
  bool accumulateOuter(const Row &row, kvplan::AccumulateOp op, llvm::StringRef over,
                       mlir::Value segment, mlir::Value from, mlir::Value to, mlir::Value first);
  void fillBlock(const Row &row, mlir::Value side, llvm::StringRef axis, mlir::Value where,
                 llvm::StringRef over, mlir::Value from, mlir::Value to, mlir::Value stride,
                 mlir::Value block, const Indices &at);
  void combinePartials(const Row &row, kvplan::AccumulateOp op, llvm::StringRef over,
                       mlir::Value segments);
  /// Entries of a buffer in one tile of neighbours: 1, or as many as `every` says.
  mlir::Value everyOf(mlir::Value buffer);
  void contract(const Row &row, kvplan::ContractOp op, mlir::Value from, mlir::Value to);
  /// Keys or values from entry `from` on: address, stride, ids of survivors (or null).
  struct Stream {
    mlir::Value base, stride, ids;
  };
  llvm::StringRef contraction() const;
  static Fold foldOf(kvplan::Combine kind);
  Stream streamOf(const Row &row, kvp::InputOp input, mlir::Value from);
  void form(const Row &row, kvplan::FormOp op, mlir::Value from, mlir::Value to);
  void pack(const Row &row, kvplan::PackOp op);
  void packForm(const Row &row, kvplan::PackFormOp op);
  void statistics(const Row &row, kvplan::StatisticsOp op, mlir::Value segment, mlir::Value from,
                  mlir::Value to, mlir::Value first);
  void exponents(const Row &row, kvplan::ExponentsOp op, mlir::Value from, mlir::Value to);
  void combineStatistics(const Row &row, kvplan::StatisticsOp op, mlir::Value segments,
                         mlir::Value entries);
  mlir::Value tileFactors(const Row &row, mlir::Value factors, mlir::Value tile);

  // Fold.cpp: contractions of which only a block of rows is held.
  /// Where the block that is being made begins, and where it lies.
  struct BlockPlace {
    mlir::Value base, entry, row;
  };
  llvm::DenseMap<mlir::Value, BlockPlace> blocks;
  void packAlong(const Row &row, kvplan::PackOp op);
  void fold(const Row &row, kvplan::FoldOp op, llvm::StringRef over, mlir::Value from,
            mlir::Value to);
  mlir::Value loadBlock(mlir::Value buffer, const Indices &at);
  llvm::SmallVector<Range> rowsBeside(const Row &row, mlir::Value tensor, llvm::StringRef along);
  mlir::Value panelsOf(const Row &row, mlir::Value panels, mlir::Value width, mlir::Value rows,
                       llvm::ArrayRef<Range> beside, const Indices &at);

  // Steps.cpp: parallel bodies.
  std::string body(llvm::function_ref<void(const Row &, mlir::Value)> item);
  void launch(const Row &row, llvm::StringRef body, mlir::Value count);
  Row taskRow(const Row &row, mlir::Value task, kvplan::Space space, mlir::Value slot);
  mlir::Value passEntries(const Row &row, kvplan::PassOp op, bool upper);
  mlir::Value tableIndex(const Row &row, bool perHead);
  mlir::Value idsOf(const Row &row, unsigned slot, bool perHead, mlir::Value width);
  mlir::Value selectionTarget(const Row &row, const CacheState &state, mlir::Value scratch);
  mlir::Value scoreBase(const Row &row, mlir::Value buffer);
  mlir::Value taskCount(const Row &row, kvplan::Space space);
  void tasks(const Row &row, kvplan::TasksOp op);
  void step(const Row &row, mlir::Operation &op, kvplan::Space space);
  void rows(const Row &row, kvplan::RowsOp op, kvplan::Space space);
  void beginMerges(const Row &row, kvplan::PassOp op, kvplan::Space space);
  void merge(const Row &row, kvplan::MergeOp op, llvm::StringRef over, mlir::Value from,
             mlir::Value to);
  mlir::Value takesAlone(const Row &row, kvplan::Space space);
  void forTasks(const Row &row, kvplan::Space space,
                llvm::function_ref<void(const Row &, mlir::Value)> one);
  void sweepSegment(const Row &task, kvplan::PassOp op, mlir::Value segment, mlir::Value entries);
  void finishPass(const Row &task, kvplan::PassOp op, mlir::Value segments, mlir::Value entries);
  mlir::Value sweptEntries(const Row &row, kvplan::PassOp op);
  mlir::Value sweepEnd(const Row &row, mlir::Value entries);
  void pass(const Row &row, kvplan::PassOp op, kvplan::Space space);
  void small(const Row &row, kvplan::SmallOp op, kvplan::Space space);
  void order(const Row &row, kvplan::OrderOp op, kvplan::Space space);
  void orderTogether(const Row &row, kvplan::OrderOp op, kvplan::Space space);
  mlir::Value isThere(const Row &row, mlir::Value buffer, llvm::ArrayRef<llvm::StringRef> over,
                      const Indices &at);
  void select(const Row &row, kvplan::SelectOp op);
  void selectJointly(const Row &row, kvplan::SelectOp op);
  void filter(const Row &row, kvplan::FilterOp op);
  void recordTokens(const Row &row, const CacheState &state, mlir::Value ids, mlir::Value count);
  void scores(const Row &row, kvplan::ScoresOp op);
  void compact(const Row &row, kvplan::CompactOp op);
  void onLeader(const Row &row, std::optional<int64_t> leader, llvm::function_ref<void()> then);

  // Entry.cpp: plan, run, workspace.
  void assignSlots();
  /// Lays buffers out from `workspace` and `state` (null pointers while planning), fills the frame;
  /// returns the bytes of both.
  std::pair<mlir::Value, mlir::Value> layout(const Row &row, mlir::Value workspace,
                                             mlir::Value state);
  mlir::Value flightOf(const Row &row, mlir::Value buffer);
  mlir::Value placeTiles(const Row &row, mlir::Value memory);
  mlir::Value affordable(const Row &row, kvplan::TasksOp op);
  static bool holdsWide(kvplan::TasksOp op);
  void writeError(const Row &row, llvm::StringRef message);
  void emitPlan();
  void emitRun();
  void sequence(const Row &row, mlir::Block::iterator from, mlir::Block::iterator to);
  mlir::Value segmentsOf(const Row &row, kvplan::PassOp op, mlir::Value entries);
  void error(mlir::Operation *op, const llvm::Twine &text);

  /// Values already computed in the current block and those around it.
  std::vector<std::map<std::vector<const void *>, mlir::Value>> memo;
  mlir::Value remember(std::vector<const void *> key, llvm::function_ref<mlir::Value()> compute);
};

} // namespace kvpc::codegen

#endif
