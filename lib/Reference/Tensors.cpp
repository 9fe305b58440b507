//===- Tensors.cpp - operations of the IR to functions on tensors -----------------------------===//
#include "dialect/IR/Kvplan.h"
#include "lib/Reference/Evaluation.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace kvpc;
using namespace kvpc::reference;

static Element elementOf(mlir::Type type) {
  mlir::Type element = mlir::cast<kvp::NamedTensorType>(type).getElementType();
  return element.isInteger(1)    ? Element::Bool
         : element.isInteger(64) ? Element::Int
                                 : Element::Float;
}

/// Weights and inputs come from the host: what the types left open may disagree.
llvm::Error Evaluation::checkExtents(mlir::Operation *op) const {
  auto pick = mlir::dyn_cast<kvp::AtOp>(op);
  Axes axes;
  for (mlir::Value operand : op->getOperands()) {
    auto it = values.find(operand);
    if (it == values.end() || !std::holds_alternative<Shared>(it->second))
      continue;
    for (const Axis &axis : std::get<Shared>(it->second)->axes) {
      if (pick && pick.getAxis() == axis.name)
        continue;
      auto known = llvm::find_if(axes, [&](const Axis &a) { return a.name == axis.name; });
      if (known == axes.end())
        axes.push_back(axis);
      else if (known->extent != axis.extent)
        return failed("axis `%s` has %lld entries in one operand of `%s` and %lld in another",
                      axis.name.c_str(), static_cast<long long>(known->extent),
                      op->getName().getStringRef().str().c_str(),
                      static_cast<long long>(axis.extent));
    }
  }
  return llvm::Error::success();
}

/// The part of an axis that a partition or join names.
template <typename Op>
static Cut cutOf(Op op, const Evaluation &evaluation) {
  Cut cut{static_cast<int64_t>(op.getSize())};
  if (op.getFrom())
    cut.from = evaluation.integer(op.getFrom());
  if (op.getTo())
    cut.to = evaluation.integer(op.getTo());
  cut.whole = op.getWhole();
  return cut;
}

/// Entries of an axis that are there, for the head that looks.
int64_t Evaluation::extentOf(mlir::Value value, llvm::StringRef axis) const {
  const Tensor &like = tensor(value);
  if (!head)
    return like.extent(axis);
  bool known = like.present && like.present->has(axis);
  if (!known || !like.present->has("head")) {
    // One value for all heads, of which each has the entries that it kept.
    auto [origin, name] = kvplan::originOf(value, axis);
    if (origin.getDefiningOp() && name == "token" &&
        isa<kvp::PositionOp, kvp::InputOp>(origin.getDefiningOp()))
      return cache(origin.getDefiningOp()->getOperand(0)).tokens[*head].size();
    if (auto partition = origin.getDefiningOp<kvp::PartitionOp>();
        partition && name == "part" && values.count(origin)) {
      int64_t n = extentOf(partition.getInput(), partition.getAxis());
      return cutOf(partition, *this).parts(n).second;
    }
  }
  if (!known)
    return like.extent(axis);
  Rows rows(*like.present, axis);
  std::vector<int64_t> own = offsets(rows.kept, Tensor({{"head", row.heads}}, Element::Bool));
  int64_t n = 0;
  for (int64_t i = 0; i < rows.length(); ++i) {
    bool there = false;
    for (int64_t r = 0; r < rows.count(); ++r)
      there |=
          like.present->bools[rows.at(r, i)] && (own[r] == *head || !like.present->has("head"));
    n += there;
  }
  return n;
}

/// Whether an operand brings an axis of slots together with the parts that they are of.
static bool bringsParts(mlir::Operation *op, llvm::StringRef slot) {
  auto pick = mlir::dyn_cast<kvp::AtOp>(op);
  return llvm::any_of(op->getOpOperands(), [&](mlir::OpOperand &operand) {
    if (pick && pick.getAxis() == slot && operand.getOperandNumber() == 0)
      return false; // its slots are those that the index places
    auto type = mlir::dyn_cast<kvp::NamedTensorType>(operand.get().getType());
    return type && type.hasAxis(slot) && kvplan::slotsAlong(operand.get(), slot);
  });
}

/// Where values over parts meet those over slots, a short last part has no more slots than in the
/// partition: a mean of each part and one of each slot know nothing of it by themselves.
llvm::Error Evaluation::leaveOutSlots(mlir::Operation *op, Tensor &result) {
  if (mlir::isa<kvp::PartitionOp, kvp::RenameOp, kvp::SortOp>(op))
    return llvm::Error::success();
  for (const Axis &axis : result.axes) {
    kvplan::Slots slots = kvplan::slotsAlong(op->getResult(0), axis.name);
    if (!slots || bringsParts(op, axis.name))
      continue;
    // It may be of the branch of a `where` that was left uncomputed.
    if (llvm::Error error = demand(slots.partition.getResult()))
      return error;
    int64_t extent = tensor(slots.partition.getInput()).extent(slots.partition.getAxis());
    result.present =
        both(result.present, cutOf(slots.partition, *this).slots(extent, slots.part, axis.name));
  }
  return llvm::Error::success();
}

/// Where values over places alone meet heads that kept different numbers of entries, each head has
/// the places that it kept.
void Evaluation::leaveOutPlaces(mlir::Operation *op, Tensor &result) {
  const Axis *heads = result.find("head");
  if (!heads || !mlir::isa<kvp::MapOp>(op))
    return;
  for (mlir::Value operand : op->getOperands()) {
    auto type = mlir::dyn_cast<kvp::NamedTensorType>(operand.getType());
    if (!type || type.hasAxis("head") || !values.count(operand))
      continue;
    for (kvp::AxisAttr axis : type.getAxes()) {
      if (!kvp::isEntryAxis(axis))
        continue;
      int64_t extent = tensor(operand).extent(axis.getName());
      Tensor there({*heads, {axis.getName().str(), extent}}, Element::Bool);
      std::optional<int64_t> outer = head;
      for (int64_t h = 0; h < heads->extent; ++h) {
        head = h;
        std::fill_n(there.bools.begin() + h * extent,
                    std::min(extentOf(operand, axis.getName()), extent), 1);
      }
      head = outer;
      if (llvm::is_contained(there.bools, 0))
        result.present = both(result.present, std::make_shared<const Tensor>(std::move(there)));
    }
  }
}

llvm::Expected<Value> Evaluation::executeTensor(mlir::Operation *op) {
  if (llvm::Error error = checkExtents(op))
    return error;
  auto optional = [&](mlir::Value value) { return value ? &tensor(value) : nullptr; };
  using Result = llvm::Expected<Tensor>;
  Result result =
      llvm::TypeSwitch<mlir::Operation *, Result>(op)
          .Case([&](kvp::InputOp o) { return input(o); })
          .Case([&](kvp::PositionOp o) -> Result {
            const Cache &left = cache(o.getCache());
            if (o.getOriginal())
              return originalPositions(left, o.getResult().getType().hasAxis("head"));
            Tensor out({{"token", left.length()}}, Element::Int);
            for (int64_t i = 0; i < left.length(); ++i)
              out.ints[i] = i;
            return out;
          })
          .Case([&](kvp::CausalOp o) { return causal(o); })
          .Case([&](kvp::UniformOp o) { return uniformOf(o); })
          .Case([&](kvp::IndexOp o) -> Result {
            Tensor out({*tensor(o.getLike()).find(o.getAxis())}, Element::Int);
            for (size_t i = 0; i < out.ints.size(); ++i)
              out.ints[i] = i;
            return out;
          })
          .Case([&](kvp::IotaOp o) -> Result {
            Tensor out({{o.getAxis().str(), static_cast<int64_t>(o.getExtent())}}, Element::Int);
            for (size_t i = 0; i < out.ints.size(); ++i)
              out.ints[i] = i;
            return out;
          })
          .Case([&](kvp::MapOp o) -> Result { return tensorMap(o); })
          .Case([&](kvp::ReduceOp o) -> Result {
            return reduce(o.getKind(), tensor(o.getInput()), kvp::axisNames(o.getOver()),
                          optional(o.getWhere()));
          })
          .Case([&](kvp::DotOp o) -> Result {
            return dot(tensor(o.getLhs()), tensor(o.getRhs()), o.getOver());
          })
          .Case([&](kvp::FormOp o) -> Result {
            Tensor row = rename(tensor(o.getInput()), o.getAxis(), o.getRow());
            Tensor column = rename(tensor(o.getInput()), o.getAxis(), o.getColumn());
            return dot(dot(row, tensor(o.getMatrix()), o.getRow()), column, o.getColumn());
          })
          .Case<kvp::RotateOp, kvp::RotaryOp, kvp::PairOp>(
              [&](auto o) -> Result { return turn(o.getOperation()); })
          .Case([&](kvp::SoftmaxOp o) -> Result {
            return softmax(tensor(o.getInput()), o.getAxis(), optional(o.getWhere()));
          })
          .Case([&](kvp::NormalizeOp o) -> Result {
            return normalize(tensor(o.getInput()), o.getAxis(), optional(o.getWhere()));
          })
          .Case([&](kvp::CumsumOp o) -> Result {
            return cumsum(tensor(o.getInput()), o.getAxis(), optional(o.getWhere()));
          })
          .Case([&](kvp::SortOp o) -> Result {
            return sort(tensor(o.getInput()), o.getAxis(), o.getTo(), optional(o.getWhere()));
          })
          .Case([&](kvp::AvgPoolOp o) -> Result {
            return averagePool(tensor(o.getInput()), o.getAxis(), o.getSize(),
                               optional(o.getWhere()));
          })
          .Case([&](kvp::MaxPoolOp o) -> Result {
            return maxPool(tensor(o.getInput()), o.getAxis(), o.getSize(), optional(o.getWhere()));
          })
          .Case([&](kvp::ShiftOp o) -> Result {
            return shift(tensor(o.getInput()), o.getAxis(), integer(o.getBy()),
                         number(o.getFill()));
          })
          .Case([&](kvp::RankOp o) -> Result {
            return rank(tensor(o.getInput()), kvp::axisNames(o.getOver()), optional(o.getProtect()),
                        optional(o.getWhere()));
          })
          .Case([&](kvp::RenameOp o) -> Result {
            return rename(tensor(o.getInput()), o.getFrom(), o.getTo());
          })
          .Case([&](kvp::PartitionOp o) -> Result {
            return partition(tensor(o.getInput()), o.getAxis(), cutOf(o, *this));
          })
          .Case([&](kvp::JoinOp o) -> Result {
            return join(tensor(o.getInput()), tensor(o.getLike()), o.getAxis(), cutOf(o, *this),
                        number(o.getFill()));
          })
          .Case([&](kvp::AtOp o) -> Result {
            return at(tensor(o.getInput()), o.getAxis(), asTensor(o.getIndex()),
                      kvplan::originOf(o.getInput(), o.getAxis()).second == "slot");
          })
          .Default([&](mlir::Operation *other) -> Result {
            return failed("the reference does not know `%s`",
                          other->getName().getStringRef().str().c_str());
          });
  if (!result)
    return result.takeError();
  if (llvm::Error error = leaveOutSlots(op, *result))
    return error;
  leaveOutPlaces(op, *result);
  return std::make_shared<const Tensor>(std::move(*result));
}

static llvm::SmallVector<llvm::StringRef> namesOf(std::optional<mlir::ArrayAttr> names) {
  return names ? kvp::axisNames(*names) : llvm::SmallVector<llvm::StringRef>();
}

/// What the model's rotary embedding says.
llvm::Expected<Tensor> Evaluation::turn(mlir::Operation *op) const {
  if (!row.rope)
    return failed("the press needs `rope`: give the inverse frequencies of the model");
  const Rope &rope = *row.rope;
  if (auto pairs = mlir::dyn_cast<kvp::PairOp>(op))
    return pair(tensor(pairs.getInput()), pairs.getAxis(), rope);
  if (auto table = mlir::dyn_cast<kvp::RotaryOp>(op))
    return rotary(table.getWave(), asTensor(table.getBy()), namesOf(table.getMean()),
                  *tensor(table.getLike()).find(table.getAxis()), table.getBack(), rope);
  auto turned = mlir::cast<kvp::RotateOp>(op);
  const Tensor &x = tensor(turned.getInput());
  if (rope.width() > x.extent("channel"))
    return failed("`rope` turns %lld channels, what is turned has %lld",
                  static_cast<long long>(rope.width()),
                  static_cast<long long>(x.extent("channel")));
  return rotate(x, asTensor(turned.getBy()), namesOf(turned.getMean()), rope);
}

Tensor Evaluation::tensorMap(kvp::MapOp op) const {
  llvm::SmallVector<mlir::Value> operands(op.getOperands());
  // Of a `where` with a host condition one branch may not have been computed.
  if (op.getFn() == kvp::Fn::Where) {
    for (int branch : {1, 2})
      if (!values.count(operands[branch]))
        operands[branch] = operands[3 - branch];
  }
  llvm::SmallVector<Tensor> scalars;
  scalars.reserve(operands.size());
  llvm::SmallVector<const Tensor *> pointers;
  for (mlir::Value operand : operands) {
    if (mlir::isa<kvp::NamedTensorType>(operand.getType())) {
      pointers.push_back(&tensor(operand));
      continue;
    }
    scalars.push_back(asTensor(operand));
    pointers.push_back(&scalars.back());
  }
  return map(op.getFn(), pointers, elementOf(op.getResult().getType()));
}
