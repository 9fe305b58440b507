//===- Summary.cpp - what a host must know of a press -----------------------------------------===//
#include "lib/Module/Summary.h"

#include "mlir/IR/Location.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SetVector.h"

using namespace kvpc;
using namespace mlir;

std::string kvpc::placeOf(Location location) {
  std::string place;
  location->walk([&](Location inner) {
    auto file = dyn_cast<FileLineColLoc>(inner);
    if (!file)
      return WalkResult::advance();
    place = (file.getFilename().getValue() + ":" + Twine(file.getLine()) + ":" +
             Twine(file.getColumn()))
                .str();
    return WalkResult::interrupt();
  });
  return place;
}

namespace {

int64_t sharedLayers(Operation *op) {
  if (auto topk = dyn_cast<kvp::TopkOp>(op))
    return topk.getReuse().value_or(0);
  if (auto mask = dyn_cast<kvp::MaskOp>(op))
    return mask.getReuse().value_or(0);
  return 0;
}

/// Operations that the outcome depends on. A follower demands nothing of a shared choice but the
/// cache, which is its first operand, and how many it keeps.
llvm::SetVector<Operation *> demanded(kvp::PressOp press, bool follower) {
  llvm::SetVector<Operation *> seen;
  SmallVector<Value> pending{press.getBody().front().getTerminator()->getOperand(0)};
  for (auto require : press.getBody().getOps<kvp::RequireOp>())
    pending.push_back(require.getCondition());
  if (!follower)
    llvm::append_range(pending, press.getBody().front().getTerminator()->getOperands());
  while (!pending.empty()) {
    Operation *op = pending.pop_back_val().getDefiningOp();
    if (!op || !seen.insert(op))
      continue;
    if (follower && sharedLayers(op) > 1) {
      pending.push_back(op->getOperand(0));
      if (auto topk = dyn_cast<kvp::TopkOp>(op))
        pending.push_back(topk.getCount());
    } else if (auto extent = dyn_cast<kvp::ExtentOp>(op);
               follower && extent && extent.getAxis().rtrim('\'') != "group") {
      // Shapes of the call say it; groups, only queries.
    } else {
      llvm::append_range(pending, op->getOperands());
    }
  }
  return seen;
}

/// Name of a host input and how much of it `op` reads. Keys and values are always given.
std::optional<std::pair<std::string, int64_t>> inputOf(Operation *op) {
  if (isa<kvp::RotateOp>(op))
    return std::pair("rope", PressSummary::kAll);
  auto input = dyn_cast<kvp::InputOp>(op);
  if (!input)
    return std::nullopt;
  int64_t amount = input.getLast() ? static_cast<int64_t>(*input.getLast()) : PressSummary::kAll;
  switch (input.getInput()) {
  case kvp::Input::Keys:
  case kvp::Input::Values:
    return std::nullopt;
  case kvp::Input::Unrotated_keys:
    return std::pair("rope", PressSummary::kAll);
  default:
    return std::pair(kvp::stringifyInput(input.getInput()).str(), amount);
  }
}

/// Whether what `op` says depends on where entries were first cached.
bool readsOriginalPositions(Operation *op) {
  if (auto position = dyn_cast<kvp::PositionOp>(op))
    return position.getOriginal();
  if (auto input = dyn_cast<kvp::InputOp>(op))
    return input.getInput() == kvp::Input::Unrotated_keys;
  return isa<kvp::CausalOp, kvp::UniformOp>(op);
}

void summarizeInputs(kvp::PressOp press, PressSummary &out) {
  auto add = [&](const std::string &name, int64_t amount, Operation *op) {
    auto [it, isNew] = out.inputs.try_emplace(name, amount);
    if (!isNew && it->second != PressSummary::kAll)
      it->second = amount == PressSummary::kAll ? amount : std::max(it->second, amount);
    if (std::string place = placeOf(op->getLoc()); !place.empty())
      out.locations.try_emplace(name, place);
  };
  auto all = demanded(press, /*follower=*/false);
  // In the order of the program, so that the place named is the first.
  for (Operation &op : press.getBody().front()) {
    if (!all.contains(&op))
      continue;
    if (auto input = inputOf(&op))
      add(input->first, input->second, &op);
    if (readsOriginalPositions(&op)) {
      add("original_positions", PressSummary::kAll, &op);
      // Turned by positions, keys have as many as tokens; a condition of logits has each head's.
      bool heads = cast<kvp::NamedTensorType>(op.getResult(0).getType()).hasAxis("head");
      out.sharedPositions |= !isa<kvp::CausalOp>(op) && (!heads || isa<kvp::InputOp>(op));
    }
  }
  if (out.reuse == 0)
    return;
  std::map<std::string, int64_t> followers;
  for (Operation *op : demanded(press, /*follower=*/true)) {
    if (auto input = inputOf(op))
      followers.insert(*input);
    if (readsOriginalPositions(op))
      followers.try_emplace("original_positions", PressSummary::kAll);
  }
  for (auto &[name, amount] : out.inputs)
    if (!followers.count(name))
      out.leaderInputs.push_back(name);
}

/// Whether somewhere an axis runs along channels of keys (or of queries, or of a weight, which have
/// as many) and of values at once.
bool joinsChannels(kvp::PressOp press) {
  enum Side { Keys = 1, Values = 2 };
  std::map<std::pair<void *, std::string>, int> sides; // of a value's axis
  auto typeOf = [](Value v) { return dyn_cast<kvp::NamedTensorType>(v.getType()); };
  auto isChannel = [](kvp::AxisAttr axis) { return axis.getName().rtrim('\'') == "channel"; };
  auto set = [&](Value v, StringRef axis, int side) {
    if (side)
      sides[{v.getAsOpaquePointer(), axis.str()}] = side;
  };
  auto get = [&](Value v, StringRef axis) {
    auto it = sides.find({v.getAsOpaquePointer(), axis.str()});
    return it == sides.end() ? 0 : it->second;
  };
  for (Value argument : press.getBody().front().getArguments())
    if (auto type = typeOf(argument))
      for (kvp::AxisAttr axis : llvm::make_filter_range(type.getAxes(), isChannel))
        set(argument, axis.getName(), Keys);
  for (Operation &op : press.getBody().front()) {
    std::map<std::string, int> met; // an axis may have had another name
    for (Value operand : op.getOperands())
      if (auto type = typeOf(operand))
        for (kvp::AxisAttr axis : type.getAxes())
          met[axis.getName().str()] |= get(operand, axis.getName());
    if (auto topk = dyn_cast<kvp::TopkOp>(op); topk && topk.getElementAxis() == "channel")
      met["channel"] |= Keys;
    if (llvm::any_of(met, [](const auto &axis) { return axis.second == (Keys | Values); }))
      return true;
    auto input = dyn_cast<kvp::InputOp>(op);
    auto rename = dyn_cast<kvp::RenameOp>(op);
    for (Value result : op.getResults())
      if (auto type = typeOf(result))
        for (kvp::AxisAttr axis : type.getAxes()) {
          StringRef name = axis.getName();
          if (!input)
            set(result, name,
                met[(rename && name == rename.getTo() ? rename.getFrom() : name).str()]);
          else if (isChannel(axis))
            set(result, name,
                input.getInput() == kvp::Input::Values ||
                        input.getInput() == kvp::Input::Output_weight
                    ? Values
                    : Keys);
        }
  }
  return false;
}

void summarizeSelections(kvp::PressOp press, PressSummary &out) {
  for (Operation &op : press.getBody().front()) {
    out.reuse = std::max(out.reuse, sharedLayers(&op) > 1 ? sharedLayers(&op) : 0);
    if (auto mask = dyn_cast<kvp::MaskOp>(op)) {
      bool perHead = mask.getCondition().getType().hasAxis("head");
      out.dropsTokens = out.dataCounts = true;
      out.uniform &= !perHead;
      out.ragged |= perHead;
    }
    auto topk = dyn_cast<kvp::TopkOp>(op);
    if (!topk)
      continue;
    StringRef axis = topk.getElementAxis();
    if (axis == "channel") {
      out.dropsChannels = true;
      continue;
    }
    bool perHead =
        !topk.isUniform() || (topk.getProtect() && topk.getProtect().getType().hasAxis("head"));
    out.dropsTokens = true;
    out.uniform &= !perHead;
    // Whether the short last part is among the kept; or who has won how much.
    bool shortPart = axis == "part" && *topk.getPartSize() > 1;
    if (shortPart || topk.getJoint() || topk.countsData()) {
      out.dataCounts = true;
      out.ragged |= perHead || (topk.countsData() && !out.uniform);
    }
  }
}

void summarizeScore(kvp::PressOp press, PressSummary &out) {
  auto result = cast<kvp::ReturnOp>(press.getBody().front().getTerminator());
  if (!result.getScore())
    return;
  out.scoreAxes.emplace();
  for (kvp::AxisAttr axis : result.getScore().getType().getAxes())
    out.scoreAxes->push_back(axis.getName().str());
  if (!llvm::is_contained(*out.scoreAxes, "part"))
    return;
  // The selection that the score was made for says how long its parts are.
  for (auto topk : press.getBody().getOps<kvp::TopkOp>())
    if (topk.getPartSize()) {
      out.partSize = *topk.getPartSize();
      break;
    }
}

void summarizeParameters(kvp::PressOp press, PressSummary &out) {
  SmallVector<kvp::NamedTensorType> weights;
  for (Type type : press.getBody().front().getArgumentTypes())
    if (auto tensor = dyn_cast<kvp::NamedTensorType>(type))
      weights.push_back(tensor);
  for (auto parameter : press.getParameters().getAsRange<DictionaryAttr>()) {
    auto fixed = parameter.getAs<BoolAttr>("static");
    if (fixed && fixed.getValue())
      continue;
    std::string name = parameter.getAs<StringAttr>("name").str();
    SmallVector<StringRef> axes;
    if (auto attr = parameter.getAs<ArrayAttr>("axes"))
      axes = kvp::axisNames(attr);
    PressSummary::Weight weight{name, {}, llvm::is_contained(axes, "layer")};
    // Needed for all layers, it is an axis like any other.
    bool counted = llvm::any_of(axes, [](StringRef axis) { return axis != "layer"; });
    if (counted && out.weights.size() < weights.size() &&
        weights[out.weights.size()].hasAxis("layer"))
      weight.layered = false;
    for (StringRef axis : axes)
      if (axis != "layer" || !weight.layered)
        weight.axes.push_back(axis.str());
    // One number a layer is a host scalar: sizes may follow from it.
    if (weight.axes.empty())
      out.runtime.push_back(name);
    else
      out.weights.push_back(weight);
  }
}

} // namespace

PressSummary kvpc::summarize(kvp::PressOp press) {
  PressSummary out;
  summarizeParameters(press, out);
  summarizeSelections(press, out);
  out.equalChannels = joinsChannels(press);
  summarizeInputs(press, out);
  summarizeScore(press, out);
  return out;
}
