//===- Steps.cpp - steps of a pipeline as parallel bodies -------------------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "kvpc/abi.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

/// A function body(frame, begin, end) that runs `item` for every number in between.
std::string Kernel::body(function_ref<void(const Row &, Value)> item) {
  std::string name = prefix + ".body." + std::to_string(bodies++);
  OpBuilder::InsertionGuard guard(e);
  decltype(memo) outer;
  std::swap(memo, outer);
  memo.emplace_back();
  e.setInsertionPointToEnd(e.getModule().getBody());
  auto f = func::FuncOp::create(e, name, e.getFunctionType({e.ptr(), e.i64(), e.i64()}, {}));
  f.setPrivate();
  auto around = std::exchange(function, f);
  e.setInsertionPointToStart(f.addEntryBlock());
  Row row;
  row.frame = f.getArgument(0);
  row.call = e.loadPtr(row.frame, 0);
  e.loop(f.getArgument(1), f.getArgument(2), 1, [&](Value i) { item(row, i); });
  func::ReturnOp::create(e);
  e.setInsertionPointToEnd(e.getModule().getBody());
  auto launcher =
      func::FuncOp::create(e, name + ".parallel", e.getFunctionType({e.ptr(), e.i64()}, {}));
  launcher.setPrivate();
  launcher->setAttr("kvpc.body", FlatSymbolRefAttr::get(e.getContext(), name));
  std::swap(memo, outer);
  function = around;
  return name;
}

void Kernel::launch(const Row &row, StringRef name, Value count) {
  func::CallOp::create(e, (name + ".parallel").str(), TypeRange{}, ValueRange{row.frame, count});
}

Value Kernel::taskCount(const Row &row, kvplan::Space space) {
  Value batch = field(row, offsetof(kvpc_call, batch));
  return space == kvplan::Space::Head ? e.mul(batch, field(row, offsetof(kvpc_call, heads)))
                                      : batch;
}

/// Row and head of task number `task`; `slot`: its place among those in flight.
Row Kernel::taskRow(const Row &row, Value task, kvplan::Space space, Value slot) {
  Row out = row;
  out.slot = slot;
  out.batch = task;
  if (space == kvplan::Space::Head) {
    Value heads = field(row, offsetof(kvpc_call, heads));
    out.batch = e.div(task, heads);
    out.head = e.rem(task, heads);
  }
  if (rowsOp) {
    out.block = slotI64(row, blockSlot);
    Value end = e.min(e.add(out.block, rowsOp.getBlock()), queryCount(out));
    out.blockEnd = e.max(end, out.block);
  }
  return out;
}

void Kernel::onLeader(const Row &row, std::optional<int64_t> leader, function_ref<void()> then) {
  if (!leader)
    return then();
  Value rest = e.rem(field(row, offsetof(kvpc_call, layer)), e.constant(*leader));
  e.when(e.cmp(arith::CmpIPredicate::eq, rest, e.constant(0)), then);
}

//===------------------------------------------------------------------------------------------===//
// Tasks
//===------------------------------------------------------------------------------------------===//

void Kernel::tasks(const Row &row, kvplan::TasksOp op) {
  kvplan::Space space = op.getSpace();
  Value total = taskCount(row, space), flight = slotI64(row, flights[op]);
  e.loop(e.constant(0), e.ceilDiv(total, flight), 1, [&](Value chunk) {
    Value first = e.mul(chunk, flight);
    setSlot(row, chunkSlot, first);
    setSlot(row, chunkSizeSlot, e.min(flight, e.sub(total, first)));
    for (Operation &inner : op.getBody().front())
      step(row, inner, space);
  });
}

void Kernel::step(const Row &row, Operation &op, kvplan::Space space) {
  if (auto p = dyn_cast<kvplan::PassOp>(op))
    pass(row, p, space);
  else if (auto s = dyn_cast<kvplan::SmallOp>(op))
    small(row, s, space);
  else if (auto o = dyn_cast<kvplan::OrderOp>(op))
    order(row, o, space);
  else if (auto r = dyn_cast<kvplan::RowsOp>(op))
    rows(row, r, space);
}

//===------------------------------------------------------------------------------------------===//
// Blocks of queries
//===------------------------------------------------------------------------------------------===//

/// Whether every thread takes whole tasks, block after block, with no other waiting for it: there
/// are tasks enough for that. A matter of schedule, which changes no bit.
Value Kernel::takesAlone(const Row &row, kvplan::Space space) {
  Value total = taskCount(row, space);
  Value threads = e.max(field(row, offsetof(kvpc_call, threads)), e.constant(1));
  Value even = e.cmp(arith::CmpIPredicate::eq, e.rem(total, threads), e.constant(0));
  Value many = e.cmp(arith::CmpIPredicate::sge, total, e.mul(threads, 3));
  return arith::OrIOp::create(e, even, many);
}

void Kernel::rows(const Row &row, kvplan::RowsOp op, kvplan::Space space) {
  rowsOp = op;
  auto steps = [&](const Row &own) {
    for (Operation &inner : op.getBody().front()) {
      memo.emplace_back(); // what blocks before left is not there any more
      step(own, inner, space);
      memo.pop_back();
    }
  };
  auto merges = [&](const Row &own) {
    for (auto p : op.getBody().getOps<kvplan::PassOp>())
      beginMerges(own, p, space);
  };
  setSlot(row, blockSlot, e.constant(0));
  // A cap on the workspace may leave threads without a task.
  Value threads = e.max(field(row, offsetof(kvpc_call, threads)), e.constant(1));
  Value flight = slotI64(row, flights[op->getParentOfType<kvplan::TasksOp>()]);
  Value enough = e.cmp(arith::CmpIPredicate::sge, flight, e.min(threads, taskCount(row, space)));
  e.when(
      e.both(takesAlone(row, space), enough),
      [&] {
        forTasks(row, space, [&](const Row &task, Value) {
          alone = true;
          memo.emplace_back();
          merges(task);
          memo.pop_back();
          e.loop(e.constant(0), queryCount(task), op.getBlock(), [&](Value first) {
            Row own = task;
            own.lane = task.slot;
            own.block = first;
            own.blockEnd = e.min(e.add(first, op.getBlock()), queryCount(task));
            steps(own);
          });
          alone = false;
        });
      },
      [&] {
        merges(row);
        Value most = e.min(field(row, offsetof(kvpc_call, queries)),
                           field(row, offsetof(kvpc_call, tokens)));
        e.loop(e.constant(0), most, op.getBlock(), [&](Value first) {
          setSlot(row, blockSlot, first);
          steps(row);
        });
      });
  rowsOp = {};
}

/// What is merged starts as if no query had come; where the first block's sweep does not come and
/// would find zeros, as zero.
void Kernel::beginMerges(const Row &row, kvplan::PassOp op, kvplan::Space space) {
  auto merges = op.getBody().getOps<kvplan::MergeOp>();
  if (merges.empty())
    return;
  forTasks(row, space, [&](const Row &task, Value) {
    StringRef over = op.getOver().getName();
    Value entries = passEntries(task, op, false);
    for (kvplan::MergeOp m : merges) {
      Value buffer = m.getBuffer();
      Type element = m.getBuffer().getType().getTensor().getElementType();
      auto fill = [&](Value from, Value to, Value with) {
        forEach(bufferRanges(task, buffer, over, from, to), "", headIndex(task),
                [&](const Indices &at) {
                  e.store(storageOf(buffer), with, elementAddress(task, buffer, at));
                });
      };
      Value end = m.getVanishing() ? sweepEnd(task, entries) : entries;
      fill(e.constant(0), end, identity(foldOf(m.getKind()), element));
      fill(end, entries, e.constantOf(element, 0));
    }
  });
}

/// Entries that a block's sweep takes, of all that there are: none without queries, and only those
/// that its last query may see where nothing else counts.
Value Kernel::sweepEnd(const Row &row, Value entries) {
  if (!row.block)
    return entries;
  Value last = entries;
  if (rowsOp.getCausal()) {
    Value offset = e.sub(perRow(row, offsetof(kvpc_call, seen)), queryCount(row));
    Value seen = e.max(e.min(e.add(offset, row.blockEnd), entries), e.constant(0));
    last = e.select(isCounted(row), seen, entries);
  }
  return e.select(e.less(row.block, row.blockEnd), last, e.constant(0));
}

void Kernel::merge(const Row &row, kvplan::MergeOp op, StringRef over, Value from, Value to) {
  Value buffer = op.getBuffer();
  Fold kind = foldOf(op.getKind());
  Storage storage = storageOf(buffer);
  SmallVector<Range> ranges = bufferRanges(row, buffer, over, from, to);
  SmallVector<StringRef> names =
      llvm::map_to_vector(ranges, [](const Range &r) -> StringRef { return r.axis; });
  StringRef lane = laneAxis(op.getValue(), names);
  if (lane != names.back())
    lane = "";
  forEach(ranges, lane, headIndex(row), [&](const Indices &at) {
    Value v = value(row, op.getValue(), at);
    Value address = elementAddress(row, buffer, at);
    if (lane.empty())
      e.store(storage, foldPair(kind, e.load(storage, address), v), address);
    else
      e.storeVector(storage, foldPair(kind, e.loadVector(storage, address, at.mask), v), address,
                    at.mask);
  });
}

/// Entries of a pass' axis for a row.
Value Kernel::passEntries(const Row &row, kvplan::PassOp op, bool upper) {
  StringRef axis = op.getOver().getName();
  if (axis == "token")
    return upper ? field(row, offsetof(kvpc_call, tokens))
                 : length(row, cacheOfState(op.getOver().getState()));
  // Expressions inside may have the axis in another partition: what the pass makes tells.
  for (Operation &inner : op.getBody().front()) {
    Value swept;
    if (auto store = dyn_cast<kvplan::StoreOp>(inner))
      swept = store.getValue();
    else if (auto accumulate = dyn_cast<kvplan::AccumulateOp>(inner))
      swept = accumulate.getValue();
    else if (auto fold = dyn_cast<kvplan::FoldOp>(inner))
      swept = fold.getValue();
    else if (auto merge = dyn_cast<kvplan::MergeOp>(inner))
      swept = merge.getValue();
    else if (auto statistics = dyn_cast<kvplan::StatisticsOp>(inner))
      swept = axesOf(statistics.getBuffer(), axis);
    if (swept && cast<kvp::NamedTensorType>(swept.getType()).getAxis(axis) == op.getOver())
      return upper ? bound(row, swept, axis) : extent(row, swept, axis);
  }
  error(op, "sweeps over an axis that nothing in it has");
  return e.constant(0);
}

Value Kernel::segmentsOf(const Row &row, kvplan::PassOp op, Value entries) {
  return e.ceilDiv(entries, e.constant(op.getTile() * op.getSegment()));
}

/// Calls `one` for each task in flight, in parallel; only for the row's own where its steps are
/// taken by one thread.
void Kernel::forTasks(const Row &row, kvplan::Space space,
                      function_ref<void(const Row &, Value)> one) {
  if (alone) {
    Value number = row.batch;
    if (space == kvplan::Space::Head)
      number = e.add(e.mul(number, field(row, offsetof(kvpc_call, heads))), row.head);
    return one(row, number);
  }
  std::string work = body([&](const Row &outer, Value slot) {
    Value number = e.add(slotI64(outer, chunkSlot), slot);
    one(taskRow(outer, number, space, slot), number);
  });
  launch(row, work, slotI64(row, chunkSizeSlot));
}

/// Whether what is stored is made of as many numbers an entry as keys have.
static bool takesChannels(Value v, llvm::DenseSet<Value> &seen) {
  auto type = dyn_cast<kvp::NamedTensorType>(v.getType());
  if (!type || !seen.insert(v).second)
    return false;
  if (type.hasAxis("channel") && llvm::any_of(type.getAxes(), kvp::isEntryAxis))
    return true;
  Operation *op = v.getDefiningOp();
  return op && llvm::any_of(op->getOperands(), [&](Value o) { return takesChannels(o, seen); });
}

/// Entries of which several stores take their channels one after the other, while they are in the
/// first cache.
static constexpr int64_t kNear = 16;

/// Stores that follow each other, over the entries [from, to) of a tile.
void Kernel::storeNear(const Row &row, ArrayRef<kvplan::StoreOp> stores, StringRef over, Value from,
                       Value to) {
  auto all = [&](Value begin, Value end) {
    for (kvplan::StoreOp s : stores) {
      memo.emplace_back(); // the next may read what this one writes
      store(row, s, over, begin, end);
      memo.pop_back();
    }
  };
  auto wide = llvm::count_if(stores, [](kvplan::StoreOp s) {
    llvm::DenseSet<Value> seen;
    return takesChannels(s.getValue(), seen);
  });
  if (wide < 2)
    return all(from, to);
  e.loop(from, to, kNear, [&](Value begin) { all(begin, e.min(e.add(begin, kNear), to)); });
}

void Kernel::sweepSegment(const Row &own, kvplan::PassOp op, Value segment, Value entries) {
  StringRef over = op.getOver().getName();
  int64_t length = op.getTile() * op.getSegment();
  Value from = e.mul(segment, length), to = e.min(e.add(from, length), entries);
  e.loop(from, to, op.getTile(), [&](Value begin) {
    Row task = own;
    task.tile = begin;
    Value end = e.min(e.add(begin, op.getTile()), to);
    Value first = e.cmp(arith::CmpIPredicate::eq, begin, from);
    SmallVector<kvplan::StoreOp> near;
    for (Operation &inner : op.getBody().front()) {
      if (auto s = dyn_cast<kvplan::StoreOp>(inner)) {
        near.push_back(s);
        continue;
      }
      if (isMemoryEffectFree(&inner))
        continue;
      storeNear(task, near, over, begin, end);
      near.clear();
      // What a step writes, later steps of the tile may read: forget loads.
      memo.emplace_back();
      if (auto a = dyn_cast<kvplan::AccumulateOp>(inner))
        accumulate(task, a, over, segment, begin, end, first);
      else if (auto c = dyn_cast<kvplan::ContractOp>(inner))
        contract(task, c, begin, end);
      else if (auto f = dyn_cast<kvplan::FormOp>(inner))
        form(task, f, begin, end);
      else if (auto f = dyn_cast<kvplan::FoldOp>(inner))
        fold(task, f, over, begin, end);
      else if (auto m = dyn_cast<kvplan::MergeOp>(inner))
        merge(task, m, over, begin, end);
      else if (auto s = dyn_cast<kvplan::StatisticsOp>(inner))
        statistics(task, s, segment, begin, end, first);
      else if (auto x = dyn_cast<kvplan::ExponentsOp>(inner))
        exponents(task, x, begin, end);
      memo.pop_back();
    }
    storeNear(task, near, over, begin, end);
  });
}

void Kernel::finishPass(const Row &task, kvplan::PassOp op, Value segments, Value entries) {
  for (Operation &inner : op.getBody().front()) {
    if (auto a = dyn_cast<kvplan::AccumulateOp>(inner))
      combinePartials(task, a, op.getOver().getName(), segments);
    else if (auto s = dyn_cast<kvplan::StatisticsOp>(inner))
      combineStatistics(task, s, segments, entries);
  }
}

/// Entries that a pass sweeps for a row.
Value Kernel::sweptEntries(const Row &row, kvplan::PassOp op) {
  return sweepEnd(row, passEntries(row, op, /*upper=*/false));
}

/// Whether a pass has buffers of which a thread holds the entries of one tile.
static bool holdsTiles(kvplan::PassOp op) {
  bool found = false;
  op.walk([&](Operation *inner) {
    for (Value operand : inner->getOperands())
      if (operand.getDefiningOp<kvplan::BufferOp>())
        found |= bool(kvplan::passOfTile(operand));
  });
  return found;
}

void Kernel::pass(const Row &row, kvplan::PassOp op, kvplan::Space space) {
  Value most = e.max(segmentsOf(row, op, passEntries(row, op, /*upper=*/true)), e.constant(1));
  if (alone) {
    Row task = row;
    task.segments = most;
    Value entries = sweptEntries(task, op), segments = segmentsOf(task, op, entries);
    e.loop(e.constant(0), segments, 1,
           [&](Value segment) { sweepSegment(task, op, segment, entries); });
    finishPass(task, op, segments, entries);
    return;
  }
  // A block's sweeps may end early, for all tasks in flight.
  Value segments = most;
  if (rowsOp)
    segments = e.loop(e.constant(0), slotI64(row, chunkSizeSlot), 1, e.constant(1),
                      [&](Value slot, ValueRange longest) {
                        Row task = taskRow(row, e.add(slotI64(row, chunkSlot), slot), space, slot);
                        Value own = segmentsOf(task, op, sweptEntries(task, op));
                        return SmallVector<Value>{e.max(longest[0], own)};
                      })[0];
  setSlot(row, segmentsSlot, segments);
  auto sweepItem = [&](const Row &outer, Value item, Value lane) {
    Value perTask = slotI64(outer, segmentsSlot);
    Value slot = e.div(item, perTask), segment = e.rem(item, perTask);
    Row task = taskRow(outer, e.add(slotI64(outer, chunkSlot), slot), space, slot);
    task.segments = perTask;
    task.lane = lane;
    sweepSegment(task, op, segment, sweptEntries(task, op));
  };
  Value items = e.mul(slotI64(row, chunkSizeSlot), segments);
  if (!holdsTiles(op)) {
    launch(row, body([&](const Row &outer, Value item) { sweepItem(outer, item, {}); }), items);
  } else {
    // A thread's items share its place in buffers of a tile.
    auto threadsOf = [&](const Row &any) {
      return e.max(field(any, offsetof(kvpc_call, threads)), e.constant(1));
    };
    std::string sweep = body([&](const Row &outer, Value lane) {
      Value all = e.mul(slotI64(outer, chunkSizeSlot), slotI64(outer, segmentsSlot));
      Value threads = threadsOf(outer);
      e.loop(e.constant(0), e.ceilDiv(e.sub(all, lane), threads), 1,
             [&](Value turn) { sweepItem(outer, e.add(lane, e.mul(turn, threads)), lane); });
    });
    launch(row, sweep, e.min(threadsOf(row), items));
  }

  auto finishes = [](Operation &inner) {
    return isa<kvplan::AccumulateOp, kvplan::StatisticsOp>(inner);
  };
  if (llvm::none_of(op.getBody().front(), finishes))
    return;
  forTasks(row, space, [&](const Row &own, Value) {
    Row task = own;
    task.segments = slotI64(task, segmentsSlot);
    Value entries = sweptEntries(task, op);
    finishPass(task, op, segmentsOf(task, op, entries), entries);
  });
}

void Kernel::small(const Row &row, kvplan::SmallOp op, kvplan::Space space) {
  forTasks(row, space, [&](const Row &task, Value) {
    for (Operation &inner : op.getBody().front()) {
      memo.emplace_back();
      if (auto s = dyn_cast<kvplan::StoreOp>(inner))
        store(task, s, "", {}, {});
      else if (auto p = dyn_cast<kvplan::PackOp>(inner))
        pack(task, p);
      else if (auto p = dyn_cast<kvplan::PackFormOp>(inner))
        packForm(task, p);
      memo.pop_back();
    }
  });
}

/// Which elements of axes that are taken together a row has: heads may have different numbers of
/// entries, and a short last part fewer slots. Null: all.
Value Kernel::isThere(const Row &row, Value buffer, ArrayRef<StringRef> over, const Indices &at) {
  Row own = row;
  if (const Index *head = at.find("head"); head && !own.head)
    own.head = head->base;
  Value there, tensor = kvplan::writtenTo(buffer);
  for (kvp::AxisAttr axis : cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()) {
    StringRef name = axis.getName();
    if (!llvm::is_contained(over, name))
      continue;
    Value limit;
    if (kvp::isEntryAxis(axis)) {
      if (row.head || !states[cacheOfState(axis.getState())].tokensPerHead)
        continue;
      limit = tensor ? extent(own, tensor, name) : length(own, cacheOfState(axis.getState()));
    } else if (auto slots = tensor ? kvplan::slotsAlong(tensor, name) : kvplan::Slots()) {
      limit = slotsOf(own, slots.partition, at.find(slots.part)->base);
    } else {
      continue;
    }
    there = e.both(there, e.less(at.find(name)->base, limit));
  }
  return there;
}

/// Axes that do not lie side by side, put in order as one: copied together, and the result copied
/// back.
void Kernel::orderTogether(const Row &row, kvplan::OrderOp op, kvplan::Space space) {
  bool sorts = op.getKind() == kvplan::Order::Sort;
  forTasks(row, space, [&](const Row &task, Value number) {
    SmallVector<StringRef> over = kvp::axisNames(*op.getOver());
    auto axes = op.getInput().getType().getTensor().getAxes();
    auto result = op.getResult().getType().getTensor();
    // What a sort calls its axis.
    StringRef to = over.front();
    for (kvp::AxisAttr axis : result.getAxes())
      if (!op.getInput().getType().getTensor().hasAxis(axis.getName()))
        to = axis.getName();
    SmallVector<Range> others;
    std::map<std::string, Value> extents;
    for (const Range &r : bufferRanges(task, op.getInput(), "", {}, {}))
      if (llvm::is_contained(over, r.axis))
        extents[r.axis] = r.to;
      else
        others.push_back(r);
    // Where heads have different numbers of entries, as many as there is room for.
    for (kvp::AxisAttr axis : axes)
      if (!task.head && extents.count(axis.getName().str()) && kvp::isEntryAxis(axis) &&
          states[cacheOfState(axis.getState())].tokensPerHead)
        extents[axis.getName().str()] =
            bufferExtent(task, op.getInput(), axis.getName(), /*upper=*/true);
    Value n = e.constant(1);
    for (StringRef axis : over)
      n = e.mul(n, extents.at(axis.str()));
    // A row has the scratch of all its heads.
    Value rows = space == kvplan::Space::Head
                     ? number
                     : e.mul(number, field(task, offsetof(kvpc_call, heads)));
    Value base = e.at(slotPtr(task, scratchSlot), e.mul(rows, slotI64(task, scratchStride)));
    auto take = [&](int64_t bytes) {
      Value out = base;
      base = e.at(base, e.roundUp(e.mul(n, bytes), 64));
      return out;
    };
    Value null = LLVM::ZeroOp::create(e, e.ptr());
    Value x = take(4), ordered = take(8);
    Value protect = op.getProtect() ? take(1) : null, where = take(1);
    forEach(others, "", headIndex(task), [&](const Indices &at) {
      auto each = [&](function_ref<void(const Indices &, Value)> one) {
        std::function<void(size_t, const Indices &, Value)> nest =
            [&](size_t depth, const Indices &here, Value flat) {
              if (depth == over.size())
                return one(here, flat);
              Value end = extents.at(over[depth].str());
              e.loop(e.constant(0), end, 1, [&](Value i) {
                nest(depth + 1, here.with(over[depth], Index{i, {}, false}),
                     e.add(e.mul(flat, end), i));
              });
            };
        nest(0, at, e.constant(0));
      };
      auto copyIn = [&](Value buffer, Value target) {
        if (!buffer)
          return;
        Storage storage = storageOf(buffer);
        each([&](const Indices &here, Value flat) {
          e.store(storage, e.load(storage, elementAddress(task, buffer, here)),
                  e.at(target, e.mul(flat, bytesOf(storage))));
        });
      };
      copyIn(op.getInput(), x);
      copyIn(op.getProtect(), protect);
      bool some = op.getWhere() != nullptr;
      each([&](const Indices &here, Value flat) {
        Value inside = isThere(task, op.getInput(), over, here);
        some |= bool(inside);
        if (op.getWhere())
          inside = e.both(inside, e.load(Storage::Byte, elementAddress(task, op.getWhere(), here)));
        if (inside)
          e.store(Storage::Byte, inside, e.at(where, flat));
      });
      Value condition = some ? where : null;
      if (sorts)
        e.call("kvpc_prim_sort", {x, condition, n, e.constantF32(0), ordered, base});
      else
        e.call("kvpc_prim_rank", {x, protect, condition, n, ordered, base});
      Storage storage = storageOf(op.getResult());
      each([&](const Indices &here, Value flat) {
        Indices there = sorts ? here.with(to, *here.find(over.front())) : here;
        e.store(storage, e.load(storage, e.at(ordered, e.mul(flat, bytesOf(storage)))),
                elementAddress(task, op.getResult(), there));
      });
    });
  });
}

void Kernel::order(const Row &row, kvplan::OrderOp op, kvplan::Space space) {
  if (op.getOver())
    return orderTogether(row, op, space);
  forTasks(row, space, [&](const Row &task, Value number) {
    auto tensor = op.getInput().getType().getTensor();
    StringRef axis = tensor.getAxes().back().getName();
    Value n = bufferExtent(task, op.getInput(), axis, false);
    Value scratch = e.at(slotPtr(task, scratchSlot), e.mul(number, slotI64(task, scratchStride)));
    Value null = LLVM::ZeroOp::create(e, e.ptr());
    SmallVector<Range> ranges =
        bufferRanges(task, op.getInput(), axis, e.constant(0), e.constant(1));
    forEach(ranges, "", headIndex(task), [&](const Indices &at) {
      auto address = [&](Value buffer) {
        if (!buffer)
          return null;
        Indices own = at;
        for (kvp::AxisAttr a : cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes())
          if (!own.find(a.getName()))
            own = own.with(a.getName(), Index{e.constant(0), {}, false});
        return elementAddress(task, buffer, own);
      };
      Value x = address(op.getInput()), protect = address(op.getProtect()),
            where = address(op.getWhere()), out = address(op.getResult());
      switch (op.getKind()) {
      case kvplan::Order::Rank:
        e.call("kvpc_prim_rank", {x, protect, where, n, out, scratch});
        break;
      case kvplan::Order::Sort:
        e.call("kvpc_prim_sort", {x, where, n, e.constantF32(0), out, scratch});
        break;
      case kvplan::Order::Cumsum:
        e.call("kvpc_prim_cumsum", {x, where, n, out});
        break;
      }
    });
  });
}

//===------------------------------------------------------------------------------------------===//
// Selections
//===------------------------------------------------------------------------------------------===//

/// Number of the row (and head) in tables with or without a head axis.
Value Kernel::tableIndex(const Row &row, bool perHead) {
  if (!perHead)
    return row.batch;
  Value index = e.mul(row.batch, field(row, offsetof(kvpc_call, heads)));
  return row.head ? e.add(index, row.head) : index;
}

/// Address of a row's ids in a table of `width` i32 each.
Value Kernel::idsOf(const Row &row, unsigned slot, bool perHead, Value width) {
  return e.at(slotPtr(row, slot), e.mul(e.mul(tableIndex(row, perHead), width), 4));
}

/// Writes chosen ids of the entries before as tokens of the row: through what was kept before.
void Kernel::recordTokens(const Row &row, const CacheState &state, Value ids, Value count) {
  Value width = field(row, offsetof(kvpc_call, tokens));
  const CacheState &before = states[state.before];
  if (before.tokens) {
    Value outer = idsOf(row, before.tokens, before.tokensPerHead, width);
    Value out = idsOf(row, state.tokens, state.tokensPerHead, width);
    e.call("kvpc_prim_compose_sets", {outer, ids, count, out});
  }
  Value address = e.at(slotPtr(row, state.counts), e.mul(tableIndex(row, state.tokensPerHead), 8));
  e.storeScalar(count, address);
}

/// Where a selection writes its ids: in the table itself unless they are numbers of survivors.
Value Kernel::selectionTarget(const Row &row, const CacheState &state, Value scratch) {
  if (states[state.before].tokens)
    return scratch;
  return idsOf(row, state.tokens, state.tokensPerHead, field(row, offsetof(kvpc_call, tokens)));
}

/// First element of a score, condition or protection of this row (and head).
Value Kernel::scoreBase(const Row &row, Value buffer) {
  if (!buffer)
    return LLVM::ZeroOp::create(e, e.ptr());
  return elementBase(row, buffer);
}

/// One choice for all heads of a row: lengths and floors of the heads, then the primitive.
void Kernel::selectJointly(const Row &row, kvplan::SelectOp op) {
  const CacheState state = states[op.getResult()];
  bool throughIndex = states[state.before].tokens;
  std::string work = body([&](const Row &outer, Value number) {
    Row task = taskRow(outer, number, kvplan::Space::Batch, number);
    Value heads = field(task, offsetof(kvpc_call, heads));
    Value width = field(task, offsetof(kvpc_call, tokens));
    Value scratch =
        e.at(slotPtr(task, scratchSlot), e.mul(e.mul(number, heads), slotI64(task, scratchStride)));
    auto take = [&](Value bytes) {
      Value out = scratch;
      scratch = e.at(scratch, e.roundUp(bytes, 64));
      return out;
    };
    Value lengths = take(e.mul(heads, 8)), floors = take(e.mul(heads, 8));
    auto eachHead = [&](ValueRange init,
                        function_ref<SmallVector<Value>(const Row &, Value, ValueRange)> one) {
      return e.loop(e.constant(0), heads, 1, init, [&](Value head, ValueRange carried) {
        Row own = task;
        own.head = head;
        return one(own, e.mul(head, 8), carried);
      });
    };
    Value budget = eachHead(e.constant(0), [&](const Row &own, Value at, ValueRange sum) {
      Value kept = keptOf(own, op);
      e.storeScalar(length(own, op.getCache()), e.at(lengths, at));
      e.storeScalar(floorOf(own, op, kept), e.at(floors, at));
      return SmallVector<Value>{e.add(sum[0], kept)};
    })[0];
    Value counts = e.at(slotPtr(task, state.counts), e.mul(tableIndex(task, true), 8));
    Value ids = idsOf(task, state.tokens, true, width);
    if (throughIndex) {
      counts = take(e.mul(heads, 8));
      ids = take(e.mul(e.mul(heads, width), 4));
    }
    auto strideOf = [&](Value buffer) {
      if (!buffer || !cast<kvplan::BufferType>(buffer.getType()).getTensor().hasAxis("head"))
        return e.constant(0);
      return e.div(slotI64(task, buffers[buffer].stride), e.constant(bytesOf(storageOf(buffer))));
    };
    e.call("kvpc_prim_select_joint", e.i64(),
           {scoreBase(task, op.getScore()), strideOf(op.getScore()),
            scoreBase(task, op.getProtect()), strideOf(op.getProtect()), heads, lengths, width,
            budget, floors, ids, width, counts, scratch});
    if (throughIndex)
      eachHead({}, [&](const Row &own, Value at, ValueRange) {
        Value mine = e.at(ids, e.mul(e.mul(own.head, width), 4));
        recordTokens(own, state, mine, e.loadI64(e.at(counts, at), 0));
        return SmallVector<Value>{};
      });
  });
  onLeader(row, op.getLeader(), [&] { launch(row, work, taskCount(row, kvplan::Space::Batch)); });
}

void Kernel::select(const Row &row, kvplan::SelectOp op) {
  if (op.getJoint())
    return selectJointly(row, op);
  const CacheState state = states[op.getResult()];
  auto tensor = op.getScore().getType().getTensor();
  bool byChannel = tensor.hasAxis("channel");
  bool perHead = byChannel ? state.channelsPerHead : state.tokensPerHead;
  auto space = perHead ? kvplan::Space::Head : kvplan::Space::Batch;
  std::string work = body([&](const Row &outer, Value number) {
    Row task = taskRow(outer, number, space, number);
    // Scratch of a task: the selection's own, then ids of survivors, then parts.
    Value scratch = e.at(slotPtr(task, scratchSlot), e.mul(number, slotI64(task, scratchStride)));
    Value width =
        e.max(field(task, offsetof(kvpc_call, tokens)), field(task, offsetof(kvpc_call, channels)));
    Value ids = e.at(scratch, e.roundUp(e.call("kvpc_prim_select_scratch", e.i64(), width), 64));
    Value parts = e.at(ids, e.roundUp(e.mul(width, 4), 64));
    Value k = keptOf(task, op);
    Value score = scoreBase(task, op.getScore()), protect = scoreBase(task, op.getProtect());
    Value null = LLVM::ZeroOp::create(e, e.ptr());
    auto choose = [&](Value n, Value out) {
      return e.call("kvpc_prim_select", e.i64(), {score, protect, null, n, k, out, scratch});
    };
    if (byChannel) {
      const CacheState &before = states[state.before];
      Value table = field(task, offsetof(kvpc_call, channels));
      Value out = idsOf(task, state.channels, state.channelsPerHead, table);
      Value count = choose(channels(task, op.getCache()), before.channels ? ids : out);
      if (before.channels)
        e.call("kvpc_prim_compose_sets",
               {idsOf(task, before.channels, before.channelsPerHead, table), ids, count, out});
      return;
    }
    Value target = selectionTarget(task, state, ids);
    Value n = length(task, op.getCache());
    if (!op.getPartSize()) {
      recordTokens(task, state, target, choose(n, target));
      return;
    }
    Value chosen = choose(extent(task, kvplan::writtenTo(op.getScore()), "part"), parts);
    Value from = op.getPartFrom() ? host(task, op.getPartFrom()) : e.constant(0);
    Value to = op.getPartTo() ? host(task, op.getPartTo()) : n;
    Value count = e.call("kvpc_prim_parts_to_tokens", e.i64(),
                         {parts, chosen, e.constant(*op.getPartSize()), from, to, n, target});
    recordTokens(task, state, target, count);
  });
  onLeader(row, op.getLeader(), [&] { launch(row, work, taskCount(row, space)); });
}

void Kernel::filter(const Row &row, kvplan::FilterOp op) {
  const CacheState state = states[op.getResult()];
  auto space = state.tokensPerHead ? kvplan::Space::Head : kvplan::Space::Batch;
  std::string work = body([&](const Row &outer, Value number) {
    Row task = taskRow(outer, number, space, number);
    Value scratch = e.at(slotPtr(task, scratchSlot), e.mul(number, slotI64(task, scratchStride)));
    Value target = selectionTarget(task, state, scratch);
    Value count = e.call("kvpc_prim_mask_select", e.i64(),
                         {scoreBase(task, op.getCondition()), length(task, op.getCache()), target});
    recordTokens(task, state, target, count);
  });
  onLeader(row, op.getLeader(), [&] { launch(row, work, taskCount(row, space)); });
}

//===------------------------------------------------------------------------------------------===//
// Results
//===------------------------------------------------------------------------------------------===//

void Kernel::scores(const Row &row, kvplan::ScoresOp op) {
  auto tensor = op.getScore().getType().getTensor();
  bool perHead = tensor.hasAxis("head");
  auto space = perHead ? kvplan::Space::Head : kvplan::Space::Batch;
  StringRef axis = tensor.getAxes().back().getName();
  std::string work = body([&](const Row &outer, Value number) {
    Row task = taskRow(outer, number, space, number);
    Value n = bufferExtent(task, op.getScore(), axis, false);
    auto copy = [&](Value buffer, int64_t tensorOffset, int64_t bytes) {
      auto stride = [&](unsigned i) {
        return field(task, tensorOffset + offsetof(kvpc_tensor, stride) + 8 * i);
      };
      unsigned last = perHead ? 2 : 1;
      Value offset = e.mul(task.batch, stride(0));
      if (perHead)
        offset = e.add(offset, e.mul(task.head, stride(1)));
      if (axis == "token")
        offset = e.add(offset, e.mul(perRow(task, offsetof(kvpc_call, start)), stride(last)));
      Value out = e.at(fieldPtr(task, tensorOffset), e.mul(offset, bytes));
      Value from = buffer ? elementBase(task, buffer) : Value();
      e.loop(e.constant(0), n, 1, [&](Value i) {
        Type raw = bytes == 4 ? e.f32() : Type(e.getI8Type());
        Value x = from ? e.loadScalar(raw, e.at(from, e.mul(i, bytes)))
                       : arith::ConstantOp::create(e, e.getI8IntegerAttr(0)).getResult();
        e.storeScalar(x, e.at(out, e.mul(e.mul(i, stride(last)), bytes)));
      });
    };
    copy(op.getScore(), offsetof(kvpc_call, out_scores), 4);
    e.when(
        e.isNull(fieldPtr(task, offsetof(kvpc_call, out_protected))), [] {},
        [&] { copy(op.getProtect(), offsetof(kvpc_call, out_protected), 1); });
  });
  launch(row, work, taskCount(row, space));
}

void Kernel::compact(const Row &row, kvplan::CompactOp op) {
  const CacheState state = states[op.getCache()];
  std::string work = body([&](const Row &outer, Value number) {
    Row task = taskRow(outer, number, kvplan::Space::Head, number);
    Value start = perRow(task, offsetof(kvpc_call, start));
    Value width = field(task, offsetof(kvpc_call, tokens));
    Value count = length(task, op.getCache()), total = field(task, offsetof(kvpc_call, kept));
    Value null = LLVM::ZeroOp::create(e, e.ptr());
    Value ids = state.tokens ? idsOf(task, state.tokens, state.tokensPerHead, width) : null;
    Value channelIds = state.channels ? idsOf(task, state.channels, state.channelsPerHead,
                                              field(task, offsetof(kvpc_call, channels)))
                                      : null;
    int64_t bytes = bytesOf(inputStorage());
    auto gather = [&](int64_t from, int64_t to, bool thin, Value channels) {
      auto stride = [&](int64_t tensor, unsigned i) {
        return field(task, tensor + offsetof(kvpc_tensor, stride) + 8 * i);
      };
      auto base = [&](int64_t tensor) {
        Value offset =
            e.add(e.mul(task.batch, stride(tensor, 0)), e.mul(task.head, stride(tensor, 1)));
        if (tensor == from)
          offset = e.add(offset, e.mul(start, stride(tensor, 2)));
        return e.at(fieldPtr(task, tensor), e.mul(offset, bytes));
      };
      Value same = LLVM::ICmpOp::create(e, LLVM::ICmpPredicate::eq, fieldPtr(task, from),
                                        fieldPtr(task, to));
      Value src = base(from), dst = base(to);
      Value srcStride = e.mul(stride(from, 2), bytes), dstStride = e.mul(stride(to, 2), bytes);
      if (thin)
        e.call("kvpc_prim_gather_rows_channels", {src, srcStride, dst, dstStride, ids, count,
                                                  channelIds, channels, e.constant(bytes)});
      else if (state.tokens)
        e.call("kvpc_prim_gather_rows",
               {src, srcStride, dst, dstStride, ids, count, e.mul(channels, bytes),
                arith::ExtUIOp::create(
                    e, e.i64(), e.select(same, e.constantBool(false), e.constantBool(true)))});
      else // nothing went: all entries, unless they stay where they are
        e.when(
            LLVM::ICmpOp::create(e, LLVM::ICmpPredicate::eq, src, dst), [] {},
            [&] {
              Value scratch =
                  e.at(slotPtr(task, scratchSlot), e.mul(number, slotI64(task, scratchStride)));
              e.loop(e.constant(0), count, 1,
                     [&](Value i) { e.store(Storage::I32, i, e.at(scratch, e.mul(i, 4))); });
              e.call("kvpc_prim_gather_rows", {src, srcStride, dst, dstStride, scratch, count,
                                               e.mul(channels, bytes), e.constant(0)});
            });
      Value past = e.max(e.sub(total, count), e.constant(0));
      e.call("kvpc_prim_zero_rows",
             {e.at(dst, e.mul(count, dstStride)), dstStride, past, e.mul(channels, bytes)});
    };
    gather(offsetof(kvpc_call, keys), offsetof(kvpc_call, out_keys), bool(state.channels),
           channels(task, op.getCache()));
    gather(offsetof(kvpc_call, values), offsetof(kvpc_call, out_values), false,
           field(task, offsetof(kvpc_call, value_channels)));

    // Ids. Where all heads share one row of the output, the first head writes it.
    auto writesRow = [&](int64_t tensor) {
      Value shared = e.cmp(arith::CmpIPredicate::eq,
                           field(task, tensor + offsetof(kvpc_tensor, stride) + 8), e.constant(0));
      Value first = e.cmp(arith::CmpIPredicate::eq, task.head, e.constant(0));
      Value own = e.select(shared, first, e.constantBool(true));
      Value given = e.select(e.isNull(fieldPtr(task, tensor)), e.constantBool(false), own);
      return given;
    };
    auto rowOf = [&](int64_t tensor) {
      auto stride = [&](unsigned i) {
        return field(task, tensor + offsetof(kvpc_tensor, stride) + 8 * i);
      };
      Value offset = e.add(e.mul(task.batch, stride(0)), e.mul(task.head, stride(1)));
      return e.at(fieldPtr(task, tensor), e.mul(offset, 8));
    };
    e.when(writesRow(offsetof(kvpc_call, out_tokens)), [&] {
      e.call("kvpc_prim_tokens_out",
             {ids, count, start, rowOf(offsetof(kvpc_call, out_tokens)), total});
    });
    if (state.channels)
      e.when(writesRow(offsetof(kvpc_call, out_channels)), [&] {
        Value kept = channels(task, op.getCache());
        e.call("kvpc_prim_tokens_out",
               {channelIds, kept, e.constant(0), rowOf(offsetof(kvpc_call, out_channels)), kept});
      });
    e.when(writesRow(offsetof(kvpc_call, out_lengths)),
           [&] { e.storeScalar(count, rowOf(offsetof(kvpc_call, out_lengths))); });
  });
  launch(row, work, taskCount(row, kvplan::Space::Head));
}
