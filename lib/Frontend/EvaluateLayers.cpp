//===- EvaluateLayers.cpp - weights of all layers ---------------------------------------------===//
//
// A program sees a weight over `layer` at its own layer. What is made of such weights alone can be
// compared over all layers, if the program is given all of the weight: it is then evaluated again
// with the whole, and what it sees at its layer is taken from that.
//
//===------------------------------------------------------------------------------------------===//
#include "lib/Frontend/Evaluator.h"

using namespace kvpc;
using llvm::StringRef;

mlir::Value Evaluator::thisLayer(mlir::Value whole, mlir::Location loc) {
  return emitter.create<kvp::AtOp>(loc, {whole, dim(kvp::Dim::Layer, loc).value},
                                   emitter.string("axis", "layer"));
}

Value Evaluator::needAllLayers(const Layers &layers, kvp::NamedTensorType result,
                               mlir::Location loc) {
  wholes.insert_range(layers.params);
  Tensor out;
  out.value = emitter.placeholder(loc, result);
  return out;
}

/// The same function of the same weights, of all layers at once; null where anything else of this
/// layer has a part in it.
std::shared_ptr<const Layers> Evaluator::layersOfMap(kvp::Fn fn, llvm::ArrayRef<Operand> operands,
                                                     mlir::Value slice, mlir::Location loc) {
  auto out = std::make_shared<Layers>();
  out->slice = slice;
  llvm::SmallVector<mlir::Value> wholes;
  bool given = true;
  for (const Operand &o : operands) {
    if (auto *host = o.value.as<Host>()) {
      if (host->perLayer)
        return nullptr;
      wholes.push_back(get(*host, loc));
      continue;
    }
    auto *tensor = o.value.as<Tensor>();
    const Layers *layers = tensor && !tensor->protect ? tensor->allLayers() : nullptr;
    if (!layers)
      return nullptr;
    wholes.push_back(layers->whole);
    given &= bool(layers->whole);
    for (unsigned p : layers->params)
      if (!llvm::is_contained(out->params, p))
        out->params.push_back(p);
  }
  if (given)
    out->whole = mapTensor(fn, wholes, loc);
  return out;
}

/// A value over all layers as the program goes on with it: `like`, but for the value.
Tensor Evaluator::atThisLayer(mlir::Value whole, const Layers &from, Tensor like,
                              mlir::Location loc) {
  auto out = std::make_shared<Layers>(from);
  out->whole = whole;
  out->slice = like.value = thisLayer(whole, loc);
  like.layers = out;
  return like;
}

Value Evaluator::reduceLayers(const CallExpr &call, kvp::Reduction kind, const Tensor &x,
                              llvm::ArrayRef<StringRef> over) {
  mlir::Location loc = at(call.callee.loc());
  const Layers &layers = *x.allLayers();
  llvm::SmallVector<StringRef> shown =
      llvm::filter_to_vector(over, [](StringRef axis) { return axis != "layer"; });
  if (!layers.whole)
    return needAllLayers(layers, x.type().without(shown), loc);
  Tensor out;
  out.value = emitter.reduce(loc, kind, layers.whole, over);
  return out.value ? Value(out) : Poison();
}

Value Evaluator::rankLayers(const CallExpr &call, const Tensor &x, llvm::ArrayRef<StringRef> over) {
  mlir::Location loc = at(call.callee.loc());
  const Layers &layers = *x.allLayers();
  if (!layers.whole)
    return needAllLayers(layers, x.type().withElement(emitter.i64()), loc);
  mlir::Value ranks = emitter.create<kvp::RankOp>(loc, layers.whole, emitter.strings("over", over),
                                                  llvm::SmallVector<int32_t>{1, 0, 0});
  return ranks ? Value(atThisLayer(ranks, layers, x, loc)) : Poison();
}
