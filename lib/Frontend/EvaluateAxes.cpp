//===- EvaluateAxes.cpp - names, parts and indices of axes ------------------------------------===//
#include "lib/Frontend/Evaluator.h"

using namespace kvpc;
using kvp::Fn;
using kvp::Reduction;
using llvm::StringRef;

kvp::AxisAttr Evaluator::axisAttr(StringRef name, int64_t extent, int64_t state) {
  return kvp::AxisAttr::get(emitter.getContext(), name, extent, state);
}

Value Evaluator::evaluateRename(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "rename");
  if (!x || !hasAxis(*x, args.from, *args.values[0]))
    return Poison();
  StringRef from = args.from.text, to = args.to.text;
  mlir::Location loc = at(call.callee.loc());
  if (x->has(to) || (to == "head" && x->repeated)) {
    error(args.to.loc(), Diag::RenameTaken, shown(*args.values[0]), to);
    return Poison();
  }
  if (from == "head") {
    *x = materialize(*x, loc);
    // How many entries a head has is asked by that name.
    for (kvp::AxisAttr a : x->type().getAxes())
      if (const Selection *by = current.ragged();
          by && kvp::isEntryAxis(a) && headsOf(*x, a.getName()) == "head") {
        error(call.callee.loc(), Diag::HeadMisaligned, "rename", "head", "number", "tokens", by->by)
            .note(by->loc, "heads may have different numbers of tokens from here on");
        return Poison();
      }
  }
  Tensor out = *x;
  out.input.reset();
  // The value that each entry had when it was computed, kept for later passes.
  if (from == "query" && to == "token") {
    if (kvp::AxisAttr query = x->type().getAxis(from); query.isStatic()) {
      error(args.from.loc(), Diag::Extent, from, std::to_string(query.getExtent()) + " entries",
            shown(*args.values[0]), "one for each token", "`rename(query -> token)`");
      return Poison();
    }
    return ofTokens(*x, call.callee.loc());
  }
  auto rename = [&](mlir::Value v) {
    return emitter.create<kvp::RenameOp>(loc, v,
                                         {emitter.string("from", from), emitter.string("to", to)});
  };
  out.value = rename(x->value);
  if (x->protect && llvm::cast<kvp::NamedTensorType>(x->protect.getType()).hasAxis(from))
    out.protect = rename(x->protect);
  for (std::string &axis : out.thinned)
    if (axis == from)
      axis = to.str();
  // The new name says neither what the axis numbers nor which heads chose its entries.
  out.renamed.clear();
  for (kvp::AxisAttr a : x->type().getAxes()) {
    StringRef name = a.getName(), heads = headsOf(*x, name);
    if (!x->has(heads))
      heads = "";
    if (name == from || heads == from || x->findRenamed(name))
      out.renamed.push_back({name == from ? to.str() : name.str(), x->entriesOf(name).str(),
                             heads == from ? to.str() : heads.str()});
  }
  return out.value ? Value(out) : Poison();
}

/// The value that each entry's own query gave. Entries of earlier passes have none here.
Value Evaluator::ofTokens(Tensor x, llvm::SMLoc where) {
  mlir::Location loc = diagnostics.location(where);
  mlir::Value cache = current.cache;
  while (mlir::Operation *by = cache.getDefiningOp())
    cache = by->getOperand(0);
  auto dimOf = [&](kvp::Dim kind) {
    return emitter.createAs<kvp::DimOp>(
        loc, emitter.i64(), cache,
        emitter.named("dim", kvp::DimAttr::get(emitter.getContext(), kind)));
  };
  emitter.require(loc, emitter.map(loc, Fn::Eq, {dimOf(kvp::Dim::Seen), dimOf(kvp::Dim::Length)}),
                  "`rename(query -> token)` needs the queries of all tokens that the cache has "
                  "seen, those of earlier passes too; compress the whole prompt at once");
  // A token's place among the queries is where it was first cached.
  llvm::SmallVector<mlir::NamedAttribute> attributes;
  if (current.number())
    attributes.push_back(emitter.unit("original"));
  mlir::Value token = emitter.create<kvp::PositionOp>(loc, current.cache, attributes);
  Tensor out = x;
  out.input.reset();
  out.protect = {};
  out.value = emitter.create<kvp::AtOp>(loc, {x.value, token}, emitter.string("axis", "query"));
  if (!out.value)
    return Poison();
  if (out.has("head"))
    out.repeated = false;
  out.forgetAxes();
  return out;
}

//===------------------------------------------------------------------------------------------===//
// Parts
//===------------------------------------------------------------------------------------------===//

std::optional<Tensor> Evaluator::partition(Tensor x, const PartInfo &info, mlir::Location loc) {
  llvm::SmallVector<mlir::NamedAttribute> attributes{emitter.string("axis", "token"),
                                                     emitter.integer("size", info.size)};
  if (info.whole)
    attributes.push_back(emitter.unit("whole"));
  auto split = [&](mlir::Value v) {
    llvm::SmallVector<mlir::Value> operands{v};
    if (info.from)
      operands.push_back(info.from);
    if (info.to)
      operands.push_back(info.to);
    return emitter.create<kvp::PartitionOp>(
        loc, operands, attributes, llvm::SmallVector<int32_t>{1, bool(info.from), bool(info.to)});
  };
  Tensor out = x;
  out.input.reset();
  out.value = split(x.value);
  if (x.protect && llvm::cast<kvp::NamedTensorType>(x.protect.getType()).hasAxis("token"))
    out.protect = split(x.protect);
  auto part = std::make_shared<PartInfo>(info);
  part->like = x.value;
  out.part = std::move(part);
  if (const Tensor::Renamed *token = x.findRenamed("token")) {
    llvm::erase_if(out.renamed, [](const Tensor::Renamed &r) { return r.name == "token"; });
    for (const char *axis : {"part", "slot"})
      out.renamed.push_back({axis, axis, token->heads});
  }
  return out.value ? std::optional(out) : std::nullopt;
}

Value Evaluator::evaluatePartition(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "partition");
  auto size = staticInt(*args.values[2], env, call, "size", 1);
  if (!x || !size)
    return Poison();
  Name axis = args.axes.front();
  if (axis.text != "token") {
    error(axis.loc(), Diag::PartitionAxis, axis.text);
    return Poison();
  }
  if (!hasAxis(*x, axis, *args.values[0]) ||
      !namedRight(*x, "token", call.callee.loc(), shown(*args.values[0])))
    return Poison();
  for (StringRef name : {"part", "slot"})
    if (x->has(name)) {
      error(call.callee.loc(), Diag::RenameTaken, shown(*args.values[0]), name);
      return Poison();
    }
  PartInfo info;
  info.size = *size;
  mlir::Location loc = at(call.callee.loc());
  for (int i : {3, 4}) {
    if (!args.values[i])
      continue;
    Value value = evaluate(*args.values[i], env);
    auto *host = value.as<Host>();
    if (!host || host->element != Element::Int)
      return typeError(*args.values[i], i == 3 ? "`from` of `partition`" : "`to` of `partition`",
                       "an integer of the host", value);
    // The whole axis needs no saying.
    Host whole = i == 3 ? Host::number(Number::of(int64_t(0))) : dim(kvp::Dim::Length, loc);
    bool plain = i == 3 ? host->known && host->known->integer == 0 : host->value == whole.value;
    // A range ends where the row does.
    if (!plain)
      (i == 3 ? info.from : info.to) =
          get(mapHost(i == 3 ? Fn::Maximum : Fn::Minimum, {*host, whole}, loc), loc);
  }
  if (args.values[5]) {
    Value value = evaluate(*args.values[5], env);
    if (value.isPoison())
      return value;
    auto whole = takeStatic(value, *args.values[5], call.callee.loc(), "`whole` of `partition`",
                            Element::Bool);
    if (!whole)
      return Poison();
    info.whole = whole->truth();
  }
  auto out = partition(*x, info, loc);
  return out ? Value(*out) : Poison();
}

Value Evaluator::evaluateChunk(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "chunk", false);
  auto size = staticInt(*args.values[1], env, call, "size", 1);
  if (!x || !size)
    return Poison();
  if (!x->has("token")) {
    error(call.callee.loc(), Diag::AxisMissing, "chunk", "token", shown(*args.values[0]),
          axesText(*x));
    return Poison();
  }
  if (!namedRight(*x, "token", call.callee.loc(), shown(*args.values[0])))
    return Poison();
  mlir::Location loc = at(call.callee.loc());
  PartInfo info;
  info.size = *size;
  auto parts = partition(*x, info, loc);
  return parts ? reduceTensor(Reduction::Mean, *parts, {"slot"}, {}, loc) : Poison();
}

Value Evaluator::evaluateJoin(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "join");
  Value fill = evaluate(*args.values[1], env);
  if (!x || fill.isPoison())
    return Poison();
  if (!x->has("part") || !x->has("slot") || !x->part) {
    error(call.callee.loc(), Diag::JoinParts, shown(*args.values[0]), axesText(*x));
    return Poison();
  }
  for (StringRef axis : {"part", "slot"})
    if (!namedRight(*x, axis, call.callee.loc(), shown(*args.values[0])))
      return Poison();
  auto *host = fill.as<Host>();
  bool isBool = x->element() == Element::Bool;
  if (!host || isBool != (host->element == Element::Bool))
    return typeError(*args.values[1], "`fill` of `join`",
                     isBool ? "a condition of the host" : "a number of the host", fill);
  mlir::Location loc = at(call.callee.loc());
  if (host->element == Element::Float)
    *x = toFloat(*x, loc);
  const PartInfo &info = *x->part;
  llvm::SmallVector<mlir::NamedAttribute> attributes{emitter.string("axis", "token"),
                                                     emitter.integer("size", info.size)};
  if (info.whole)
    attributes.push_back(emitter.unit("whole"));
  auto join = [&](mlir::Value v, mlir::Value with) {
    llvm::SmallVector<mlir::Value> operands{v, info.like};
    if (info.from)
      operands.push_back(info.from);
    if (info.to)
      operands.push_back(info.to);
    operands.push_back(with);
    return emitter.create<kvp::JoinOp>(
        loc, operands, attributes,
        llvm::SmallVector<int32_t>{1, 1, bool(info.from), bool(info.to), 1});
  };
  Tensor out = *x;
  out.input.reset();
  out.value = join(x->value, get(*host, loc));
  if (x->protect) {
    // Protection may be of whole parts: it joins over both axes all the same.
    mlir::Value protect = x->protect;
    auto type = llvm::cast<kvp::NamedTensorType>(protect.getType());
    for (StringRef axis : {"part", "slot"})
      if (!type.hasAxis(axis))
        protect = mapTensor(Fn::And, {protect, always(x->value, axis, loc)}, loc);
    out.protect = join(protect, emitter.constant(loc, Number::of(false)));
  }
  out.part = nullptr;
  if (const Tensor::Renamed *part = x->findRenamed("part"))
    out.renamed.push_back({"token", "token", part->heads});
  if (out.value)
    out.forgetAxes();
  return out.value ? Value(out) : Poison();
}

//===------------------------------------------------------------------------------------------===//
// Indices
//===------------------------------------------------------------------------------------------===//

Value Evaluator::evaluateAt(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "at");
  Operand index{args.values[2], evaluate(*args.values[2], env)};
  Name axis = args.axes.front();
  if (!x || index.value.isPoison() || !hasAxis(*x, axis, *args.values[0]) ||
      refuseMisaligned(*x, call, axis, {}))
    return Poison();
  mlir::Location loc = at(call.callee.loc());
  if (axis.text == "head")
    *x = materialize(*x, loc);
  Operand rest{args.values[0], *x};
  auto *host = index.value.as<Host>();
  auto *tensor = index.value.as<Tensor>();
  if ((host && host->element != Element::Int) || (tensor && tensor->element() != Element::Int) ||
      (!host && !tensor))
    return typeError(*args.values[2], "`index` of `at`", "an integer", index.value);
  Tensor out;
  // The picked axis leaves before the others meet.
  kvp::NamedTensorType left = x->type().without({axis.text});
  if (tensor)
    for (kvp::AxisAttr a : tensor->type().getAxes())
      if (left.hasAxis(a.getName()) && !compatible(rest, index, call.callee.loc()))
        return Poison();
  out = *x;
  out.input.reset();
  mlir::Value i = host ? get(*host, loc) : tensor->value;
  auto pick = [&](mlir::Value v) {
    return emitter.create<kvp::AtOp>(loc, {v, i}, emitter.string("axis", axis.text));
  };
  out.value = pick(x->value);
  if (x->protect && llvm::cast<kvp::NamedTensorType>(x->protect.getType()).hasAxis(axis.text))
    out.protect = pick(x->protect);
  if (!out.value)
    return Poison();
  if (!out.has("part") && !out.has("slot"))
    out.part = tensor ? tensor->part : nullptr;
  out.forgetAxes();
  if (tensor)
    for (const Tensor::Renamed &r : tensor->renamed)
      if (!out.findRenamed(r.name))
        out.renamed.push_back(r);
  return out;
}

std::optional<Tensor> Evaluator::tensorWith(Name axis, Env &env, mlir::Location loc) {
  StringRef name = axis.text;
  using kvp::Input;
  if (name == "head" || name == "token" || name == "channel")
    return input(Input::Keys, current.cache, std::nullopt, loc);
  if (name == "group")
    return input(Input::Queries, current.cache, 1, loc);
  if (name == "query")
    return input(Input::Queries, current.cache, std::nullopt, loc);
  if (name == "feature") // as many as `hidden` has
    return input(Input::Output_weight, current.cache, std::nullopt, loc);
  // A weight's own axis, or that of a value computed before, in the order of the text.
  const Tensor *found = nullptr;
  auto look = [&](StringRef value) {
    auto it = env.values.find(value);
    auto *tensor = it == env.values.end() ? nullptr : it->second.as<Tensor>();
    if (!found && tensor && tensor->has(name))
      found = tensor;
  };
  if (env.decl) {
    for (const Param &p : env.decl->params)
      look(p.name.text);
    for (const Statement &s : env.decl->statements)
      if (s.isLet)
        look(s.name.text);
  }
  if (found)
    return *found;
  auto report = error(axis.loc(), Diag::AxisNowhere, name);
  if (name == "part" || name == "slot")
    report.note(axis.loc(), "ask a tensor that has it: `x.index(" + name + ")`");
  return std::nullopt;
}

Value Evaluator::evaluateIndex(const CallExpr &call, const Arguments &args, Env &env) {
  mlir::Location loc = at(call.callee.loc());
  Tensor out;
  if (auto *axes = llvm::dyn_cast<AxesExpr>(args.values[1])) {
    if (axes->items.size() != 1 || !axes->items[0].size || args.values[0]) {
      error(axes->loc(), Diag::IndexNew);
      return Poison();
    }
    Name name = axes->items[0].axis;
    if (isKnownAxis(name.text)) {
      error(name.loc(), Diag::AxisSized, name.text);
      return Poison();
    }
    auto size = staticInt(*axes->items[0].size, env, call, name.text, 1);
    if (!size)
      return Poison();
    out.value = emitter.create<kvp::IotaOp>(
        loc, {}, {emitter.string("axis", name.text), emitter.integer("extent", *size)});
    return out;
  }
  Name axis = llvm::cast<NameExpr>(args.values[1])->name;
  std::optional<Tensor> like;
  if (args.values[0]) {
    like = tensorOperand(*args.values[0], env, "index");
    if (!like || !hasAxis(*like, axis, *args.values[0]))
      return Poison();
    if (axis.text == "head")
      *like = materialize(*like, loc);
    out.part = like->part;
  } else if (axis.text == "token") {
    out.value = placesOfHeads(emitter.create<kvp::PositionOp>(loc, current.cache), loc);
    return out;
  } else {
    like = tensorWith(axis, env, loc);
  }
  if (!like)
    return Poison();
  out.value = placesOfHeads(
      emitter.create<kvp::IndexOp>(loc, like->value, emitter.string("axis", axis.text)), loc);
  if (const Tensor::Renamed *r = like->findRenamed(axis.text))
    out.renamed.push_back({r->name, r->entries, ""});
  if (axis.text == "channel" && current.last("channel"))
    out.thinned.push_back("channel");
  return out.value ? Value(out) : Poison();
}

Value Evaluator::evaluateExtent(const CallExpr &call, const Arguments &args, Env &env) {
  mlir::Location loc = at(call.callee.loc());
  Name axis = args.axes.front();
  std::optional<Tensor> like;
  if (args.values[0]) {
    like = tensorOperand(*args.values[0], env, "extent");
    if (!like || !hasAxis(*like, axis, *args.values[0]))
      return Poison();
    if (axis.text == "head" && like->repeated)
      return dim(kvp::Dim::Heads, loc);
  } else if (axis.text == "token") {
    return dim(kvp::Dim::Length, loc);
  } else if (axis.text == "head") {
    return dim(kvp::Dim::Heads, loc);
  } else if (axis.text == "group") {
    return dim(kvp::Dim::Groups, loc);
  } else if (axis.text == "channel") {
    return dim(kvp::Dim::Channels, loc);
  } else if (axis.text == "layer") {
    return dim(kvp::Dim::Layers, loc);
  } else {
    like = tensorWith(axis, env, loc);
  }
  if (!like)
    return Poison();
  kvp::NamedTensorType type = like->type();
  // A window of queries has fewer where the cache is shorter.
  if (kvp::AxisAttr a = type.getAxis(axis.text); a.isStatic() && axis.text != "query")
    return Host::number(Number::of(a.getExtent()));
  auto value = emitter.createAs<kvp::ExtentOp>(loc, emitter.i64(), like->value,
                                               emitter.string("axis", axis.text));
  return runtimeHost(Element::Int, value, "the extent of `" + axis.text.str() + "`");
}

Value Evaluator::evaluateProtect(const CallExpr &call, const Arguments &args, Env &env) {
  auto x = tensorOperand(*args.values[0], env, "protect", false);
  Operand condition{args.values[1], evaluate(*args.values[1], env)};
  if (!x || condition.value.isPoison())
    return Poison();
  mlir::Location loc = at(call.callee.loc());
  Tensor out = *x;
  out.input.reset();
  mlir::Value protect;
  if (auto *host = condition.value.as<Host>(); host && host->element == Element::Bool) {
    if (host->known && !host->known->truth())
      return out;
    if (x->type().getAxes().empty())
      return typeError(*args.values[0], "`protect`", "a score", *x);
    protect = spread(*host, x->value, x->type().getAxes().front().getName(), loc);
  } else if (auto *tensor = condition.value.as<Tensor>();
             tensor && tensor->element() == Element::Bool) {
    if (!compatible({args.values[0], *x}, condition, call.callee.loc()))
      return Poison();
    protect = tensor->value;
    if (llvm::any_of(tensor->type().getAxes(),
                     [&](kvp::AxisAttr a) { return !x->has(a.getName()); }))
      out = broadcast(out, protect, loc);
    if (!out.part)
      out.part = tensor->part;
  } else {
    return typeError(*args.values[1], "`protect`", "a condition", condition.value);
  }
  out.protect = orNull(out.protect, protect, loc);
  out.protectedAt = call.callee.loc();
  return out;
}
