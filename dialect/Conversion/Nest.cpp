//===- Nest.cpp - buffers, and the loops that fill them ---------------------------------------===//
//
// A buffer's axes stand outermost first. `head` and the task choose the block of memory; inside it
// entries (token, part) have a fixed stride, sized by upper bounds, and what lies inside an entry
// is dense in the row's own extents.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "kvpc/abi.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

Storage Kernel::storageOf(Value buffer) {
  Type element = cast<kvplan::BufferType>(buffer.getType()).getTensor().getElementType();
  return element.isF32() ? Storage::F32 : element.isInteger(64) ? Storage::I64 : Storage::Byte;
}

bool Kernel::isPanel(Value buffer) {
  return llvm::any_of(buffer.getUsers(),
                      [&](Operation *op) { return isa<kvplan::PackOp, kvplan::PackFormOp>(op); });
}

/// A tensor that stands for an axis of a buffer: what is written to it, else a load of it, else
/// what it is made of.
Value Kernel::axesOf(Value buffer, StringRef axis) {
  if (Value written = kvplan::writtenTo(buffer))
    return written;
  for (Operation *user : buffer.getUsers())
    if (auto load = dyn_cast<kvplan::LoadOp>(user))
      return load.getResult();
  for (Operation *user : buffer.getUsers()) {
    if (auto pack = dyn_cast<kvplan::PackOp>(user))
      return pack.getRows();
    if (auto pack = dyn_cast<kvplan::PackFormOp>(user))
      return pack.getMatrix();
    if (auto statistics = dyn_cast<kvplan::StatisticsOp>(user))
      return axesOf(statistics.getBuffer(), axis);
    if (auto contract = dyn_cast<kvplan::ContractOp>(user); contract && !isPanel(buffer))
      return contract.getStream().getType().hasAxis(axis) ? contract.getStream()
                                                          : axesOf(contract.getPanels(), axis);
  }
  error(pipeline, "a buffer is never written");
  return {};
}

bool Kernel::isOfTasks(Value buffer) {
  kvplan::Scope scope = buffer.getDefiningOp<kvplan::BufferOp>().getScope();
  return scope == kvplan::Scope::Task || scope == kvplan::Scope::Rows ||
         scope == kvplan::Scope::Tile;
}

/// Queries of a block, as the loop that fills a buffer takes them.
static int64_t blockOf(Value buffer) {
  for (Operation *user : buffer.getUsers())
    if (auto rows = user->getParentOfType<kvplan::RowsOp>())
      return rows.getBlock();
  return 1;
}

Value Kernel::bufferExtent(const Row &row, Value buffer, StringRef axis, bool upper) {
  axis = kvplan::axisOf(buffer, axis);
  kvp::AxisAttr attr = cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxis(axis);
  StringRef base = axis.rtrim('\'');
  auto op = buffer.getDefiningOp<kvplan::BufferOp>();
  if (kvp::isAllQueries(attr) && kvplan::holdsBlock(op))
    return upper ? e.constant(blockOf(buffer)) : e.sub(row.blockEnd, row.block);
  if (base == "query" && attr.isStatic())
    return upper ? e.constant(attr.getExtent())
                 : e.min(e.constant(attr.getExtent()), perRow(row, offsetof(kvpc_call, length)));
  if (base == "group")
    return field(row, offsetof(kvpc_call, groups));
  if (base == "token")
    return e.ceilDiv(upper ? field(row, offsetof(kvpc_call, tokens))
                           : length(row, cacheOfState(attr.getState())),
                     everyOf(buffer));
  Value tensor = axesOf(buffer, axis);
  Value n = upper ? bound(row, tensor, axis) : extent(row, tensor, axis);
  return base == "part" ? e.ceilDiv(n, everyOf(buffer)) : n;
}

Value Kernel::everyOf(Value buffer) {
  return e.constant(buffer.getDefiningOp<kvplan::BufferOp>().getEvery().value_or(1));
}

Value Kernel::axisStride(const Row &row, Value buffer, unsigned i) {
  auto axes = cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes();
  auto op = buffer.getDefiningOp<kvplan::BufferOp>();
  if (axes[i].getName() == "head" && !isOfTasks(buffer))
    return e.div(slotI64(row, buffers[buffer].stride), e.constant(bytesOf(storageOf(buffer))));
  if (axes[i].getName() == "head")
    return e.constant(0);
  bool entry = kvplan::isEntryAxis(op, axes[i]), rows = false;
  Value stride = e.constant(1);
  for (unsigned j = i + 1; j < axes.size(); ++j) {
    if (kvplan::isEntryAxis(op, axes[j]))
      return e.mul(stride, e.mul(bufferExtent(row, buffer, axes[j].getName(), true),
                                 axisStride(row, buffer, j)));
    rows |= axes[j].getName() != "slot";
    if (!axes[j].isStatic() || axes[j].getExtent() != 1)
      stride = e.mul(stride, bufferExtent(row, buffer, axes[j].getName(), /*upper=*/entry));
  }
  if (!entry || !rows)
    return stride;
  // Rows on lanes start at whole vectors, unless they fill none.
  return e.select(e.less(stride, e.constant(16)), stride, e.roundUp(stride, 16));
}

/// Bytes of a buffer for one task, a multiple of 64.
Value Kernel::taskBytes(const Row &row, Value buffer) {
  auto axes = cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes();
  if (isPanel(buffer)) {
    Value rows = e.constant(1);
    Value width = e.max(field(row, offsetof(kvpc_call, channels)),
                        field(row, offsetof(kvpc_call, value_channels)));
    for (kvp::AxisAttr axis : axes)
      if (axis.getName() != "channel" && axis.getName() != "head") {
        Value count = bufferExtent(row, buffer, axis.getName(), true);
        if (axis.getName() == packedAlong(buffer))
          count = e.roundUp(count, panelRows());
        rows = e.mul(rows, count);
      }
    // f32, or two parts of bf16: 4 bytes an element.
    return e.mul(e.mul(e.roundUp(rows, panelRows()), width), 4);
  }
  Value count = e.constant(1);
  bool dense = true;
  for (unsigned i = 0; i < axes.size() && dense; ++i) {
    StringRef name = axes[i].getName();
    if (name == "head")
      continue;
    count = e.mul(count, bufferExtent(row, buffer, name, true));
    if (kvplan::isEntryAxis(buffer.getDefiningOp<kvplan::BufferOp>(), axes[i])) {
      if (kvplan::PassOp pass = kvplan::passOfTile(buffer))
        count = e.constant(pass.getTile());
      count = e.mul(count, axisStride(row, buffer, i));
      dense = false;
    }
  }
  return e.roundUp(e.mul(count, bytesOf(storageOf(buffer))), 64);
}

Value Kernel::bufferBase(const Row &row, Value buffer) {
  const BufferSlots &where = buffers[buffer];
  if (kvplan::passOfTile(buffer)) // as if the entries before the tile were there
    return remember({buffer.getAsOpaquePointer(), row.lane.getAsOpaquePointer(),
                     row.tile.getAsOpaquePointer(), "tile"},
                    [&] {
                      Value before = e.mul(e.mul(row.tile, entryStride(row, buffer)),
                                           bytesOf(storageOf(buffer)));
                      Value own = e.mul(row.lane, slotI64(row, where.stride));
                      return e.at(slotPtr(row, where.address), e.sub(own, before));
                    });
  Value task;
  if (isOfTasks(buffer)) {
    task = row.slot;
  } else {
    task = row.batch;
    if (cast<kvplan::BufferType>(buffer.getType()).getTensor().hasAxis("head"))
      task = e.mul(task, field(row, offsetof(kvpc_call, heads)));
  }
  return remember({buffer.getAsOpaquePointer(), task.getAsOpaquePointer(), "base"}, [&] {
    return e.at(slotPtr(row, where.address), e.mul(task, slotI64(row, where.stride)));
  });
}

Value Kernel::elementAddress(const Row &row, Value buffer, const Indices &at) {
  Value offset = e.constant(0);
  for (auto [i, axis] :
       llvm::enumerate(cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()))
    offset = e.add(offset, e.mul(blockIndex(row, buffer, axis, *at.find(axis.getName())).base,
                                 axisStride(row, buffer, i)));
  return e.at(bufferBase(row, buffer), e.mul(offset, bytesOf(storageOf(buffer))));
}

Indices Kernel::headIndex(const Row &row) {
  Indices at;
  if (row.head)
    at = at.with("head", Index{row.head, {}, false});
  return at;
}

/// Memory of the function that is being built.
Value Kernel::onStack(int64_t bytes) {
  OpBuilder::InsertionGuard guard(e);
  e.setInsertionPointToStart(&function.getBody().front());
  return LLVM::AllocaOp::create(e, e.ptr(), e.i64(), e.constant(bytes / 8), /*alignment=*/64);
}

void Kernel::forEach(ArrayRef<Range> ranges, StringRef lane, const Indices &at,
                     function_ref<void(const Indices &)> body) {
  std::function<void(size_t, const Indices &)> nest = [&](size_t depth, const Indices &here) {
    if (depth < ranges.size()) {
      const Range &r = ranges[depth];
      if (r.axis == lane)
        return nest(depth + 1, here);
      e.loop(r.from, r.to, 1,
             [&](Value i) { nest(depth + 1, here.with(r.axis, Index{i, {}, false})); });
      return;
    }
    if (lane.empty())
      return body(here);
    const Range &r = *llvm::find_if(ranges, [&](const Range &x) { return x.axis == lane; });
    Value rest = e.rem(e.sub(r.to, r.from), e.constant(e.lanes())), main = e.sub(r.to, rest);
    // All ranges begin at 0, a tile or a block.
    e.loop(r.from, main, e.lanes(),
           [&](Value i) { body(here.with(lane, Index{i, {}, true, /*aligned=*/true})); });
    if (r.extent && *r.extent % e.lanes() == 0)
      return;
    e.when(e.less(e.constant(0), rest), [&] {
      Indices tail = here.with(lane, Index{main, {}, true, /*aligned=*/true});
      tail.mask = e.lanesBelow(rest);
      body(tail);
    });
  };
  nest(0, at);
}

/// Ranges of a buffer's axes; `over` (if not empty) from `from` to `to`.
SmallVector<Kernel::Range> Kernel::bufferRanges(const Row &row, Value buffer, StringRef over,
                                                Value from, Value to) {
  SmallVector<Range> ranges;
  for (kvp::AxisAttr axis : cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()) {
    StringRef name = axis.getName();
    if (name == "head" && row.head)
      continue;
    if (name == over) {
      ranges.push_back({name.str(), from, to, std::nullopt});
      continue;
    }
    if (row.block && kvp::isAllQueries(axis)) {
      ranges.push_back({name.str(), row.block, row.blockEnd, std::nullopt});
      continue;
    }
    Value tensor = axesOf(buffer, name);
    ranges.push_back({name.str(), e.constant(0), bufferExtent(row, buffer, name, false),
                      tensor && name != "slot" ? staticExtent(tensor, name) : std::nullopt});
  }
  return ranges;
}

/// Whether a store in place changes nothing in the entries [from, to): a causal mask over entries
/// that all queries may see. Null where that is not known.
Value Kernel::leavesTile(const Row &row, kvplan::StoreOp op, Value to) {
  auto map = op.getValue().getDefiningOp<kvp::MapOp>();
  if (!map || map.getFn() != kvp::Fn::Where)
    return {};
  auto causal = map.getOperand(0).getDefiningOp<kvp::CausalOp>();
  auto load = map.getOperand(1).getDefiningOp<kvplan::LoadOp>();
  if (!causal || !load || load.getBuffer() != op.getBuffer() || states[causal.getCache()].selection)
    return {};
  Value first =
      e.sub(perRow(row, offsetof(kvpc_call, seen)), extent(row, causal.getResult(), "query"));
  if (row.block)
    first = e.add(first, row.block);
  return e.both(isCounted(row), e.cmp(arith::CmpIPredicate::sle, to, e.add(first, 1)));
}

void Kernel::store(const Row &row, kvplan::StoreOp op, StringRef over, Value from, Value to) {
  if (Value unchanged = over.empty() ? Value() : leavesTile(row, op, to)) {
    e.when(unchanged, [] {}, [&] { fill(row, op, over, from, to); });
    return;
  }
  fill(row, op, over, from, to);
}

void Kernel::fill(const Row &row, kvplan::StoreOp op, StringRef over, Value from, Value to) {
  Value buffer = op.getBuffer();
  SmallVector<Range> ranges = bufferRanges(row, buffer, over, from, to);
  SmallVector<StringRef> names =
      llvm::map_to_vector(ranges, [](const Range &r) -> StringRef { return r.axis; });
  // Vectors are written whole, so lanes run along the buffer's last axis or not at all; one of a
  // single element is none.
  while (names.size() > 1 && ranges[names.size() - 1].extent == 1)
    names.pop_back();
  StringRef lane = laneAxis(op.getValue(), names);
  if (!names.empty() && lane != names.back())
    lane = "";
  forEach(ranges, lane, headIndex(row), [&](const Indices &at) {
    Value v = value(row, op.getValue(), at);
    Value address = elementAddress(row, buffer, at);
    if (lane.empty())
      e.store(storageOf(buffer), v, address);
    else
      e.storeVector(storageOf(buffer), v, address, at.mask);
  });
}

//===------------------------------------------------------------------------------------------===//
// Accumulators
//===------------------------------------------------------------------------------------------===//

Kernel::Fold Kernel::foldOf(kvplan::Combine kind) {
  switch (kind) {
  case kvplan::Combine::Sum:
    return Kernel::Fold::Sum;
  case kvplan::Combine::Max:
    return Kernel::Fold::Max;
  case kvplan::Combine::Min:
    return Kernel::Fold::Min;
  case kvplan::Combine::Any:
    return Kernel::Fold::Any;
  case kvplan::Combine::All:
    return Kernel::Fold::All;
  }
  llvm_unreachable("combine");
}

/// Partial results of a segment: `[task in flight][segment][elements]`.
Value Kernel::partialBase(const Row &row, Value buffer, Value segment) {
  Value width = slotI64(row, buffers[buffer].stride);
  Value index = e.add(e.mul(row.slot, row.segments), segment);
  return e.at(slotPtr(row, buffers[buffer].partials), e.mul(index, width));
}

/// Elements of a buffer of one task, those between its rows included.
Value Kernel::elementCount(const Row &row, Value buffer) {
  for (auto [i, axis] :
       llvm::enumerate(cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()))
    if (axis.getName() != "head") {
      Value n = row.block && kvp::isAllQueries(axis)
                    ? e.sub(row.blockEnd, row.block)
                    : bufferExtent(row, buffer, axis.getName(), false);
      return e.mul(n, axisStride(row, buffer, i));
    }
  return e.constant(1);
}

/// Whether an element takes a reduction inside its entry.
static bool reducesInside(Value v) {
  Operation *op = v.getDefiningOp();
  return op &&
         (isa<kvp::ReduceOp, kvp::DotOp>(op) || llvm::any_of(op->getOperands(), reducesInside));
}

void Kernel::accumulate(const Row &row, kvplan::AccumulateOp op, StringRef over, Value segment,
                        Value from, Value to, Value first) {
  if (accumulateOuter(row, op, over, segment, from, to, first))
    return;
  TypedValue<kvplan::BufferType> buffer = op.getBuffer();
  Fold fold = foldOf(op.getKind());
  Type element = buffer.getType().getTensor().getElementType();
  SmallVector<Range> ranges = bufferRanges(row, buffer, "", {}, {});
  SmallVector<StringRef> names =
      llvm::map_to_vector(ranges, [](const Range &r) -> StringRef { return r.axis; });
  StringRef lane = names.empty() ? StringRef() : laneAxis(op.getValue(), names);
  if (!names.empty() && lane != names.back())
    lane = "";
  Value base = partialBase(row, buffer, segment);
  Storage storage = storageOf(buffer);
  auto addressOf = [&](const Indices &at) {
    Value offset = e.constant(0);
    for (auto [i, axis] : llvm::enumerate(buffer.getType().getTensor().getAxes()))
      for (const Range &r : ranges)
        if (r.axis == axis.getName())
          offset = e.add(offset,
                         e.mul(e.sub(at.find(r.axis)->base, r.from), axisStride(row, buffer, i)));
    return e.at(base, e.mul(offset, bytesOf(storage)));
  };
  auto elementAt = [&](const Indices &here) {
    Value v = value(row, op.getValue(), here);
    if (!op.getWhere())
      return v;
    Value inside = value(row, op.getWhere(), here);
    Type t = e.isVector(v) || e.isVector(inside) ? Type(e.vec(element)) : element;
    return e.select(inside, v, identity(fold, t));
  };
  // Lanes along the buffer: sums of neighbouring vectors stay in registers for the tile.
  if (!lane.empty()) {
    const Range &inner = ranges.back();
    auto block = [&](const Indices &at, Value base, int64_t vectors, Value mask) {
      Type vector = e.vec(element);
      auto here = [&](const Indices &outer, int64_t v) {
        Indices out = outer.with(lane, Index{e.add(base, v * e.lanes()), {}, true});
        out.mask = mask;
        return out;
      };
      SmallVector<Value> sums =
          e.loop(from, to, 1, SmallVector<Value>(vectors, identity(fold, vector)),
                 [&](Value entry, ValueRange carried) {
                   Indices own = at.with(over, Index{entry, {}, false});
                   SmallVector<Value> out;
                   for (int64_t v = 0; v < vectors; ++v)
                     out.push_back(foldPair(fold, carried[v], e.spread(elementAt(here(own, v)))));
                   return out;
                 });
      for (int64_t v = 0; v < vectors; ++v) {
        Value address = addressOf(here(at, v));
        Value before = e.choose(
            first, [&] { return identity(fold, vector); },
            [&] { return e.loadVector(storage, address, mask); });
        e.storeVector(storage, foldPair(fold, before, sums[v]), address, mask);
      }
    };
    forEach(ArrayRef(ranges).drop_back(), "", headIndex(row), [&](const Indices &at) {
      int64_t lanes = e.lanes(), vectors = 1;
      // What a whole entry is needed for, such as its norm, is computed once for all vectors.
      int64_t most = !inner.extent ? 1 : reducesInside(op.getValue()) ? 16 : 8;
      while (vectors < most && *inner.extent % (vectors * 2 * lanes) == 0)
        vectors *= 2;
      Value rest = e.rem(e.sub(inner.to, inner.from), e.constant(lanes * vectors));
      Value main = e.sub(inner.to, rest);
      e.loop(inner.from, main, lanes * vectors, [&](Value base) { block(at, base, vectors, {}); });
      if (!inner.extent || *inner.extent % (lanes * vectors) != 0)
        e.when(e.less(e.constant(0), rest), [&] { block(at, main, 1, e.lanesBelow(rest)); });
    });
    return;
  }
  forEach(ranges, lane, headIndex(row), [&](const Indices &at) {
    Range sweep{over.str(), from, to, std::nullopt};
    Value sum = reduceRanges(row, op.getValue(), sweep, fold, element, at, elementAt);
    Value address = addressOf(at);
    // The first tile of a segment starts from the identity, the others go on.
    Value before = e.choose(
        first, [&] { return identity(fold, sum.getType()); },
        [&] { return e.load(storage, address); });
    e.store(storage, foldPair(fold, before, sum), address);
  });
}

/// Folds the partial results of `segments` segments into the buffer.
void Kernel::combinePartials(const Row &row, kvplan::AccumulateOp op, StringRef over,
                             Value segments) {
  Value buffer = op.getBuffer();
  Fold fold = foldOf(op.getKind());
  Storage storage = storageOf(buffer);
  Type element = op.getBuffer().getType().getTensor().getElementType();
  Value count = elementCount(row, buffer);
  Value target = e.at(bufferBase(row, buffer), e.constant(0));
  if (row.head && op.getBuffer().getType().getTensor().hasAxis("head") && !isOfTasks(buffer))
    target = e.at(target, e.mul(row.head, slotI64(row, buffers[buffer].stride)));
  Value base = partialBase(row, buffer, e.constant(0));
  Value width = slotI64(row, buffers[buffer].stride);
  e.when(
      e.less(e.constant(0), segments),
      [&] {
        if (storage == Storage::F32) {
          StringRef tree = fold == Fold::Sum   ? "kvpc_prim_tree_add"
                           : fold == Fold::Max ? "kvpc_prim_tree_max"
                                               : "kvpc_prim_tree_min";
          e.call(tree, {base, segments, e.div(width, e.constant(4))});
          e.loop(e.constant(0), count, 1, [&](Value i) {
            Value bytes = e.mul(i, 4);
            e.store(storage, e.load(storage, e.at(base, bytes)), e.at(target, bytes));
          });
          mirrorOuter(row, op, over, target);
          return;
        }
        // Integers and conditions are exact: any order gives the same.
        e.loop(e.constant(0), count, 1, [&](Value i) {
          Value bytes = e.mul(i, bytesOf(storage));
          Value sum = e.loop(
              e.constant(0), segments, 1, identity(fold, element), [&](Value s, ValueRange acc) {
                Value from = e.at(e.at(base, e.mul(s, width)), bytes);
                return SmallVector<Value>{foldPair(fold, acc[0], e.load(storage, from))};
              })[0];
          e.store(storage, sum, e.at(target, bytes));
        });
      },
      [&] {
        e.loop(e.constant(0), count, 1, [&](Value i) {
          e.store(storage, identity(fold, element), e.at(target, e.mul(i, bytesOf(storage))));
        });
      });
}

//===------------------------------------------------------------------------------------------===//
// Contraction and softmax statistics
//===------------------------------------------------------------------------------------------===//

void Kernel::pack(const Row &row, kvplan::PackOp op) {
  if (op.getAlong())
    return packAlong(row, op);
  Value panels = elementBase(row, op.getBuffer());
  Value width = extent(row, op.getRows(), "channel");
  Value keyType = e.constant(variant.dtype), one = e.constant(1);
  Value null = LLVM::ZeroOp::create(e, e.ptr());
  if (auto input = op.getRows().getDefiningOp<kvp::InputOp>()) {
    const int64_t tensor = input.getInput() == kvp::Input::Queries
                               ? offsetof(kvpc_call, queries_rotated)
                               : offsetof(kvpc_call, queries_unrotated);
    auto stride = [&](unsigned i) {
      return field(row, tensor + offsetof(kvpc_tensor, stride) + 8 * i);
    };
    Value rows = extent(row, input.getResult(), "query");
    Value skip = e.sub(field(row, offsetof(kvpc_call, queries)), rows);
    if (row.block && kvp::isAllQueries(input.getResult().getType().getAxis("query"))) {
      skip = e.add(skip, row.block);
      rows = e.sub(row.blockEnd, row.block);
    }
    Value offset = e.add(e.add(e.mul(row.batch, stride(0)), e.mul(row.head, stride(1))),
                         e.mul(skip, stride(3)));
    Value q = e.at(fieldPtr(row, tensor), e.mul(offset, bytesOf(inputStorage())));
    const CacheState &state = states[input.getCache()];
    Value ids = null;
    if (state.channels) {
      Value table = row.batch;
      if (state.channelsPerHead)
        table = e.add(e.mul(table, field(row, offsetof(kvpc_call, heads))), row.head);
      ids = e.at(slotPtr(row, state.channels),
                 e.mul(e.mul(table, field(row, offsetof(kvpc_call, channels))), 4));
    }
    e.call("kvpc_prim_pack_rows",
           {q, keyType, stride(2), stride(3), one, field(row, offsetof(kvpc_call, groups)), rows,
            width, ids, e.constantF32(1), keyType, one, panels});
    return;
  }
  // Computed rows: f32, dense, in two parts where panels hold bf16.
  auto load = op.getRows().getDefiningOp<kvplan::LoadOp>();
  if (!load) {
    error(op, "packs an expression; it must be a host input or a buffer");
    return;
  }
  // Axes may stand on either side of the channels, where those beside them came later.
  auto axes = load.getBuffer().getType().getTensor().getAxes();
  Value count[2] = {e.constant(1), e.constant(1)}, stride[2] = {e.constant(0), one}, step = one;
  bool after = false;
  for (auto [i, axis] : llvm::enumerate(axes)) {
    if (axis.getName() == "head")
      continue;
    Value apart = axisStride(row, load.getBuffer(), i);
    if (axis.getName() == "channel") {
      after = true;
      step = apart;
      continue;
    }
    count[after] = e.mul(count[after], bufferExtent(row, load.getBuffer(), axis.getName(), false));
    stride[after] = apart;
  }
  e.call("kvpc_prim_pack_rows",
         {elementBase(row, load.getBuffer()), e.constant(KVPC_F32), stride[0], stride[1], step,
          count[0], count[1], width, null, e.constantF32(1), keyType, e.constant(2), panels});
}

/// Address of a buffer's first element for this task.
Value Kernel::elementBase(const Row &row, Value buffer) {
  Value base = bufferBase(row, buffer);
  if (row.head && !isOfTasks(buffer) &&
      cast<kvplan::BufferType>(buffer.getType()).getTensor().hasAxis("head"))
    base = e.at(base, e.mul(row.head, slotI64(row, buffers[buffer].stride)));
  return base;
}

/// Rows of a contraction's or softmax' buffer: all axes inside an entry.
Value Kernel::rowCount(const Row &row, Value buffer) {
  Value rows = e.constant(1);
  for (kvp::AxisAttr axis : cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes())
    if (axis.getName() != "head" &&
        !kvplan::isEntryAxis(buffer.getDefiningOp<kvplan::BufferOp>(), axis))
      rows = e.mul(rows, bufferExtent(row, buffer, axis.getName(), false));
  return rows;
}

/// Elements from one entry to the next.
Value Kernel::entryStride(const Row &row, Value buffer) {
  for (auto [i, axis] :
       llvm::enumerate(cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()))
    if (kvplan::isEntryAxis(buffer.getDefiningOp<kvplan::BufferOp>(), axis))
      return axisStride(row, buffer, i);
  llvm_unreachable("a wide buffer has entries");
}

Kernel::Stream Kernel::streamOf(const Row &row, kvp::InputOp input, Value from) {
  const CacheState &state = states[input.getCache()];
  const int64_t tensor = input.getInput() == kvp::Input::Keys ? offsetof(kvpc_call, keys)
                                                              : offsetof(kvpc_call, values);
  auto stride = [&](unsigned i) {
    return field(row, tensor + offsetof(kvpc_tensor, stride) + 8 * i);
  };
  Value offset = e.add(e.add(e.mul(row.batch, stride(0)), e.mul(row.head, stride(1))),
                       e.mul(perRow(row, offsetof(kvpc_call, start)), stride(2)));
  Value ids = LLVM::ZeroOp::create(e, e.ptr());
  if (state.tokens) {
    Value table = row.batch;
    if (state.tokensPerHead)
      table = e.add(e.mul(table, field(row, offsetof(kvpc_call, heads))), row.head);
    Value first = e.add(e.mul(table, field(row, offsetof(kvpc_call, tokens))), from);
    ids = e.at(slotPtr(row, state.tokens), e.mul(first, 4));
  } else {
    offset = e.add(offset, e.mul(from, stride(2)));
  }
  return {e.at(fieldPtr(row, tensor), e.mul(offset, bytesOf(inputStorage()))), stride(2), ids};
}

void Kernel::contract(const Row &row, kvplan::ContractOp op, Value from, Value to) {
  Stream stream = streamOf(row, op.getStream().getDefiningOp<kvp::InputOp>(), from);
  Value rows = rowCount(row, op.getBuffer());
  Value step = entryStride(row, op.getBuffer());
  Value out = e.at(elementBase(row, op.getBuffer()), e.mul(e.mul(from, step), 4));
  Value scale = e.toFloat(host(row, op.getScale()));
  SmallVector<Value> args{stream.base,
                          stream.stride,
                          stream.ids,
                          e.sub(to, from),
                          extent(row, op.getStream(), "channel"),
                          elementBase(row, op.getPanels())};
  if (variant.dtype == KVPC_BF16)
    args.push_back(e.constant(packedParts(op.getPanels())));
  args.append({rows, scale, out, step});
  e.call(contraction(), args);
}

/// The microkernel for the keys' dtype.
StringRef Kernel::contraction() const {
  return variant.dtype == KVPC_F32    ? "kvpc_prim_contract_f32"
         : variant.dtype == KVPC_BF16 ? "kvpc_prim_contract_bf16"
                                      : "kvpc_prim_contract_f16";
}

int64_t Kernel::packedParts(Value panels) {
  for (Operation *user : panels.getUsers())
    if (auto pack = dyn_cast<kvplan::PackOp>(user))
      return pack.getRows().getDefiningOp<kvp::InputOp>() ? 1 : 2;
  return 1;
}

/// The axis along which rows fill panels of their own; empty: none does.
StringRef Kernel::packedAlong(Value panels) {
  for (Operation *user : panels.getUsers()) {
    if (auto pack = dyn_cast<kvplan::PackOp>(user))
      return pack.getAlong().value_or("");
    if (auto pack = dyn_cast<kvplan::PackFormOp>(user))
      return pack.getColumn();
  }
  return "";
}

void Kernel::statistics(const Row &row, kvplan::StatisticsOp op, Value segment, Value from,
                        Value to, Value first) {
  Value rows = rowCount(row, op.getBuffer()), step = entryStride(row, op.getBuffer());
  Value m = partialBase(row, op.getMaximum(), segment);
  Value z = partialBase(row, op.getInverse(), segment);
  e.when(first, [&] { e.call("kvpc_prim_softmax_begin", {m, z, rows}); });
  Value x = e.at(elementBase(row, op.getBuffer()), e.mul(e.mul(from, step), 4));
  if (Value factors = op.getFactors()) {
    Value kept = op.getReferences() ? Value(op.getReferences()) : factors;
    Value reference = tileFactors(row, kept, e.div(from, everyOf(kept)));
    e.call("kvpc_prim_softmax_tile_store", {x, e.sub(to, from), step, rows, m, z, reference});
    return;
  }
  e.call("kvpc_prim_softmax_tile", {x, e.sub(to, from), step, rows, m, z});
}

void Kernel::exponents(const Row &row, kvplan::ExponentsOp op, Value from, Value to) {
  Value rows = rowCount(row, op.getBuffer()), step = entryStride(row, op.getBuffer());
  Value x = e.at(elementBase(row, op.getBuffer()), e.mul(e.mul(from, step), 4));
  Value tile = e.div(from, everyOf(op.getReferences()));
  e.call("kvpc_prim_softmax_exponents",
         {x, e.sub(to, from), step, rows, tileFactors(row, op.getReferences(), tile)});
}

/// Factors of a tile's rows.
Value Kernel::tileFactors(const Row &row, Value factors, Value tile) {
  return e.at(elementBase(row, factors), e.mul(e.mul(tile, entryStride(row, factors)), 4));
}

void Kernel::combineStatistics(const Row &row, kvplan::StatisticsOp op, Value segments,
                               Value entries) {
  Value rows = rowCount(row, op.getBuffer());
  Value m = partialBase(row, op.getMaximum(), e.constant(0));
  Value z = partialBase(row, op.getInverse(), e.constant(0));
  Value width = e.div(slotI64(row, buffers[op.getMaximum()].stride), e.constant(4));
  e.when(e.less(segments, e.constant(1)), [&] { e.call("kvpc_prim_softmax_begin", {m, z, rows}); });
  e.call("kvpc_prim_tree_softmax", {m, z, segments, width});
  if (Value factors = op.getFactors())
    e.loop(e.constant(0), e.ceilDiv(entries, everyOf(factors)), 1, [&](Value tile) {
      Value w = tileFactors(row, factors, tile);
      Value reference = op.getReferences() ? tileFactors(row, op.getReferences(), tile) : w;
      e.call("kvpc_prim_softmax_factors", {reference, m, z, rows, w});
    });
  Value maximum = elementBase(row, op.getMaximum()), inverse = elementBase(row, op.getInverse());
  e.loop(e.constant(0), rows, 1, [&](Value i) {
    Value bytes = e.mul(i, 4), zero = e.constantF32(0);
    Value sum = e.load(Storage::F32, e.at(z, bytes));
    Value none = arith::CmpFOp::create(e, arith::CmpFPredicate::OEQ, sum, zero);
    Value reciprocal = arith::DivFOp::create(e, e.constantF32(1), sum);
    e.store(Storage::F32, e.select(none, zero, reciprocal), e.at(inverse, bytes));
    e.store(Storage::F32, e.load(Storage::F32, e.at(m, bytes)), e.at(maximum, bytes));
  });
}
