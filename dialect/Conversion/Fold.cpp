//===- Fold.cpp - reductions over the rows of a contraction, block by block -------------------===//
//
// A block is what the contraction of a tile's entries with some rows gives. It lies on the stack of
// the thread that makes it, and is used up before the next one is made: what is reduced over many
// rows needs no memory for them. Blocks have the same rows on every machine, so that sums are taken
// in the same order.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/Conversion/Kernel.h"

#include "kvpc/abi.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::codegen;

/// Rows of a block, whole panels: with the 128 entries of a tile 64 KiB, which the second level of
/// cache holds beside the panels.
static constexpr int64_t kBlockRows = 128;

/// The axes of rows that are neither folded nor contracted, each from 0 to its extent.
SmallVector<Kernel::Range> Kernel::rowsBeside(const Row &row, Value tensor, StringRef along) {
  SmallVector<Range> ranges;
  for (kvp::AxisAttr axis : cast<kvp::NamedTensorType>(tensor.getType()).getAxes()) {
    StringRef name = axis.getName();
    if (name != "head" && name != "channel" && name != along)
      ranges.push_back({name.str(), e.constant(0), extent(row, tensor, name), std::nullopt});
  }
  return ranges;
}

/// Panels of the rows along the packed axis, of one element of the others.
Value Kernel::panelsOf(const Row &row, Value panels, Value width, Value rows,
                       ArrayRef<Range> beside, const Indices &at) {
  Value bytes = e.call("kvpc_prim_panel_bytes", e.i64(),
                       {e.constant(variant.dtype), width, e.constant(packedParts(panels))});
  Value number = e.constant(0);
  for (const Range &r : beside)
    number = e.add(e.mul(number, r.to), at.find(r.axis)->base);
  Value each = e.mul(e.ceilDiv(rows, e.constant(panelRows())), bytes);
  return e.at(elementBase(row, panels), e.mul(number, each));
}

void Kernel::packAlong(const Row &row, kvplan::PackOp op) {
  StringRef along = *op.getAlong();
  Value tensor = op.getRows();
  Value rows = extent(row, tensor, along), width = extent(row, tensor, "channel");
  Value base, dtype = e.constant(KVPC_F32);
  std::map<std::string, Value> strides;
  Storage storage = Storage::F32;
  if (auto input = tensor.getDefiningOp<kvp::InputOp>()) {
    // Not the batch, which has one weight.
    const int64_t at = offsetof(kvpc_call, output_weight);
    StringRef names[] = {"head", "group", "channel", "feature"};
    for (auto [i, axis] : llvm::enumerate(names))
      strides[axis.str()] = field(row, at + offsetof(kvpc_tensor, stride) + 8 * i);
    storage = inputStorage();
    dtype = e.constant(variant.dtype);
    base = e.at(fieldPtr(row, at), e.mul(e.mul(row.head, strides["head"]), bytesOf(storage)));
  } else {
    Value buffer = tensor.getDefiningOp<kvplan::LoadOp>().getBuffer();
    for (auto [i, axis] :
         llvm::enumerate(cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes()))
      strides[axis.getName().str()] = axisStride(row, buffer, i);
    base = elementBase(row, buffer);
  }
  SmallVector<Range> beside = rowsBeside(row, tensor, along);
  Value null = LLVM::ZeroOp::create(e, e.ptr()), none = e.constant(0), one = e.constant(1);
  forEach(beside, "", headIndex(row), [&](const Indices &at) {
    Value offset = none;
    for (const Range &r : beside)
      offset = e.add(offset, e.mul(at.find(r.axis)->base, strides[r.axis]));
    e.call("kvpc_prim_pack_rows",
           {e.at(base, e.mul(offset, bytesOf(storage))), dtype, none, strides[along.str()],
            strides["channel"], one, rows, width, null, e.constantF32(1), e.constant(variant.dtype),
            e.constant(packedParts(op.getBuffer())),
            panelsOf(row, op.getBuffer(), width, rows, beside, at)});
  });
}

/// Parts of bf16 in which the matrices of forms are packed.
static constexpr int64_t kFormParts = 2;

/// One matrix after the other, those of the task's head.
void Kernel::packForm(const Row &row, kvplan::PackFormOp op) {
  Value matrix = op.getMatrix().getDefiningOp<kvplan::LoadOp>().getBuffer();
  Value width = extent(row, op.getMatrix(), op.getRow());
  std::map<std::string, Value> strides;
  for (auto [i, axis] :
       llvm::enumerate(cast<kvplan::BufferType>(matrix.getType()).getTensor().getAxes()))
    strides[axis.getName().str()] = axisStride(row, matrix, i);
  SmallVector<Range> beside;
  for (kvp::AxisAttr axis : op.getMatrix().getType().getAxes())
    if (StringRef name = axis.getName();
        name != "head" && name != op.getRow() && name != op.getColumn())
      beside.push_back({name.str(), e.constant(0), extent(row, op.getMatrix(), name), {}});
  Value dtype = e.constant(variant.dtype), parts = e.constant(kFormParts);
  Value bytes = e.call("kvpc_prim_form_bytes", e.i64(), {dtype, width, parts});
  forEach(beside, "", headIndex(row), [&](const Indices &at) {
    Value offset = e.constant(0), number = e.constant(0);
    for (const Range &r : beside) {
      offset = e.add(offset, e.mul(at.find(r.axis)->base, strides[r.axis]));
      number = e.add(e.mul(number, r.to), at.find(r.axis)->base);
    }
    e.call("kvpc_prim_pack_form",
           {e.at(elementBase(row, matrix), e.mul(offset, 4)), strides[op.getRow().str()],
            strides[op.getColumn().str()], width, dtype, parts,
            e.at(elementBase(row, op.getBuffer()), e.mul(number, bytes))});
  });
}

void Kernel::form(const Row &row, kvplan::FormOp op, Value from, Value to) {
  Stream stream = streamOf(row, op.getStream().getDefiningOp<kvp::InputOp>(), from);
  Value step = entryStride(row, op.getBuffer());
  SmallVector<Value> args{stream.base,
                          stream.stride,
                          stream.ids,
                          e.sub(to, from),
                          extent(row, op.getStream(), "channel"),
                          elementBase(row, op.getPanels())};
  if (variant.dtype == KVPC_BF16)
    args.push_back(e.constant(kFormParts));
  args.append({rowCount(row, op.getBuffer()),
               e.at(elementBase(row, op.getBuffer()), e.mul(e.mul(from, step), 4)), step});
  e.call(variant.dtype == KVPC_F32    ? "kvpc_prim_form_f32"
         : variant.dtype == KVPC_BF16 ? "kvpc_prim_form_bf16"
                                      : "kvpc_prim_form_f16",
         args);
}

void Kernel::fold(const Row &row, kvplan::FoldOp op, StringRef over, Value from, Value to) {
  Value buffer = op.getBuffer(), block = op.getBlock();
  StringRef along = op.getOver();
  Fold kind = foldOf(op.getKind());
  Type element = op.getBuffer().getType().getTensor().getElementType();
  auto input = op.getStream().getDefiningOp<kvp::InputOp>();
  Stream stream = streamOf(row, input, from);
  Value width = extent(row, op.getStream(), "channel");
  Value rows = bufferExtent(row, op.getPanels(), along, /*upper=*/false);
  Value memory = onStack(128 * kBlockRows * bytesOf(Storage::F32));
  SmallVector<Range> beside;
  for (kvp::AxisAttr axis : op.getPanels().getType().getTensor().getAxes()) {
    StringRef name = axis.getName();
    if (name != "head" && name != "channel" && name != along)
      beside.push_back({name.str(), e.constant(0), bufferExtent(row, op.getPanels(), name, false),
                        std::nullopt});
  }
  Value panelBytes =
      e.call("kvpc_prim_panel_bytes", e.i64(),
             {e.constant(variant.dtype), width, e.constant(packedParts(op.getPanels()))});
  Value blockBytes = e.mul(panelBytes, kBlockRows / panelRows());
  auto elementAt = [&](const Indices &here) {
    Value v = value(row, op.getValue(), here);
    if (!op.getWhere())
      return v;
    Value inside = value(row, op.getWhere(), here);
    Type t = e.isVector(v) || e.isVector(inside) ? Type(e.vec(element)) : element;
    return e.select(inside, v, identity(kind, t));
  };
  forEach(beside, "", headIndex(row), [&](const Indices &at) {
    Value panels = panelsOf(row, op.getPanels(), width, rows, beside, at);
    auto addressOf = [&](Value entry) {
      return elementAddress(row, buffer, at.with(over, Index{entry, {}, false}));
    };
    e.loop(from, to, 1, [&](Value entry) {
      e.store(storageOf(buffer), identity(kind, element), addressOf(entry));
    });
    e.loop(e.constant(0), rows, kBlockRows, [&](Value first) {
      Value end = e.min(e.add(first, kBlockRows), rows);
      Value panel = e.at(panels, e.mul(e.div(first, e.constant(kBlockRows)), blockBytes));
      SmallVector<Value> args{stream.base,     stream.stride, stream.ids,
                              e.sub(to, from), width,         panel};
      if (variant.dtype == KVPC_BF16)
        args.push_back(e.constant(packedParts(op.getPanels())));
      args.append({e.sub(end, first), e.constantF32(1), memory, e.constant(kBlockRows)});
      e.call(contraction(), args);
      blocks[block] = {memory, from, first};
      e.loop(from, to, 1, [&](Value entry) {
        Range range{along.str(), first, end, std::nullopt};
        Value sum = reduceRanges(row, op.getValue(), range, kind, element,
                                 at.with(over, Index{entry, {}, false}), elementAt);
        Value address = addressOf(entry);
        e.store(storageOf(buffer), foldPair(kind, e.load(storageOf(buffer), address), sum),
                address);
      });
      blocks.erase(block);
    });
  });
}

/// An element of the block that is being used up.
Value Kernel::loadBlock(Value buffer, const Indices &at) {
  auto axes = cast<kvplan::BufferType>(buffer.getType()).getTensor().getAxes();
  const BlockPlace &block = blocks[buffer];
  auto from = [&](Index index, Value first) {
    if (index.base)
      index.base = e.sub(index.base, first);
    if (index.vector)
      index.vector = e.sub(index.vector, e.spread(first));
    return index;
  };
  SmallVector<std::pair<Index, Value>> terms;
  for (kvp::AxisAttr axis : axes) {
    StringRef name = axis.getName();
    if (name == axes.back().getName())
      terms.push_back({from(*at.find(name), block.row), e.constant(1)});
    else if (name.rtrim('\'') == "token")
      terms.push_back({from(*at.find(name), block.entry), e.constant(kBlockRows)});
  }
  return loadFrom(Storage::F32, block.base, terms, at.mask);
}
