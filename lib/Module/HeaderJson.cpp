//===- HeaderJson.cpp - what hosts read of a module -------------------------------------------===//
#include "lib/Module/Section.h"
#include "lib/Module/Summary.h"

#include "kvpc/abi.h"
#include "llvm/ADT/STLExtras.h"

#include <cmath>

using namespace kvpc;
namespace json = llvm::json;

namespace {

json::Array names(llvm::ArrayRef<std::string> texts) { return json::Array(texts); }

/// JSON has no infinities: they are texts, as the language writes them.
json::Value number(double x) {
  if (std::isnan(x))
    return "nan";
  if (std::isinf(x))
    return x > 0 ? "inf" : "-inf";
  return x;
}

/// A default, value or bound as the program has it.
json::Value valueOf(mlir::Attribute attribute) {
  if (auto flag = mlir::dyn_cast<mlir::BoolAttr>(attribute))
    return flag.getValue();
  if (auto integer = mlir::dyn_cast<mlir::IntegerAttr>(attribute))
    return integer.getInt();
  if (auto real = mlir::dyn_cast<mlir::FloatAttr>(attribute))
    return number(real.getValueAsDouble());
  if (auto text = mlir::dyn_cast<mlir::StringAttr>(attribute))
    return text.getValue();
  if (auto list = mlir::dyn_cast<mlir::ArrayAttr>(attribute)) {
    json::Array out;
    for (mlir::Attribute item : list)
      out.push_back(valueOf(item));
    return out;
  }
  if (auto fields = mlir::dyn_cast<mlir::DictionaryAttr>(attribute)) {
    json::Object out;
    for (mlir::NamedAttribute field : fields)
      out[field.getName().getValue()] = valueOf(field.getValue());
    return out;
  }
  return nullptr;
}

json::Object parameterJson(mlir::DictionaryAttr parameter) {
  json::Object out;
  for (mlir::NamedAttribute field : parameter)
    out[field.getName().getValue()] = valueOf(field.getValue());
  if (!out.get("static"))
    out["static"] = false;
  return out;
}

json::Object inputsJson(const PressSummary &summary) {
  json::Object out;
  for (auto &[name, amount] : summary.inputs) {
    bool counted = name == "queries" || name == "unrotated_queries" || name == "hidden";
    if (!counted)
      out[name] = true;
    else if (amount == PressSummary::kAll)
      out[name] = "all";
    else
      out[name] = amount;
  }
  return out;
}

json::Object pressJson(kvp::PressOp press, llvm::ArrayRef<ModuleVariant> variants) {
  PressSummary summary = summarize(press);
  json::Array parameters, weights, compiled;
  for (auto parameter : press.getParameters().getAsRange<mlir::DictionaryAttr>())
    parameters.push_back(parameterJson(parameter));
  for (const PressSummary::Weight &weight : summary.weights)
    weights.push_back(json::Object{
        {"name", weight.name}, {"axes", names(weight.axes)}, {"layered", weight.layered}});
  for (const ModuleVariant &variant : variants)
    compiled.push_back(json::Object{{"dtype", variant.dtype},
                                    {"channels", variant.channels},
                                    {"target", variant.target},
                                    {"plan", variant.plan},
                                    {"run", variant.run}});
  json::Object locations;
  for (auto &[name, place] : summary.locations)
    locations[name] = place;
  json::Object out{
      {"name", press.getSymName()},
      {"doc", press.getDoc().value_or("")},
      {"kind", press.getKind()},
      {"parameters", std::move(parameters)},
      {"runtime", names(summary.runtime)},
      {"weights", std::move(weights)},
      {"inputs", inputsJson(summary)},
      {"uniform", summary.uniform},
      {"ragged", summary.ragged},
      {"data_counts", summary.dataCounts},
      {"drops_tokens", summary.dropsTokens},
      {"drops_channels", summary.dropsChannels},
      {"equal_channels", summary.equalChannels},
      {"shared_positions", summary.sharedPositions},
      {"reuse", summary.reuse},
      {"leader_inputs", names(summary.leaderInputs)},
      {"score_axes", summary.scoreAxes ? json::Value(names(*summary.scoreAxes)) : nullptr},
      {"locations", std::move(locations)},
      {"variants", std::move(compiled)},
  };
  if (summary.partSize)
    out["score_extent"] = json::Object{{"part", *summary.partSize}};
  return out;
}

} // namespace

json::Value kvpc::headerJson(mlir::ModuleOp kvp, const ModuleInfo &info) {
  json::Array presses;
  for (auto press : kvp.getOps<kvp::PressOp>()) {
    auto it = info.variants.find(press.getSymName());
    presses.push_back(pressJson(press, it == info.variants.end()
                                           ? llvm::ArrayRef<ModuleVariant>()
                                           : llvm::ArrayRef<ModuleVariant>(it->second)));
  }
  return json::Object{
      {"compiler", "kvpc " + version().str()},
      {"format", json::Array{1, 0}},
      {"abi", KVPC_ABI_VERSION},
      {"optimization", info.optimization},
      {"source", info.source},
      {"source_digest", info.sourceDigest},
      {"dtypes", names(info.dtypes)},
      {"channels", json::Array(info.channels)},
      {"targets", names(info.targets)},
      {"presses", std::move(presses)},
  };
}
