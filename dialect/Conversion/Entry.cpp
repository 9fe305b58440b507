//===- Entry.cpp - the plan and run functions of a press --------------------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "kvpc/abi.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

Kernel::Kernel(ModuleOp out, kvplan::PipelineOp pipeline, const Variant &variant, StringRef prefix)
    : e(out, variant.lanes), pipeline(pipeline), variant(variant), prefix(prefix.str()) {
  memo.emplace_back();
  e.onRegion = [this](bool enter) {
    if (enter)
      memo.emplace_back();
    else
      memo.pop_back();
  };
}

void Kernel::error(Operation *op, const Twine &text) {
  failed = true;
  op->emitError(text);
}

LogicalResult Kernel::emit() {
  assignSlots();
  emitPlan();
  emitRun();
  return failure(failed);
}

/// Gives every buffer, set and counter its slot in the frame, and names the cache states.
void Kernel::assignSlots() {
  auto slot = [&] { return slots++; };
  chunkSlot = slot();
  chunkSizeSlot = slot();
  segmentsSlot = slot();
  scratchSlot = slot();
  scratchStride = slot();
  blockSlot = slot();
  states[pipeline.getBody().getArgument(0)] = {};
  pipeline.walk<WalkOrder::PreOrder>([&](Operation *op) {
    TypeSwitch<Operation *>(op)
        .Case([&](kvplan::BufferOp b) {
          unsigned address = slot();
          buffers[b.getResult()] = {address, slot(), -1};
        })
        .Case([&](kvplan::TasksOp t) { flights[t] = slot(); })
        .Case([&](kvplan::AccumulateOp a) { buffers[a.getBuffer()].partials = slot(); })
        .Case([&](kvplan::StatisticsOp s) {
          buffers[s.getMaximum()].partials = slot();
          buffers[s.getInverse()].partials = slot();
        })
        .Case([&](kvplan::SelectOp s) {
          CacheState state = states[s.getCache()];
          state.before = s.getCache();
          state.selection = s;
          bool perHead = s.getScore().getType().getTensor().hasAxis("head");
          if (s.getScore().getType().getTensor().hasAxis("channel")) {
            state.channelsPerHead |= perHead;
            state.channels = slot();
          } else {
            state.tokensPerHead |= perHead;
            state.tokens = slot();
            state.counts = slot();
          }
          states[s.getResult()] = state;
        })
        .Case([&](kvplan::FilterOp f) {
          CacheState state = states[f.getCache()];
          state.before = f.getCache();
          state.selection = f;
          state.tokensPerHead |= f.getCondition().getType().getTensor().hasAxis("head");
          state.tokens = slot();
          state.counts = slot();
          states[f.getResult()] = state;
        });
  });
}

std::pair<Value, Value> Kernel::layout(const Row &row, Value workspace, Value state) {
  Value used = e.constant(0), kept = e.constant(0);
  auto place = [&](unsigned slot, Value bytes, bool inState) {
    Value &offset = inState ? kept : used;
    setSlot(row, slot,
            LLVM::PtrToIntOp::create(e, e.i64(), e.at(inState ? state : workspace, offset)));
    offset = e.add(offset, e.roundUp(bytes, 64));
  };
  Value rows = field(row, offsetof(kvpc_call, batch));
  Value heads = e.mul(rows, field(row, offsetof(kvpc_call, heads)));
  Value tokens = field(row, offsetof(kvpc_call, tokens));
  Value width = field(row, offsetof(kvpc_call, channels));
  Value longest = e.max(tokens, width);

  // Tasks in flight: enough for two items a thread where wide buffers are held, else all.
  for (auto &[op, slot] : flights) {
    auto tasksOp = cast<kvplan::TasksOp>(op);
    Value total = taskCount(row, tasksOp.getSpace()), flight = e.max(total, e.constant(1));
    if (holdsWide(tasksOp)) {
      Value segments = e.constant(1);
      tasksOp.walk([&](kvplan::PassOp p) {
        segments = e.max(segments, segmentsOf(row, p, passEntries(row, p, true)));
        return WalkResult::interrupt();
      });
      Value threads = e.max(field(row, offsetof(kvpc_call, threads)), e.constant(1));
      Value wanted = e.ceilDiv(e.mul(threads, 2), segments);
      // Between the sweeps of a block there is little to do: two tasks do it together.
      bool blocks = !tasksOp.getBody().getOps<kvplan::RowsOp>().empty();
      if (blocks)
        wanted = e.select(takesAlone(row, tasksOp.getSpace()), threads,
                          e.max(e.mul(wanted, 2), e.min(threads, e.constant(2))));
      flight = e.min(flight, wanted);
      flight = e.min(flight, e.max(affordable(row, tasksOp), e.constant(1)));
    }
    setSlot(row, slot, flight);
  }

  for (auto &[buffer, where] : buffers) {
    auto op = buffer.getDefiningOp<kvplan::BufferOp>();
    if (op.getScope() == kvplan::Scope::Tile)
      continue;
    Value bytes = taskBytes(row, buffer);
    setSlot(row, where.stride, bytes);
    Value count = op.getType().getTensor().hasAxis("head") ? heads : rows;
    if (isOfTasks(buffer))
      count = flightOf(row, buffer);
    place(where.address, e.mul(bytes, count), op.getScope() == kvplan::Scope::State);
    if (where.partials < 0)
      continue;
    for (Operation *user : buffer.getUsers())
      if (auto p = user->getParentOfType<kvplan::PassOp>();
          p && isa<kvplan::AccumulateOp, kvplan::StatisticsOp>(user)) {
        Value segments = e.max(segmentsOf(row, p, passEntries(row, p, true)), e.constant(1));
        Value inFlight = slotI64(row, flights[p->getParentOfType<kvplan::TasksOp>()]);
        place(where.partials, e.mul(e.mul(bytes, segments), inFlight), false);
        break;
      }
  }
  used = e.add(used, placeTiles(row, e.at(workspace, used)));
  for (auto &[cache, info] : states) {
    if (!info.selection)
      continue;
    const CacheState &before = states[info.before];
    bool shared = info.selection->hasAttr("leader");
    if (info.tokens != before.tokens) {
      Value count = info.tokensPerHead ? heads : rows;
      place(info.tokens, e.mul(e.mul(count, tokens), 4), shared);
      place(info.counts, e.mul(count, 8), shared);
    }
    if (info.channels != before.channels)
      place(info.channels, e.mul(e.mul(info.channelsPerHead ? heads : rows, width), 4), shared);
  }
  Value selecting = e.roundUp(e.call("kvpc_prim_select_scratch", e.i64(), longest), 64);
  Value ids = e.roundUp(e.mul(longest, 4), 64);
  Value ordering = e.roundUp(e.call("kvpc_prim_order_scratch", e.i64(), longest), 64);
  // Axes that are taken as one, a head's share: values, their order, two conditions beside the
  // rest.
  pipeline.walk([&](kvplan::OrderOp op) {
    if (!op.getOver()) {
      StringRef axis = op.getInput().getType().getTensor().getAxes().back().getName();
      Value n = bufferExtent(row, op.getInput(), axis, /*upper=*/true);
      ordering = e.max(ordering, e.roundUp(e.call("kvpc_prim_order_scratch", e.i64(), n), 64));
      return;
    }
    Value n = e.constant(1);
    for (StringRef axis : kvp::axisNames(*op.getOver()))
      if (axis != "head")
        n = e.mul(n, bufferExtent(row, op.getInput(), axis, /*upper=*/true));
    Value bytes = e.add(e.mul(e.roundUp(n, 64), 4 + 8 + 1 + 1),
                        e.call("kvpc_prim_order_scratch", e.i64(), n));
    ordering = e.max(ordering, e.roundUp(e.add(bytes, e.constant(256)), 64));
  });
  Value scratch = e.max(e.add(selecting, e.mul(ids, 2)), ordering);
  // A choice for all heads of a row takes the scratch of all of them.
  pipeline.walk([&](kvplan::SelectOp op) {
    if (!op.getJoint())
      return;
    Value count = field(row, offsetof(kvpc_call, heads));
    Value together = e.call("kvpc_prim_select_joint_scratch", e.i64(), {count, tokens});
    together = e.add(together, e.mul(count, e.add(e.mul(tokens, 4), e.constant(3 * 8))));
    Value share = e.ceilDiv(e.add(together, e.constant(5 * 64)), count);
    scratch = e.max(scratch, e.roundUp(share, 64));
  });
  setSlot(row, scratchStride, scratch);
  place(scratchSlot, e.mul(scratch, heads), false);
  return {used, kept};
}

/// Tasks whose wide buffers fit the workspace asked for.
Value Kernel::affordable(const Row &row, kvplan::TasksOp op) {
  if (std::isinf(variant.workspace))
    return taskCount(row, op.getSpace());
  Value bytes = e.constant(1);
  for (auto &[buffer, where] : buffers)
    if (auto b = buffer.getDefiningOp<kvplan::BufferOp>();
        isOfTasks(b) && b.getScope() != kvplan::Scope::Tile &&
        llvm::any_of(buffer.getUsers(), [&](Operation *user) { return op->isAncestor(user); }))
      bytes = e.add(bytes, taskBytes(row, buffer));
  Value keys = e.constant(bytesOf(inputStorage()));
  for (int64_t extent : {offsetof(kvpc_call, batch), offsetof(kvpc_call, heads),
                         offsetof(kvpc_call, tokens), offsetof(kvpc_call, channels)})
    keys = e.mul(keys, field(row, extent));
  Value share = arith::MulFOp::create(e, arith::SIToFPOp::create(e, e.f64(), keys),
                                      e.constantF64(variant.workspace));
  return e.div(arith::FPToSIOp::create(e, e.i64(), share), bytes);
}

/// Whether tasks have buffers of their own.
bool Kernel::holdsWide(kvplan::TasksOp op) {
  bool wide = false;
  op.walk([&](Operation *inner) {
    for (Value operand : inner->getOperands())
      if (auto b = operand.getDefiningOp<kvplan::BufferOp>())
        wide |= isOfTasks(b) && b.getScope() != kvplan::Scope::Tile;
  });
  return wide;
}

/// Buffers of tiles, from `memory` on: one place a thread, or a task where a thread takes whole
/// tasks, which all passes share. Returns the bytes.
Value Kernel::placeTiles(const Row &row, Value memory) {
  Value lanes = e.max(field(row, offsetof(kvpc_call, threads)), e.constant(1));
  llvm::MapVector<Operation *, Value> bytesOfPass;
  SmallVector<std::pair<BufferSlots, Value>> offsets;
  for (auto &[buffer, where] : buffers)
    if (kvplan::PassOp pass = kvplan::passOfTile(buffer)) {
      Value &bytes = bytesOfPass.insert({pass, e.constant(0)}).first->second;
      offsets.push_back({where, bytes});
      bytes = e.add(bytes, taskBytes(row, buffer));
      lanes = e.max(lanes, slotI64(row, flights[pass->getParentOfType<kvplan::TasksOp>()]));
    }
  Value lane = e.constant(0);
  for (auto &[pass, bytes] : bytesOfPass)
    lane = e.max(lane, bytes);
  for (auto &[where, offset] : offsets) {
    setSlot(row, where.address, LLVM::PtrToIntOp::create(e, e.i64(), e.at(memory, offset)));
    setSlot(row, where.stride, lane);
  }
  return e.mul(lane, lanes);
}

Value Kernel::flightOf(const Row &row, Value buffer) {
  for (Operation *user : buffer.getUsers())
    if (auto t = user->getParentOfType<kvplan::TasksOp>())
      return slotI64(row, flights[t]);
  return e.constant(1);
}

/// An exported function of one kvpc_call pointer.
static func::FuncOp entry(Emitter &e, StringRef name) {
  e.setInsertionPointToEnd(e.getModule().getBody());
  auto f = func::FuncOp::create(e, name, e.getFunctionType({e.ptr()}, {e.i32()}));
  f->setAttr("kvpc.export", e.getUnitAttr());
  e.setInsertionPointToStart(f.addEntryBlock());
  return f;
}

static Row begin(Emitter &e, func::FuncOp f, unsigned slots) {
  Row row;
  row.call = f.getArgument(0);
  row.frame = LLVM::AllocaOp::create(e, e.ptr(), e.i64(), e.constant(slots), /*alignment=*/64);
  e.storeScalar(row.call, row.frame);
  return row;
}

std::string Kernel::emitChoice(StringRef name, StringRef held, StringRef tight) {
  memo.clear();
  memo.emplace_back();
  std::string own = prefix + ".choice." + name.str();
  auto f = function = entry(e, own);
  Row row = begin(e, f, slots);
  row.planning = true;
  Value fits = e.constantBool(true);
  for (auto &[op, slot] : flights)
    if (auto tasksOp = cast<kvplan::TasksOp>(op); holdsWide(tasksOp))
      fits = e.both(fits, e.less(e.constant(0), affordable(row, tasksOp)));
  auto call = [&](StringRef of) {
    return func::CallOp::create(e, of, TypeRange{e.i32()}, ValueRange{row.call}).getResult(0);
  };
  Value status = e.choose(fits, [&] { return call(held); }, [&] { return call(tight); });
  func::ReturnOp::create(e, status);
  return own;
}

void Kernel::emitPlan() {
  memo.clear();
  memo.emplace_back();
  auto f = function = entry(e, planName());
  Row row = begin(e, f, slots);
  auto compact = cast<kvplan::CompactOp>(pipeline.getBody().front().back());
  Value cache = compact.getCache();
  row.planning = true;
  Value zero = e.constant(0);
  Value status = e.constant(KVPC_OK);
  auto sizes = e.loop(zero, field(row, offsetof(kvpc_call, batch)), 1,
                      ValueRange{zero, zero, status}, [&](Value b, ValueRange acc) {
                        Row own = row;
                        own.batch = b;
                        SmallVector<Value> out(acc);
                        out[0] = e.max(acc[0], length(own, cache));
                        out[1] = e.max(acc[1], channels(own, cache));
                        Value live = e.less(zero, perRow(own, offsetof(kvpc_call, length)));
                        for (auto require : pipeline.getBody().getOps<kvplan::RequireOp>()) {
                          Value holds = host(own, require.getCondition());
                          Value broken = e.both(
                              live, e.select(holds, e.constantBool(false), e.constantBool(true)));
                          e.when(broken, [&] { writeError(own, require.getMessage()); });
                          out[2] = e.select(broken, e.constant(KVPC_ERROR_REQUIRE), out[2]);
                        }
                        return out;
                      });
  auto set = [&](int64_t offset, Value v) { e.storeScalar(v, e.at(row.call, offset)); };
  set(offsetof(kvpc_call, kept), sizes[0]);
  set(offsetof(kvpc_call, kept_channels), sizes[1]);
  Value null = LLVM::ZeroOp::create(e, e.ptr());
  auto [workspace, state] = layout(row, null, null);
  set(offsetof(kvpc_call, workspace_bytes), workspace);
  set(offsetof(kvpc_call, state_bytes), state);
  func::ReturnOp::create(e, ValueRange{arith::TruncIOp::create(e, e.i32(), sizes[2])});
}

/// Copies a message of the program into the caller's buffer, cut to its size.
void Kernel::writeError(const Row &row, StringRef message) {
  std::string name = prefix + ".message." + std::to_string(messages++);
  {
    OpBuilder::InsertionGuard guard(e);
    e.setInsertionPointToStart(e.getModule().getBody());
    std::string text = message.str() + std::string(1, '\0');
    auto type = LLVM::LLVMArrayType::get(e.getI8Type(), text.size());
    LLVM::GlobalOp::create(e, type, /*isConstant=*/true, LLVM::Linkage::Internal, name,
                           e.getStringAttr(text));
  }
  Value out = fieldPtr(row, offsetof(kvpc_call, error));
  e.when(
      e.isNull(out), [] {},
      [&] {
        Value from = LLVM::AddressOfOp::create(e, e.ptr(), name);
        Value size = field(row, offsetof(kvpc_call, error_size));
        Value count = e.min(e.constant(message.size() + 1), size);
        e.loop(e.constant(0), count, 1, [&](Value i) {
          e.storeScalar(e.loadScalar(e.getI8Type(), e.at(from, i)), e.at(out, i));
        });
      });
}

void Kernel::emitRun() {
  memo.clear();
  memo.emplace_back();
  auto f = function = entry(e, runName());
  Row row = begin(e, f, slots);
  layout(row, fieldPtr(row, offsetof(kvpc_call, workspace)),
         fieldPtr(row, offsetof(kvpc_call, state)));
  Block &block = pipeline.getBody().front();
  sequence(row, block.begin(), block.end());
  Value ok = arith::ConstantOp::create(e, e.getI32IntegerAttr(KVPC_OK));
  func::ReturnOp::create(e, ok);
}

void Kernel::sequence(const Row &row, Block::iterator from, Block::iterator to) {
  for (auto it = from; it != to; ++it) {
    memo.emplace_back(); // steps change what loads give
    Operation *op = &*it;
    if (auto t = dyn_cast<kvplan::TasksOp>(op))
      onLeader(row, t.getLeader(), [&] { tasks(row, t); });
    else if (auto s = dyn_cast<kvplan::SelectOp>(op))
      select(row, s);
    else if (auto s = dyn_cast<kvplan::FilterOp>(op))
      filter(row, s);
    else if (auto c = dyn_cast<kvplan::CompactOp>(op))
      compact(row, c);
    memo.pop_back();
    if (auto s = dyn_cast<kvplan::ScoresOp>(op)) {
      e.when(
          e.isNull(fieldPtr(row, offsetof(kvpc_call, out_scores))),
          [&] { sequence(row, std::next(it), to); }, [&] { scores(row, s); });
      return;
    }
  }
}
