//===- Explanation.cpp - what a plan does, and what it costs ----------------------------------===//
#include "lib/Driver/Explanation.h"

#include "lib/Driver/Flops.h"

#include "lib/Module/Summary.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/FormatVariadic.h"

#include <numeric>

using namespace kvpc;
using namespace kvpc::driver;

namespace {

std::string axesOf(kvp::NamedTensorType type) {
  std::string out = "[";
  llvm::raw_string_ostream os(out);
  llvm::interleaveComma(type.getAxes(), os, [&](kvp::AxisAttr axis) { os << axis.getName(); });
  return out + "]";
}

std::string listOf(mlir::ArrayAttr names) { return llvm::join(kvp::axisNames(names), ", "); }

/// Where kvp-algebra moved what a program does to keys or values.
llvm::StringRef movedTo(mlir::Operation *op) {
  return op->hasAttr("kvp.moved") ? ", to which was moved what is done to the stream" : "";
}

/// Whether a sum over the pass is one of outer products, which become the microkernel's.
bool outerOf(kvplan::AccumulateOp op) {
  auto pass = op->getParentOfType<kvplan::PassOp>();
  return op.getKind() == kvplan::Combine::Sum &&
         bool(kvplan::outerOf(op.getValue(), pass.getOver().getName()));
}

/// What an operation of the plan or of a pass's body is called.
std::string describe(mlir::Operation *op) {
  return llvm::TypeSwitch<mlir::Operation *, std::string>(op)
      .Case([](kvp::MapOp o) { return kvp::stringifyFn(o.getFn()).str(); })
      .Case([](kvp::ReduceOp o) {
        return (kvp::stringifyReduction(o.getKind()) + " over " + listOf(o.getOver())).str();
      })
      .Case([](kvp::DotOp o) { return ("dot over " + o.getOver() + movedTo(o)).str(); })
      .Case([](kvp::AvgPoolOp o) {
        return llvm::formatv("avg_pool of {0} along {1}", o.getSize(), o.getAxis()).str();
      })
      .Case([](kvp::MaxPoolOp o) {
        return llvm::formatv("max_pool of {0} along {1}", o.getSize(), o.getAxis()).str();
      })
      .Case([](kvplan::ContractOp o) {
        return "contract with rows " + axesOf(o.getPanels().getType().getTensor()) +
               movedTo(o).str();
      })
      .Case([](kvplan::FormOp o) {
        return "quadratic form with matrices " + axesOf(o.getPanels().getType().getTensor()) +
               movedTo(o).str();
      })
      .Case([](kvp::RotaryOp o) {
        std::string what = o.getMean() ? ", mean over " + listOf(*o.getMean()) : "";
        return "rotary table (" + kvp::stringifyWave(o.getWave()).str() + ")" + what;
      })
      .Case([](kvp::PairOp) { return std::string("partner channels"); })
      .Case([](kvplan::FoldOp o) {
        return "contract with rows " + axesOf(o.getPanels().getType().getTensor()) + ", " +
               kvplan::stringifyCombine(o.getKind()).str() + " over " + o.getOver().str() +
               " block by block";
      })
      .Case([](kvplan::StatisticsOp o) {
        return std::string(o.getFactors() ? "softmax statistics, exponents stay in place"
                                          : "softmax statistics");
      })
      .Case([](kvplan::ExponentsOp) { return std::string("softmax exponents, once more"); })
      .Case([](kvplan::WeightOp) { return std::string("softmax weights"); })
      .Case([](kvplan::RescaleOp) { return std::string("softmax weights from stored exponents"); })
      .Case([](kvplan::MergeOp o) {
        return (kvplan::stringifyCombine(o.getKind()) + " over the blocks of queries").str();
      })
      .Case([](kvplan::PackOp) { return std::string("pack rows"); })
      .Case(
          [](kvplan::PackFormOp) { return std::string("pack matrices, one side of the diagonal"); })
      .Case([](kvplan::AccumulateOp o) {
        if (outerOf(o))
          return std::string("sum of outer products over the pass");
        return (kvplan::stringifyCombine(o.getKind()) + " over the pass").str();
      })
      .Default([](mlir::Operation *o) { return o->getName().stripDialect().str(); });
}

/// Hand-written code that an operation becomes.
std::optional<std::string> primitiveOf(mlir::Operation *op) {
  using Result = std::optional<std::string>;
  return llvm::TypeSwitch<mlir::Operation *, Result>(op)
      .Case<kvplan::ContractOp, kvplan::PackOp, kvplan::FoldOp, kvplan::FormOp, kvplan::PackFormOp>(
          [](auto) { return Result("contraction microkernel"); })
      .Case<kvplan::StatisticsOp, kvplan::ExponentsOp, kvplan::WeightOp>(
          [](auto) { return Result("softmax"); })
      .Case<kvplan::SelectOp, kvplan::FilterOp>([](auto) { return Result("selection"); })
      .Case([](kvplan::OrderOp) { return Result("order of whole rows"); })
      .Case([](kvplan::CompactOp) { return Result("compaction"); })
      .Case([](kvplan::AccumulateOp) { return Result("tree over segments"); })
      .Case([](kvp::UniformOp) { return Result("random numbers"); })
      .Case([](kvp::RotaryOp) { return Result("rotary tables"); })
      .Default([](mlir::Operation *) { return Result(); });
}

/// Reads a pipeline step by step.
class Explainer {
public:
  Explainer(kvplan::PipelineOp pipeline, kvp::PressOp press, kvp::PressOp program,
            const CostShape &shape)
      : pipeline(pipeline), program(program), costs(pipeline, press, shape) {
    out.press = pipeline.getSymName().str();
    out.shape = shape;
  }

  Explanation run() {
    for (mlir::Operation &op : pipeline.getBody().front())
      top(&op);
    out.kept = costs.last();
    weighHeld();
    floor();
    return std::move(out);
  }

private:
  using TensorType = kvp::NamedTensorType;

  void top(mlir::Operation *op) {
    notePrimitive(op);
    if (auto tasks = mlir::dyn_cast<kvplan::TasksOp>(op)) {
      for (mlir::Operation &inner : tasks.getBody().front())
        if (auto rows = mlir::dyn_cast<kvplan::RowsOp>(inner))
          loop(rows, tasks.getSpace());
        else
          step(&inner, tasks.getSpace());
    } else if (auto select = mlir::dyn_cast<kvplan::SelectOp>(op)) {
      selection(select);
    } else if (auto filter = mlir::dyn_cast<kvplan::FilterOp>(op)) {
      addDataCount("`mask` keeps what its condition holds for", op);
      Step step{"filter", "", "", {"keep the entries for which the condition holds"}, {}, {}, 0};
      readBuffer(step, filter.getCondition(), kvplan::Space::Batch);
      out.steps.push_back(std::move(step));
    } else if (auto compact = mlir::dyn_cast<kvplan::CompactOp>(op)) {
      compaction();
    } else if (auto buffer = mlir::dyn_cast<kvplan::BufferOp>(op)) {
      hold(buffer);
    }
  }

  /// A loop over blocks of queries: each sweeps the entries, all or up to its last query.
  void loop(kvplan::RowsOp rows, kvplan::Space space) {
    auto size = static_cast<int64_t>(rows.getBlock());
    int64_t n = std::max<int64_t>(out.shape.tokens, 1);
    block = std::min(size, n);
    blocks = (n + size - 1) / size;
    int64_t swept = 0;
    for (int64_t i = 0; i < blocks; ++i)
      swept += rows.getCausal() ? std::min((i + 1) * size, n) : n;
    for (mlir::Operation &inner : rows.getBody().front()) {
      share = mlir::isa<kvplan::PassOp>(inner) ? double(swept) / double(blocks * n) : 1;
      step(&inner, space);
    }
    block = 0;
    blocks = 1;
    share = 1;
  }

  /// What all blocks of queries take of an amount that is counted over all queries, if it has any.
  int64_t ofBlocks(int64_t amount, TensorType type) const {
    if (!block)
      return amount;
    bool queries = false, entries = false;
    if (type)
      for (kvp::AxisAttr axis : type.getAxes())
        (kvp::isAllQueries(axis) ? queries : entries) |= kvp::isEntryAxis(axis);
    return static_cast<int64_t>(double(amount * (queries ? 1 : blocks)) * (entries ? share : 1));
  }

  void step(mlir::Operation *op, kvplan::Space space) {
    notePrimitive(op);
    Step step;
    step.queries = block;
    step.space = kvplan::stringifySpace(space).str();
    if (auto order = mlir::dyn_cast<kvplan::OrderOp>(op)) {
      step.kind = "order";
      step.work.push_back(kvplan::stringifyOrder(order.getKind()).str());
      readBuffer(step, order.getInput(), space);
      writeBuffer(step, order.getResult(), space);
      out.steps.push_back(std::move(step));
      return;
    }
    auto pass = mlir::dyn_cast<kvplan::PassOp>(op);
    if (!pass && !mlir::isa<kvplan::SmallOp>(op))
      return;
    step.kind = pass ? "pass" : "small";
    if (pass)
      step.over = pass.getOver().getName().str();
    llvm::SmallPtrSet<mlir::Value, 4> written;
    for (mlir::Operation &inner : op->getRegion(0).front()) {
      notePrimitive(&inner);
      body(step, &inner, space, written);
    }
    out.steps.push_back(std::move(step));
  }

  /// One operation inside a pass or small step. What the step wrote itself is still in the cache.
  void body(Step &step, mlir::Operation *op, kvplan::Space space,
            llvm::SmallPtrSetImpl<mlir::Value> &written) {
    if (auto input = mlir::dyn_cast<kvp::InputOp>(op)) {
      if (asksShape(input))
        return;
      step.reads.push_back({kvp::stringifyInput(input.getInput()).str(),
                            ofBlocks(inputBytes(input, space), input.getResult().getType())});
      return;
    }
    if (auto load = mlir::dyn_cast<kvplan::LoadOp>(op)) {
      if (!written.contains(load.getBuffer()))
        readBuffer(step, load.getBuffer(), space);
      return;
    }
    if (op->getNumResults() == 1 && !mlir::isa<TensorType>(op->getResult(0).getType()))
      return; // a host scalar
    if (auto store = mlir::dyn_cast<kvplan::StoreOp>(op)) {
      if (written.insert(store.getBuffer()).second)
        writeBuffer(step, store.getBuffer(), space);
      return;
    }
    step.work.push_back(describe(op));
    step.flops += ofBlocks(flopsOf(op, space, costs), workedOn(op));
    auto target = [&](mlir::Value buffer) {
      if (written.insert(buffer).second)
        writeBuffer(step, buffer, space);
    };
    if (auto contract = mlir::dyn_cast<kvplan::ContractOp>(op)) {
      readBuffer(step, contract.getPanels(), space);
      target(contract.getBuffer());
    } else if (auto form = mlir::dyn_cast<kvplan::FormOp>(op)) {
      readBuffer(step, form.getPanels(), space);
      target(form.getBuffer());
    } else if (auto pack = mlir::dyn_cast<kvplan::PackFormOp>(op)) {
      target(pack.getBuffer());
    } else if (auto fold = mlir::dyn_cast<kvplan::FoldOp>(op)) {
      readBuffer(step, fold.getPanels(), space);
      target(fold.getBuffer());
    } else if (auto pack = mlir::dyn_cast<kvplan::PackOp>(op)) {
      target(pack.getBuffer());
    } else if (auto accumulate = mlir::dyn_cast<kvplan::AccumulateOp>(op)) {
      target(accumulate.getBuffer());
    } else if (auto merge = mlir::dyn_cast<kvplan::MergeOp>(op)) {
      readBuffer(step, merge.getBuffer(), space);
      target(merge.getBuffer());
    } else if (auto statistics = mlir::dyn_cast<kvplan::StatisticsOp>(op)) {
      target(statistics.getMaximum());
      target(statistics.getInverse());
      if (statistics.getFactors())
        target(statistics.getFactors());
      if (statistics.getReferences())
        target(statistics.getReferences());
    } else if (auto exponents = mlir::dyn_cast<kvplan::ExponentsOp>(op)) {
      readBuffer(step, exponents.getReferences(), space);
    }
  }

  /// Whether only the extents of an input are asked.
  static bool asksShape(kvp::InputOp input) {
    return llvm::all_of(input->getUsers(), [](mlir::Operation *user) {
      return mlir::isa<kvp::IndexOp, kvp::ExtentOp, kvp::RotaryOp>(user);
    });
  }

  /// A tensor that has the axes of an operation's work.
  static TensorType workedOn(mlir::Operation *op) {
    if (auto contract = mlir::dyn_cast<kvplan::ContractOp>(op))
      return contract.getBuffer().getType().getTensor();
    if (auto exponents = mlir::dyn_cast<kvplan::ExponentsOp>(op))
      return exponents.getBuffer().getType().getTensor();
    if (auto statistics = mlir::dyn_cast<kvplan::StatisticsOp>(op))
      return statistics.getBuffer().getType().getTensor();
    if (auto accumulate = mlir::dyn_cast<kvplan::AccumulateOp>(op))
      return kvp::tensorOf(accumulate.getValue());
    if (auto reduce = mlir::dyn_cast<kvp::ReduceOp>(op))
      return reduce.getInput().getType();
    return op->getNumResults() == 1 ? kvp::tensorOf(op->getResult(0)) : TensorType();
  }

  int64_t inputBytes(kvp::InputOp input, kvplan::Space space) {
    int64_t entries = costs.entries(input.getResult().getType(), space);
    bool values = input.getInput() == kvp::Input::Values;
    // The channels of values stay whole, whatever the state of the axis.
    if (values)
      entries = entries / costs.extent(input.getResult().getType().getAxis("channel")) *
                out.shape.channels;
    inputsUsed.insert(kvp::stringifyInput(input.getInput()).str());
    return entries * out.shape.storageBytes;
  }

  int64_t bufferBytes(mlir::Value buffer, kvplan::Space space) {
    return costs.bytes(buffer.getDefiningOp<kvplan::BufferOp>(), space);
  }
  static std::string nameOf(mlir::Value buffer) {
    return buffer.getDefiningOp<kvplan::BufferOp>().getName().str();
  }
  void readBuffer(Step &step, mlir::Value buffer, kvplan::Space space) {
    if (isTile(buffer))
      return;
    TensorType type = mlir::cast<kvplan::BufferType>(buffer.getType()).getTensor();
    step.reads.push_back({nameOf(buffer), ofBlocks(bufferBytes(buffer, space), type)});
  }
  void writeBuffer(Step &step, mlir::Value buffer, kvplan::Space space) {
    if (isTile(buffer))
      return;
    TensorType type = mlir::cast<kvplan::BufferType>(buffer.getType()).getTensor();
    step.writes.push_back({nameOf(buffer), ofBlocks(bufferBytes(buffer, space), type)});
  }

  void selection(kvplan::SelectOp op) {
    TensorType score = op.getScore().getType().getTensor();
    const StateSize &from = costs.state(op.getCache().getType().getState());
    const StateSize &to = costs.state(op.getResult().getType().getState());
    bool channels = score.hasAxis("channel");
    std::string text =
        llvm::formatv("keep {0}{1} of {2} {3}", op.countsData() ? "at most " : "",
                      channels ? to.channels : to.tokens, channels ? from.channels : from.tokens,
                      channels ? "channels" : "tokens");
    if (op.getPartSize() && *op.getPartSize() > 1) {
      text += llvm::formatv(" in runs of {0}", *op.getPartSize()).str();
      addDataCount("whether the short last run is among the kept", op);
    }
    if (op.getJoint()) {
      text =
          llvm::formatv("keep {0} of {1} tokens of all {2} heads together",
                        to.tokens * out.shape.heads, from.tokens * out.shape.heads, out.shape.heads)
              .str();
      addDataCount("how the heads share their budget", op);
    } else {
      text += score.hasAxis("head") ? ", each head its own" : ", the same for all heads";
    }
    if (op.countsData())
      addDataCount("how many entries stay", op);
    if (op.getLeader())
      text += llvm::formatv("; {0} layers share the choice", *op.getLeader()).str();
    Step step{"select", "", "", {text}, {}, {}, 0};
    readBuffer(step, op.getScore(), kvplan::Space::Batch);
    if (op.getProtect())
      readBuffer(step, op.getProtect(), kvplan::Space::Batch);
    if (op.countsData())
      readBuffer(step, op.getCount(), kvplan::Space::Batch);
    out.steps.push_back(std::move(step));
  }

  int64_t keptBytes(bool keys) {
    const StateSize &kept = costs.last();
    return out.shape.batch * out.shape.heads * kept.tokens *
           (keys ? kept.channels : out.shape.channels) * out.shape.storageBytes;
  }

  void compaction() {
    const StateSize &kept = costs.last();
    Step step{"compact", "", "", {}, {}, {}, 0};
    step.work.push_back(
        llvm::formatv("gather {0} tokens of {1} key channels and {2} value channels", kept.tokens,
                      kept.channels, out.shape.channels));
    // Rows of keys are read whole: what is dropped stands between what stays.
    step.reads = {{"keys", keptBytes(true) / kept.channels * out.shape.channels},
                  {"values", keptBytes(false)}};
    step.writes = {{"kept keys", keptBytes(true)}, {"kept values", keptBytes(false)}};
    out.steps.push_back(std::move(step));
  }

  /// What one thread holds for a moment, in its cache.
  static bool isTile(mlir::Value buffer) {
    return buffer.getDefiningOp<kvplan::BufferOp>().getScope() == kvplan::Scope::Tile;
  }

  void hold(kvplan::BufferOp buffer) {
    kvplan::PassOp pass = kvplan::passOfTile(buffer);
    if (isTile(buffer) && !pass)
      return; // the block of a fold, on the stack
    TensorType type = buffer.getResult().getType().getTensor();
    bool rows = kvplan::holdsBlock(buffer);
    bool perCall = buffer.getScope() != kvplan::Scope::Task && !rows && !pass;
    auto space = kvplan::Space::Batch;
    int64_t queries = 0;
    for (mlir::Operation *user : buffer.getResult().getUsers()) {
      if (auto tasks = user->getParentOfType<kvplan::TasksOp>())
        space = tasks.getSpace();
      if (auto loop = user->getParentOfType<kvplan::RowsOp>(); loop && rows)
        queries = static_cast<int64_t>(loop.getBlock());
    }
    HeldBuffer held;
    held.name = buffer.getName().str();
    llvm::raw_string_ostream(held.type) << axesOf(type) << " " << type.getElementType();
    held.why = pass ? "of a tile, in the cache of the thread that makes it and uses it up"
                    : whyHeld(buffer.getResult());
    held.per = pass ? HeldBuffer::Thread : perCall ? HeldBuffer::Call : HeldBuffer::Task;
    held.bytes = perCall ? costs.callBytes(buffer) : costs.taskBytes(buffer, space);
    if (queries && llvm::any_of(type.getAxes(), kvp::isAllQueries)) {
      queries = std::min(queries, out.shape.tokens);
      held.bytes = held.bytes / std::max<int64_t>(out.shape.tokens, 1) * queries;
      held.type += llvm::formatv(" of {0} queries", queries).str();
    }
    if (pass) {
      int64_t n = std::max<int64_t>(costs.extent(pass.getOver()), 1);
      auto tile = static_cast<int64_t>(pass.getTile());
      held.bytes = held.bytes / n * std::min(tile, n);
      held.type += llvm::formatv(" of {0} {1}s", tile, pass.getOver().getName()).str();
      int64_t &sum = ofPasses[pass];
      sum += held.bytes;
      out.threadWorkspace = std::max(out.threadWorkspace, sum);
    }
    if (held.per == HeldBuffer::Task)
      for (mlir::Operation *user : buffer.getResult().getUsers())
        if (auto tasks = user->getParentOfType<kvplan::TasksOp>()) {
          int64_t &sum = ofTasks[tasks];
          sum += held.bytes;
          out.widestTask = std::max(out.widestTask, sum);
          break;
        }
    out.buffers.push_back(std::move(held));
  }

  static std::string whyHeld(mlir::Value buffer) {
    std::string why;
    for (mlir::Operation *user : buffer.getUsers()) {
      if (mlir::isa<kvplan::SelectOp, kvplan::FilterOp>(user))
        return "a selection needs all of it";
      if (mlir::isa<kvplan::OrderOp>(user))
        return "whole rows are put in order";
      if (auto statistics = mlir::dyn_cast<kvplan::StatisticsOp>(user);
          statistics && statistics.getBuffer() != buffer)
        why = statistics.getFactors() == buffer      ? "what turns a tile's exponents into weights"
              : statistics.getReferences() == buffer ? "what a tile's exponents are made again from"
                                                     : "a finished reduction";
      if (mlir::isa<kvplan::AccumulateOp, kvplan::MergeOp>(user))
        why = "a finished reduction";
      if (auto pack = mlir::dyn_cast<kvplan::PackFormOp>(user); pack && pack.getBuffer() == buffer)
        why = "matrices of the quadratic form, packed for it";
      if (mlir::isa<kvplan::PackOp>(user))
        why = "rows of the contraction, packed for it";
    }
    return why;
  }

  /// What is held although it could be computed again: the price of that.
  void weighHeld() {
    for (HeldBuffer &buffer : out.buffers) {
      if (!buffer.why.empty())
        continue;
      int64_t bytes = 0, flops = 0;
      for (const Step &step : out.steps)
        if (llvm::any_of(step.writes, [&](const Traffic &t) { return t.what == buffer.name; })) {
          flops += step.flops;
          for (const Traffic &traffic : step.reads)
            bytes += traffic.bytes;
        }
      buffer.why = llvm::formatv("a later step reads it; computing it again would read {0:f1} MiB "
                                 "and take {1:f3} Gflop",
                                 bytes / 1048576.0, flops / 1e9);
    }
  }

  void addDataCount(llvm::StringRef what, mlir::Operation *op) {
    std::string place = placeOf(op->getLoc());
    out.dataCounts.push_back((what + (place.empty() ? "" : " (" + place + ")")).str());
  }

  void notePrimitive(mlir::Operation *op) {
    if (auto name = primitiveOf(op))
      out.primitives.insert(*name);
  }

  /// Nothing can read less than each input once (of keys that no score needs, the kept alone), or
  /// write less than the kept.
  void floor() {
    int64_t all = out.shape.batch * out.shape.heads * out.shape.tokens * out.shape.channels *
                  out.shape.storageBytes;
    out.floorReads = inputsUsed.count("keys") ? all : keptBytes(true);
    out.floorReads += inputsUsed.count("values") ? all : keptBytes(false);
    std::map<std::string, int64_t> others;
    for (const Step &step : out.steps)
      for (const Traffic &traffic : step.reads)
        if (inputsUsed.count(traffic.what) && traffic.what != "keys" && traffic.what != "values")
          others[traffic.what] = std::max(others[traffic.what], traffic.bytes);
    for (auto &[name, bytes] : others)
      out.floorReads += bytes;
    out.floorWrites = keptBytes(true) + keptBytes(false);
    out.floorFlops = flopsOf(program, costs);
  }

  kvplan::PipelineOp pipeline;
  kvp::PressOp program;
  PlanCosts costs;
  Explanation out;
  std::set<std::string> inputsUsed;
  std::map<mlir::Operation *, int64_t> ofTasks;  // tasks -> bytes that one of them holds
  std::map<mlir::Operation *, int64_t> ofPasses; // pass -> bytes that a thread holds of a tile
  // The loop over blocks of queries that is read: queries of a block, blocks, share of the entries
  // that a sweep takes.
  int64_t block = 0, blocks = 1;
  double share = 1;
};

int64_t sum(const std::vector<Traffic> &traffic) {
  int64_t bytes = 0;
  for (const Traffic &one : traffic)
    bytes += one.bytes;
  return bytes;
}

} // namespace

int64_t Explanation::passes() const {
  return llvm::count_if(steps, [](const Step &step) { return step.kind == "pass"; });
}
int64_t Explanation::reads() const {
  int64_t bytes = 0;
  for (const Step &step : steps)
    bytes += sum(step.reads);
  return bytes;
}
int64_t Explanation::writes() const {
  int64_t bytes = 0;
  for (const Step &step : steps)
    bytes += sum(step.writes);
  return bytes;
}
int64_t Explanation::flops() const {
  int64_t n = 0;
  for (const Step &step : steps)
    n += step.flops;
  return n;
}
int64_t Explanation::callWorkspace() const {
  int64_t bytes = 0;
  for (const HeldBuffer &buffer : buffers)
    bytes += buffer.per == HeldBuffer::Call ? buffer.bytes : 0;
  return bytes;
}
int64_t Explanation::taskWorkspace() const {
  int64_t bytes = 0;
  for (const HeldBuffer &buffer : buffers)
    bytes += buffer.per == HeldBuffer::Task ? buffer.bytes : 0;
  return bytes;
}
double Explanation::keptShare() const {
  double all = 2.0 * shape.tokens * shape.channels;
  return static_cast<double>(kept.tokens) * (kept.channels + shape.channels) / all;
}

Explanation driver::explain(kvplan::PipelineOp pipeline, kvp::PressOp press, kvp::PressOp program,
                            const CostShape &shape) {
  return Explainer(pipeline, press, program, shape).run();
}
