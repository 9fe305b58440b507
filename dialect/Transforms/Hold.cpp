//===- Hold.cpp - which values are held in buffers --------------------------------------------===//
#include "dialect/Transforms/Cut.h"

#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace kvpc;
using namespace kvpc::cut;
using kvp::AxisAttr;
using kvp::NamedTensorType;
using kvp::tensorOf;

AxisAttr kvpc::cut::entryAxis(NamedTensorType type) {
  AxisAttr found;
  for (AxisAttr axis : type.getAxes())
    if (kvp::isEntryAxis(axis) && (!found || axis.getName() == "part" || kvp::isAllQueries(found)))
      found = axis;
  return found;
}

/// An axis that is as long as the model is wide: with entries beside it a value is never held.
constexpr StringRef kUnbounded = "feature";

static bool isUnbounded(NamedTensorType type) {
  return type && type.hasAxis(kUnbounded) && entryAxis(type);
}

int64_t Root::tile() const { return key.over && key.over.getName() == "part" ? 16 : 128; }

/// Few segments for what has a matrix of sums in each of them.
int64_t Root::segment() const {
  if (kind == Accumulate) {
    Value product = value.getDefiningOp()->getOperand(0);
    if (kvplan::outerOf(product, key.over.getName()))
      return 64;
  }
  return 4;
}

SmallVector<Value> Root::operands() const {
  switch (kind) {
  case Contract:
    return {stream, rows, scale};
  case Form:
    return {stream, rows};
  case Fold: // the contraction is made of what it is computed from
    break;
  case Pack:
    return {rows};
  default:
    break;
  }
  Operation *op = selection ? selection : value.getDefiningOp();
  if (kind == Store)
    return {value};
  return SmallVector<Value>(op->getOperands());
}

SmallVector<Value> Root::reads() const {
  Operation *op = kind == Store ? value.getDefiningOp() : nullptr;
  return op ? SmallVector<Value>(op->getOperands()) : operands();
}

/// Whether evaluating `v` at one point takes more than a few operations.
bool Program::expensive(Value v) {
  if (!tensorOf(v) || rootOf.contains(v))
    return false;
  if (auto it = dear.find(v); it != dear.end())
    return it->second;
  Operation *op = v.getDefiningOp();
  bool result = false;
  if (op) {
    result = isa<kvp::ReduceOp, kvp::DotOp, kvp::AvgPoolOp, kvp::MaxPoolOp, kvp::UniformOp,
                 kvp::RotaryOp>(op) ||
             llvm::any_of(op->getOperands(), [&](Value o) { return expensive(o); });
    // A few heads of a held value are cheap to add again.
    if (auto reduce = dyn_cast<kvp::ReduceOp>(op); reduce && entryAxis(tensorOf(v)) == AxisAttr())
      result = true;
  }
  return dear[v] = result;
}

/// Whether an operation reads its operand at other entries, or channels, than its own.
static bool readsNeighbours(Operation *op, Value operand) {
  if (isa<kvp::AvgPoolOp, kvp::MaxPoolOp, kvp::ShiftOp, kvp::PairOp>(op))
    return operand == op->getOperand(0);
  if (auto at = dyn_cast<kvp::AtOp>(op))
    return operand == at.getInput();
  return isa<kvp::JoinOp>(op) && operand == op->getOperand(0);
}

SmallVector<StringRef> kvpc::cut::takenTogether(Operation *op) {
  SmallVector<StringRef> over;
  if (auto rank = dyn_cast<kvp::RankOp>(op))
    over = kvp::axisNames(rank.getOver());
  else if (auto sort = dyn_cast<kvp::SortOp>(op))
    over = {sort.getAxis()};
  if (over.size() == 1 && over.front() != "head")
    over.clear();
  return over;
}

/// The axis that an operation puts in order or runs along as a whole; empty for others, and for
/// axes that are copied together.
static StringRef wholeRow(Operation *op) {
  if (!takenTogether(op).empty())
    return "";
  if (auto rank = dyn_cast<kvp::RankOp>(op))
    return kvp::axisNames(rank.getOver()).front();
  if (auto sort = dyn_cast<kvp::SortOp>(op))
    return sort.getAxis();
  if (auto cumsum = dyn_cast<kvp::CumsumOp>(op))
    return kvp::isEntryAxis(cumsum.getInput().getType().getAxis(cumsum.getAxis()))
               ? cumsum.getAxis()
               : "";
  return "";
}

static bool isWholeRow(Operation *op) {
  return isa<kvp::RankOp, kvp::SortOp>(op) || !wholeRow(op).empty();
}

/// The axis along which users of a value take it whole.
static StringRef takenWhole(Value v) {
  for (Operation *user : v.getUsers())
    if (StringRef axis = wholeRow(user); !axis.empty())
      return axis;
  return "";
}

/// Leaves of expressions: read or computed from indices where they are used.
static bool isView(Operation *op) {
  return !op || isa<kvp::InputOp, kvp::PositionOp, kvp::IndexOp, kvp::IotaOp, kvp::RenameOp,
                    kvp::PartitionOp, kvp::JoinOp>(op);
}

/// Whether heads meet here.
static bool crossesHeads(Operation &op) {
  if (auto reduce = dyn_cast<kvp::ReduceOp>(op))
    return llvm::is_contained(kvp::axisNames(reduce.getOver()), "head");
  if (auto rank = dyn_cast<kvp::RankOp>(op))
    return llvm::is_contained(kvp::axisNames(rank.getOver()), "head");
  if (auto dot = dyn_cast<kvp::DotOp>(op))
    return dot.getOver() == "head";
  auto axis = op.getAttrOfType<StringAttr>("axis");
  return axis && axis.getValue() == "head";
}

bool Program::mustHold(Value v) {
  NamedTensorType type = tensorOf(v);
  bool heavy = expensive(v) && (stored || !isUnbounded(type));
  if (leavesRows.contains(v) || shared.contains(v))
    return true;
  unsigned users = 0;
  for (Operation *user : llvm::SmallPtrSet<Operation *, 4>(v.user_begin(), v.user_end())) {
    ++users;
    if (isa<kvp::TopkOp, kvp::MaskOp, kvp::ReturnOp>(user) || isWholeRow(user))
      return true;
    if (auto softmax = dyn_cast<kvp::SoftmaxOp>(user))
      return true;
    if (crossesHeads(*user) && type.hasAxis("head") && ownOfHeads(v))
      return true;
    // Arithmetic on small values stands once before a sweep, not in each of its entries.
    if (isa_and_nonnull<kvp::MapOp>(v.getDefiningOp()) && !type.getAxes().empty() &&
        !entryAxis(type) && user->getNumResults() == 1)
      if (NamedTensorType swept = tensorOf(user->getResult(0)); swept && entryAxis(swept))
        return true;
    if (!heavy)
      continue;
    if (readsNeighbours(user, v))
      return true;
    if (auto reduce = dyn_cast<kvp::ReduceOp>(user))
      for (StringRef axis : kvp::axisNames(reduce.getOver()))
        if (axis == "head")
          return true;
    // Another axis beside v's own: v would be computed again for each of its elements.
    for (Value result : user->getResults())
      if (NamedTensorType wide = tensorOf(result))
        for (AxisAttr axis : wide.getAxes()) {
          bool renamed = isa<kvp::RenameOp, kvp::PartitionOp, kvp::SortOp>(user);
          if (!renamed && !type.hasAxis(axis.getName()))
            return true;
        }
    if (auto dot = dyn_cast<kvp::DotOp>(user)) {
      Value other = dot.getLhs() == v ? dot.getRhs() : dot.getLhs();
      for (AxisAttr axis : tensorOf(other).getAxes())
        if (!type.hasAxis(axis.getName()))
          return true;
    }
  }
  if (!isView(v.getDefiningOp()) && stored)
    return true;
  return heavy && (users > 1 || !entryAxis(type));
}

/// Whether heads chose the entries of this axis for themselves, perhaps in different numbers.
bool Program::isApart(AxisAttr axis) const {
  return kvp::isEntryAxis(axis) && apart.lookup(axis.getState());
}

/// Whether a value without axis `head` is another for each head: one over survivors that heads
/// chose apart, or that counts them.
bool Program::ownOfHeads(Value v) {
  if (auto it = own.find(v); it != own.end())
    return it->second;
  own[v] = false;
  bool result = false;
  if (auto type = dyn_cast<NamedTensorType>(v.getType()); type && !type.hasAxis("head"))
    result = llvm::any_of(type.getAxes(), [&](AxisAttr axis) { return isApart(axis); });
  if (Operation *op = v.getDefiningOp(); op && !isa<kvp::CacheType>(v.getType())) {
    if (auto dim = dyn_cast<kvp::DimOp>(op))
      result |=
          dim.getDim() == kvp::Dim::Length && apart.lookup(dim.getCache().getType().getState());
    else if (auto extent = dyn_cast<kvp::ExtentOp>(op))
      result |= isApart(tensorOf(extent.getLike()).getAxis(extent.getAxis()));
    for (Value operand : op->getOperands()) {
      // Where heads meet, what each has of its own was held for all of them.
      auto type = dyn_cast<NamedTensorType>(operand.getType());
      bool met = crossesHeads(*op) && type && type.hasAxis("head");
      result |= !met && ownOfHeads(operand);
    }
  }
  return own[v] = result;
}

unsigned Program::add(Root root) {
  unsigned index = roots.size();
  if (root.value)
    root.ownOfHeads = !tensorOf(root.value).hasAxis("head") && ownOfHeads(root.value);
  if (root.value)
    rootOf[root.value] = index;
  roots.push_back(std::move(root));
  return index;
}

/// Where a value is made: one sweep over its entries (or those `of` which it is made), for each
/// row or each head.
Step Program::keyOf(Value made, Value of) {
  if (!of)
    of = made;
  Step key;
  NamedTensorType type = tensorOf(of);
  key.space = type.hasAxis("head") || ownOfHeads(of) ? kvplan::Space::Head : kvplan::Space::Batch;
  key.over = entryAxis(type);
  if ((key.rows = rowsOf.lookup(made))) {
    key.space = rowLoops[key.rows - 1].space;
    if (key.over && kvp::isAllQueries(key.over))
      key.over = {};
  }
  key.kind = key.over ? Step::Pass : Step::Small;
  if (auto partition =
          key.over ? kvplan::partitionOf(of, key.over.getName()) : kvp::PartitionOp()) {
    auto alike = llvm::find_if(partitions, [&](kvp::PartitionOp other) {
      return other.getSize() == partition.getSize() && other.getWhole() == partition.getWhole() &&
             other.getFrom() == partition.getFrom() && other.getTo() == partition.getTo();
    });
    if (alike == partitions.end())
      alike = partitions.insert(alike, partition);
    key.partition = *alike;
  }
  return key;
}

/// Keys or values, and what they are contracted with, if that has no entries.
static std::pair<Value, Value> operandsOf(kvp::DotOp op) {
  if (op.getOver() != "channel")
    return {};
  Value stream, rows;
  for (auto [a, b] : {std::pair(op.getLhs(), op.getRhs()), std::pair(op.getRhs(), op.getLhs())}) {
    auto input = a.getDefiningOp<kvp::InputOp>();
    if (!input || (input.getInput() != kvp::Input::Keys && input.getInput() != kvp::Input::Values))
      continue;
    if (AxisAttr axis = entryAxis(tensorOf(b)); !axis || kvp::isAllQueries(axis))
      stream = a, rows = b;
  }
  return {stream, rows};
}

/// Survivors' channels are not neighbours: those are contracted one by one.
static bool isThinned(Value stream) {
  auto input = stream.getDefiningOp<kvp::InputOp>();
  for (Value cache = input.getCache(); auto *op = cache.getDefiningOp(); cache = op->getOperand(0))
    if (auto topk = dyn_cast<kvp::TopkOp>(op); topk && topk.getElementAxis() == "channel")
      return true;
  return false;
}

/// Rows of a contraction, held and packed.
unsigned Program::holdRows(Value rows, unsigned loop, StringRef along) {
  Root pack{Root::Pack};
  pack.rows = rows;
  pack.along = along.str();
  pack.key.kind = Step::Small;
  pack.key.rows = loop;
  auto direct = rows.getDefiningOp<kvp::InputOp>();
  if (!direct && !rootOf.contains(rows)) {
    Root held{Root::Store};
    held.value = rows;
    held.key = keyOf(rows);
    add(held);
  }
  return add(pack);
}

/// Keys or values times rows of queries: the microkernel, where there are rows enough to fill
/// lanes.
bool Program::holdContraction(kvp::DotOp op) {
  auto [stream, rows] = operandsOf(op);
  if (!stream || isThinned(stream) || isUnbounded(tensorOf(op.getResult())) ||
      (without & kWithoutMicrokernel))
    return false;
  AxisAttr query = tensorOf(rows).getAxis("query");
  bool several = tensorOf(rows).hasAxis("group") || query;
  unsigned loop = rowsOf.lookup(op.getResult());
  if (!several || (query && !query.isStatic() && !loop) || !tensorOf(rows).hasAxis("head"))
    return false;

  unsigned packed = holdRows(rows, loop);

  Root contract{Root::Contract};
  contract.value = op.getResult();
  // A host factor of the sum goes along.
  if (op->hasOneUse())
    if (auto mul = dyn_cast<kvp::MapOp>(*op->user_begin()); mul && mul.getFn() == kvp::Fn::Mul)
      for (unsigned i : {0u, 1u})
        if (!stored && mul.getOperand(i).getType().isF64()) {
          contract.value = mul.getResult();
          contract.scale = mul.getOperand(i);
        }
  contract.stream = stream;
  contract.rows = rows;
  contract.key = keyOf(contract.value);
  contract.after = {packed};
  add(contract);
  return true;
}

/// A quadratic form, by the microkernel: its matrix is held, and packed.
void Program::holdForm(kvp::FormOp op) {
  Root form{Root::Form};
  form.after = {holdRows(op.getMatrix(), 0)};
  roots[form.after.front()].form = op;
  form.value = op.getResult();
  form.stream = op.getInput();
  form.rows = op.getMatrix();
  form.key = keyOf(form.value);
  add(form);
}

/// What is reduced over the unbounded axis of one contraction, entry by entry: made block by block.
bool Program::holdFold(kvp::ReduceOp op) {
  auto over = kvp::axisNames(op.getOver());
  NamedTensorType type = tensorOf(op.getInput());
  if (stored || over.size() != 1 || over.front() != kUnbounded || !isUnbounded(type))
    return false;
  kvp::DotOp contraction;
  llvm::DenseSet<Value> seen;
  std::function<bool(Value)> maps = [&](Value v) {
    if (!v || !isUnbounded(tensorOf(v)) || !seen.insert(v).second || rootOf.contains(v))
      return true;
    if (auto map = v.getDefiningOp<kvp::MapOp>())
      return llvm::all_of(map.getOperands(), maps);
    auto dot = v.getDefiningOp<kvp::DotOp>();
    bool only = dot && !contraction;
    contraction = dot;
    return only;
  };
  if (!maps(op.getInput()) || !maps(op.getWhere()) || !contraction ||
      tensorOf(contraction.getResult()).getAxes() != type.getAxes())
    return false;
  auto [stream, rows] = operandsOf(contraction);
  if (!stream || !tensorOf(rows).hasAxis("head") || !tensorOf(rows).hasAxis(kUnbounded))
    return false;
  bool keys = stream.getDefiningOp<kvp::InputOp>().getInput() == kvp::Input::Keys;
  if (keys && isThinned(stream))
    return false;
  Root fold{Root::Fold};
  fold.after = {holdRows(rows, 0, kUnbounded)};
  fold.value = op.getResult();
  fold.key = keyOf(fold.value);
  fold.stream = stream;
  fold.rows = rows;
  fold.contraction = contraction.getResult();
  fold.along = kUnbounded.str();
  add(fold);
  return true;
}

LogicalResult Program::holdOp(Operation &op) {
  for (Value operand : op.getOperands()) {
    // What a head holds of its own others can read; a number of the host they have in another way.
    auto type = dyn_cast<NamedTensorType>(operand.getType());
    bool held = type && (type.hasAxis("head") || isWholeRow(&op));
    if (crossesHeads(op) && !held && ownOfHeads(operand))
      return op.emitError(
          "`length` meets other heads here, which have another; take it of a tensor "
          "over `head` [kv-head-misaligned]");
  }
  if (isa<kvp::TopkOp, kvp::MaskOp>(op)) {
    Root root{Root::Select};
    root.selection = &op;
    root.key.kind = Step::Select;
    if (auto topk = dyn_cast<kvp::TopkOp>(op)) {
      root.reuse = topk.getReuse().value_or(0);
      if (topk.getElementAxis() == "channel" && ownOfHeads(topk.getCount()))
        return op.emitError(
            "`topk` of channels keeps one number of them, the same in all heads and "
            "known before the data; heads that chose for themselves have other "
            "lengths [kv-channel-count]");
    } else
      root.reuse = cast<kvp::MaskOp>(op).getReuse().value_or(0);
    add(root);
    return success();
  }
  if (op.getNumResults() != 1 || !tensorOf(op.getResult(0)))
    return success();
  Value v = op.getResult(0);
  if (rootOf.contains(v))
    return success();
  Root root{Root::Store};
  root.value = v;
  root.key = keyOf(v);
  if (isWholeRow(&op)) {
    bool together = !takenTogether(&op).empty();
    if (llvm::is_contained(takenTogether(&op), "head"))
      root.key.space = kvplan::Space::Batch;
    if (!tensorOf(op.getOperand(0)).getElementType().isF32())
      return op.emitError("goes over whole rows, which are of f32");
    root.kind = Root::Order;
    root.key.kind = Step::Order;
    auto sort = dyn_cast<kvp::SortOp>(op);
    root.last = together ? StringRef() : sort ? sort.getTo() : wholeRow(&op);
    if (root.last.empty())
      root.last = takenWhole(v);
    add(root);
    return success();
  }
  if (auto softmax = dyn_cast<kvp::SoftmaxOp>(op)) {
    root.kind = Root::Statistics;
    root.key = keyOf(v, softmax.getInput());
    // A buffer that nobody else reads keeps the exponents, so that none is taken twice.
    Value x = softmax.getInput();
    if (auto it = rootOf.find(x); it != rootOf.end() && x.hasOneUse() && !stored)
      root.keepsExponents = roots[it->second].makesEntries() && !(without & kWithoutExponents);
    unsigned statistics = add(root);
    statisticsOf[v] = statistics;
    // Weights are computed again where they are used, except by what reads memory.
    if (llvm::any_of(v.getUsers(), [&](Operation *user) {
          return isa<kvp::TopkOp, kvp::MaskOp, kvp::ReturnOp, kvp::SoftmaxOp>(user) ||
                 isWholeRow(user) || readsNeighbours(user, v);
        })) {
      Root weights{Root::Store};
      weights.value = v;
      weights.key = keyOf(v);
      weights.after = {statistics};
      weights.last = takenWhole(v);
      add(weights);
    }
    return success();
  }
  if (auto reduce = dyn_cast<kvp::ReduceOp>(op)) {
    if (holdFold(reduce))
      return success();
    auto over = kvp::axisNames(reduce.getOver());
    if (rowsOf.contains(v) && !hasAllQueries(v)) {
      root.kind = Root::Merge;
      add(root);
      return success();
    }
    if (llvm::any_of(over, [&](StringRef axis) {
          return kvp::isEntryAxis(tensorOf(reduce.getInput()).getAxis(axis));
        })) {
      root.kind = Root::Accumulate;
      root.key = keyOf(v, reduce.getInput());
      root.key.over = tensorOf(reduce.getInput()).getAxis(over.front());
      root.key.kind = Step::Pass;
      add(root);
      return success();
    }
  }
  if (auto dot = dyn_cast<kvp::DotOp>(op)) {
    if (holdContraction(dot))
      return success();
  }
  if (auto form = dyn_cast<kvp::FormOp>(op)) {
    holdForm(form);
    return success();
  }
  if (!mustHold(v))
    return success();
  root.last = takenWhole(v);
  // A mask over a contraction's result works in its buffer.
  if (auto map = dyn_cast<kvp::MapOp>(op); map && map.getFn() == kvp::Fn::Where && !stored) {
    Value raw = map.getOperand(1);
    if (auto it = rootOf.find(raw); it != rootOf.end() && raw.hasOneUse() &&
                                    roots[it->second].kind == Root::Contract &&
                                    raw.getType() == v.getType())
      root.inPlace = true;
  }
  root.leavesRows = leavesRows.contains(v);
  add(root);
  return success();
}

/// Along rows of whole-row operations elements are neighbours: what is taken along a second axis is
/// copied for it, and so is what softmax takes, by entries.
void Program::separateOrders() {
  for (Operation &op : press.getBody().front()) {
    StringRef axis = wholeRow(&op);
    if (axis.empty() && !isa<kvp::SoftmaxOp>(op))
      continue;
    for (OpOperand &operand : op.getOpOperands()) {
      Value v = operand.get();
      StringRef last = takenWhole(v);
      if (Operation *made = v.getDefiningOp(); made && !wholeRow(made).empty()) {
        auto sort = dyn_cast<kvp::SortOp>(made);
        last = sort ? sort.getTo() : wholeRow(made);
      }
      if (last == axis)
        continue;
      ImplicitLocOpBuilder b(op.getLoc(), &op);
      bool condition = tensorOf(v).getElementType().isInteger(1);
      Value copy =
          kvp::MapOp::create(b, condition ? kvp::Fn::Or : kvp::Fn::Maximum, ValueRange{v, v});
      if (unsigned loop = rowsOf.lookup(v); loop && !leavesRows.contains(v))
        rowsOf[copy] = loop;
      operand.set(copy);
    }
  }
}

LogicalResult Program::hold() {
  if (failed(separateRows()))
    return failure();
  separateOrders();
  if (!(without & kWithoutWeighing))
    chooseShared();
  for (Operation &op : press.getBody().front()) {
    if (!rowLoops.empty() && isOnlyAsked(&op))
      continue;
    if (auto topk = dyn_cast<kvp::TopkOp>(op))
      apart[topk.getResult().getType().getState()] =
          apart[topk.getCache().getType().getState()] ||
          (topk.getElementAxis() != "channel" && tensorOf(topk.getScore()).hasAxis("head"));
    else if (auto mask = dyn_cast<kvp::MaskOp>(op))
      apart[mask.getResult().getType().getState()] = apart[mask.getCache().getType().getState()] ||
                                                     tensorOf(mask.getCondition()).hasAxis("head");
    // A program may select by a weight, which no operation made, put it in order, or take a form by
    // it.
    auto form = dyn_cast<kvp::FormOp>(op);
    SmallVector<Value> inMemory;
    if (form)
      inMemory = {form.getMatrix()};
    else if (isa<kvp::TopkOp, kvp::MaskOp, kvp::ReturnOp>(op) || isWholeRow(&op))
      inMemory = llvm::to_vector(op.getOperands());
    for (Value operand : inMemory)
      if (tensorOf(operand) && !rootOf.contains(operand)) {
        Root root{Root::Store};
        root.value = operand;
        root.key = keyOf(operand);
        add(root);
      }
    if (failed(holdOp(op)))
      return failure();
  }
  findTileWise();
  return success();
}
