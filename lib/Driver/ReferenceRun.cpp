//===- ReferenceRun.cpp - a press on a batch, by the reference interpreter --------------------===//
#include "lib/Driver/ReferenceRun.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringMap.h"

#include <cmath>
#include <limits>

using namespace kvpc;
using namespace kvpc::driver;
using reference::Argument;
using reference::Axes;
using reference::Kept;
using reference::Tensor;

static llvm::Error inRow(int64_t row, int64_t rows, llvm::Error error) {
  if (rows == 1)
    return error;
  return llvm::createStringError("row " + llvm::Twine(row) + ": " +
                                 llvm::toString(std::move(error)));
}

//===------------------------------------------------------------------------------------------===//
// Arguments
//===------------------------------------------------------------------------------------------===//

static Argument argumentOf(const runtime::Value &value) {
  switch (value.kind) {
  case runtime::Value::Drop:
    return reference::Budget{value.f};
  case runtime::Value::Keep:
    return reference::Budget{std::nullopt, value.i};
  case runtime::Value::Float:
    return value.f;
  default:
    return value.i;
  }
}

/// `extents`: of the axes that are known, to which the weight adds its own.
static llvm::Expected<Tensor> weightOf(const runtime::Weight &weight, const Batch &batch,
                                       llvm::StringMap<int64_t> &extents) {
  const Array *array = batch.find("weight." + weight.name);
  if (!array)
    return llvm::createStringError("the press needs the weight `" + weight.name +
                                   "`; the input has no `weight." + weight.name + "`");
  if (array->shape.size() != weight.axes.size())
    return llvm::createStringError("`weight." + weight.name + "` is " + array->str() +
                                   "; need the axes [" + llvm::join(weight.axes, ", ") + "]");
  Axes axes;
  for (auto [name, extent] : llvm::zip_equal(weight.axes, array->shape)) {
    if (name == "layer" && extent != batch.host.layers)
      return llvm::createStringError("`weight." + weight.name + "` has " + llvm::Twine(extent) +
                                     " layers; the call is of " + llvm::Twine(batch.host.layers));
    int64_t known = extents.try_emplace(llvm::StringRef(name).rtrim('\''), extent).first->second;
    if (known != extent)
      return llvm::createStringError("`weight." + weight.name + "` is " + array->str() + "; need " +
                                     llvm::Twine(known) + " along `" + name + "`");
    axes.push_back({name, extent});
  }
  std::vector<float> values(array->size());
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = array->get<float>(i);
  return Tensor::ofFloats(std::move(axes), std::move(values));
}

static llvm::Expected<std::vector<Argument>> argumentsOf(const BoundProgram &program,
                                                         const Batch &batch) {
  std::vector<Argument> out;
  for (const runtime::Value &value : program.arguments) {
    bool layered = value.kind == runtime::Value::List;
    if (layered && static_cast<int64_t>(value.items.size()) != batch.host.layers)
      return llvm::createStringError("a parameter has " + llvm::Twine(value.items.size()) +
                                     " values, the model " + llvm::Twine(batch.host.layers) +
                                     " layers; give `--layers` [kvm-parameter]");
    out.push_back(argumentOf(layered ? value.items[batch.host.layer] : value));
  }
  llvm::StringMap<int64_t> extents{{"head", batch.heads}, {"channel", batch.channels}};
  for (const runtime::Weight &weight : program.header->weights) {
    auto tensor = weightOf(weight, batch, extents);
    if (!tensor)
      return tensor.takeError();
    out.push_back(std::move(*tensor));
  }
  // Checked against the program, which may have come with a module that is not ours.
  kvp::PressOp press = program.press;
  mlir::Block &body = press.getBody().front();
  bool fits = out.size() + 1 == body.getNumArguments();
  for (size_t i = 0; fits && i < out.size(); ++i) {
    mlir::Type type = body.getArgument(i + 1).getType();
    fits = mlir::isa<kvp::NamedTensorType>(type) == std::holds_alternative<Tensor>(out[i]) &&
           mlir::isa<kvp::BudgetType>(type) == std::holds_alternative<reference::Budget>(out[i]);
  }
  if (!fits)
    return llvm::createStringError("the module's program and header disagree about parameters; "
                                   "compile the press again");
  return out;
}

//===------------------------------------------------------------------------------------------===//
// Given scores
//===------------------------------------------------------------------------------------------===//

/// Row `row` of `scores.<i>` for the i-th selection. Entries of `token` are those of the given
/// tokens; other axes count from the row's first entry.
static llvm::Expected<reference::Given> givenOf(const BoundProgram &program, const Arrays &arrays,
                                                const Batch &batch, int64_t row) {
  reference::Given out;
  kvp::PressOp press = program.press;
  int64_t number = -1;
  for (mlir::Operation &op : press.getBody().front()) {
    number += mlir::isa<kvp::TopkOp, kvp::MaskOp>(op);
    auto topk = mlir::dyn_cast<kvp::TopkOp>(op);
    if (!topk)
      continue;
    for (llvm::StringRef kind : {"scores", "protected"}) {
      auto it = arrays.find((kind + "." + llvm::Twine(number)).str());
      if (it == arrays.end())
        continue;
      const Array &array = it->second;
      bool scores = kind == "scores";
      auto axisAttrs = topk.getScore().getType().getAxes();
      llvm::StringRef dtype = scores ? "F32" : "BOOL";
      if (array.dtype != dtype || array.shape.size() != axisAttrs.size() + 1 ||
          array.shape[0] != batch.batch)
        return llvm::createStringError("`" + it->first + "` is " + array.str() + "; need " + dtype +
                                       " with the batch first and the axes of the score");
      Axes axes;
      for (auto [attr, extent] : llvm::zip_equal(axisAttrs, llvm::drop_begin(array.shape)))
        axes.push_back({attr.getName().str(), extent});
      Tensor tensor(axes, scores ? reference::Element::Float : reference::Element::Bool);
      int64_t n = tensor.size();
      for (int64_t i = 0; i < n; ++i)
        if (scores)
          tensor.floats[i] = array.get<float>(row * n + i);
        else
          tensor.bools[i] = array.get<uint8_t>(row * n + i);
      // The first selection's scores are written over all given tokens, padding included.
      llvm::StringRef element = topk.getElementAxis();
      int64_t entries = tensor.extent(element);
      if (element == "token" && entries == batch.tokens) {
        std::vector<int64_t> ids(batch.length[row]);
        for (int64_t i = 0; i < batch.length[row]; ++i)
          ids[i] = batch.start[row] + i;
        int64_t length = ids.size();
        tensor = reference::at(tensor, "token", Tensor::ofInts({{"token", length}}, ids));
      } else if (element == "part") {
        int64_t size = *topk.getPartSize(), parts = (batch.length[row] + size - 1) / size;
        if (parts < entries) {
          std::vector<int64_t> ids(parts);
          for (int64_t i = 0; i < parts; ++i)
            ids[i] = i;
          tensor = reference::at(tensor, "part", Tensor::ofInts({{"part", parts}}, ids));
        }
      }
      (scores ? out.scores : out.protects)[number] = std::move(tensor);
    }
  }
  return out;
}

//===------------------------------------------------------------------------------------------===//
// State
//===------------------------------------------------------------------------------------------===//

llvm::Expected<States> driver::readStates(const Arrays &arrays) {
  States out;
  for (auto &[name, array] : arrays) {
    auto [rowText, rest] = llvm::StringRef(name).split('.');
    auto [numberText, headText] = rest.split('.');
    int64_t row, number, head;
    if (array.dtype != "I64" || array.shape.size() != 1 || rowText.getAsInteger(10, row) ||
        numberText.getAsInteger(10, number) || headText.getAsInteger(10, head) || row < 0 ||
        head < 0 || row > (1 << 24) || head > (1 << 24))
      return llvm::createStringError("the state file was not written by `kvpc run --state`");
    if (static_cast<int64_t>(out.size()) <= row)
      out.resize(row + 1);
    reference::Sets &sets = out[row][number];
    if (static_cast<int64_t>(sets.size()) <= head)
      sets.resize(head + 1);
    int64_t before = -1;
    for (int64_t i = 0; i < array.shape[0]; ++i) {
      sets[head].push_back(array.get<int64_t>(i));
      if (sets[head].back() <= before)
        return llvm::createStringError("the state file's choices do not ascend");
      before = sets[head].back();
    }
  }
  return out;
}

Arrays driver::writeStates(const States &states) {
  Arrays out;
  for (auto [row, state] : llvm::enumerate(states))
    for (auto &[number, sets] : state)
      for (auto [head, ids] : llvm::enumerate(sets)) {
        Array array("I64", {static_cast<int64_t>(ids.size())});
        for (auto [i, id] : llvm::enumerate(ids))
          array.put<int64_t>(i, id);
        out.emplace((llvm::Twine(row) + "." + llvm::Twine(number) + "." + llvm::Twine(head)).str(),
                    std::move(array));
      }
  return out;
}

//===------------------------------------------------------------------------------------------===//
// Results
//===------------------------------------------------------------------------------------------===//

/// Copies the kept entries of keys or values, bytes as they are.
static Array gather(const Array &from, const std::vector<Kept> &kept, const Batch &batch,
                    int64_t count, bool keys) {
  int64_t width = from.shape[3], outWidth = width, bytes = elementSize(from.dtype);
  if (keys)
    for (const Kept &row : kept)
      if (row.channels)
        outWidth = (*row.channels)[0].size();
  Array out(from.dtype, {batch.batch, batch.heads, count, outWidth});
  for (int64_t row = 0; row < batch.batch; ++row)
    for (int64_t head = 0; head < batch.heads; ++head)
      for (auto [to, token] : llvm::enumerate(kept[row].tokens[head]))
        for (int64_t c = 0; c < outWidth; ++c) {
          int64_t channel = keys && kept[row].channels ? (*kept[row].channels)[head][c] : c;
          int64_t line = row * batch.heads + head;
          int64_t source = (line * batch.tokens + batch.start[row] + token) * width + channel;
          int64_t target = (line * count + static_cast<int64_t>(to)) * outWidth + c;
          std::memcpy(out.bytes.data() + target * bytes, from.bytes.data() + source * bytes, bytes);
        }
  return out;
}

static Arrays resultOf(const std::vector<Kept> &kept, const Batch &batch, bool dropsChannels) {
  int64_t count = 0, channels = batch.channels;
  for (const Kept &row : kept) {
    for (const std::vector<int64_t> &ids : row.tokens)
      count = std::max<int64_t>(count, ids.size());
    if (row.channels)
      channels = (*row.channels)[0].size();
  }
  Arrays out;
  out["keys"] = gather(*batch.find("keys"), kept, batch, count, /*keys=*/true);
  out["values"] = gather(*batch.find("values"), kept, batch, count, /*keys=*/false);
  Array tokens("I64", {batch.batch, batch.heads, count}),
      lengths("I64", {batch.batch, batch.heads});
  Array channelIds("I64", {batch.batch, batch.heads, channels});
  for (int64_t i = 0; i < tokens.size(); ++i)
    tokens.put<int64_t>(i, -1);
  for (int64_t i = 0; i < channelIds.size(); ++i)
    channelIds.put<int64_t>(i, -1);
  for (int64_t row = 0; row < batch.batch; ++row)
    for (int64_t head = 0; head < batch.heads; ++head) {
      int64_t line = row * batch.heads + head;
      lengths.put<int64_t>(line, kept[row].tokens[head].size());
      for (auto [i, token] : llvm::enumerate(kept[row].tokens[head]))
        tokens.put<int64_t>(line * count + i, batch.start[row] + token);
      if (kept[row].channels)
        for (auto [i, channel] : llvm::enumerate((*kept[row].channels)[head]))
          channelIds.put<int64_t>(line * channels + i, channel);
    }
  out["tokens"] = std::move(tokens);
  out["lengths"] = std::move(lengths);
  if (dropsChannels)
    out["channels"] = std::move(channelIds);
  return out;
}

llvm::Expected<Arrays> driver::runReference(const BoundProgram &program, const Batch &batch,
                                            States &states, const Arrays &given) {
  auto arguments = argumentsOf(program, batch);
  if (!arguments)
    return arguments.takeError();
  if (static_cast<int64_t>(states.size()) < batch.batch)
    states.resize(batch.batch);
  std::vector<Kept> kept(batch.batch);
  for (int64_t row = 0; row < batch.batch; ++row) {
    auto scores = givenOf(program, given, batch, row);
    if (!scores)
      return scores.takeError();
    auto one = reference::select(program.press, batch.row(row), *arguments, &states[row], *scores);
    if (!one)
      return inRow(row, batch.batch, one.takeError());
    kept[row] = std::move(*one);
  }
  return resultOf(kept, batch, program.header->dropsChannels);
}

llvm::Expected<Arrays> driver::scoreReference(const BoundProgram &program, const Batch &batch) {
  auto arguments = argumentsOf(program, batch);
  if (!arguments)
    return arguments.takeError();
  kvp::PressOp press = program.press;
  auto result = mlir::cast<kvp::ReturnOp>(press.getBody().front().getTerminator());
  if (!result.getScore())
    return llvm::createStringError("press `" + press.getSymName() +
                                   "` has no score: its first stage is a mask");
  Axes axes{{"batch", batch.batch}};
  int64_t partSize = 1;
  for (auto &[axis, extent] : program.header->scoreExtents)
    if (axis == "part")
      partSize = extent;
  for (kvp::AxisAttr axis : result.getScore().getType().getAxes()) {
    llvm::StringRef name = axis.getName();
    int64_t extent = name == "head"      ? batch.heads
                     : name == "token"   ? batch.tokens
                     : name == "channel" ? batch.channels
                     : name == "part"    ? (batch.tokens + partSize - 1) / partSize
                                         : axis.getExtent();
    axes.push_back({name.str(), extent});
  }
  std::vector<int64_t> shape;
  for (const reference::Axis &axis : axes)
    shape.push_back(axis.extent);
  Array scores("F32", shape), shields("BOOL", shape);
  for (int64_t i = 0; i < scores.size(); ++i)
    scores.put<float>(i, std::numeric_limits<float>::quiet_NaN());
  for (int64_t row = 0; row < batch.batch; ++row) {
    if (batch.length[row] == 0)
      continue;
    auto one = reference::score(program.press, batch.row(row), *arguments);
    if (!one)
      return inRow(row, batch.batch, one.takeError());
    // Where the row's entries stand among all.
    std::vector<int64_t> to{row};
    for (size_t i = 1; i < axes.size(); ++i) {
      std::vector<int64_t> next;
      int64_t first = axes[i].name == "token" ? batch.start[row] : 0;
      for (int64_t base : to)
        for (int64_t k = 0; k < one->values.axes[i - 1].extent; ++k)
          next.push_back(base * axes[i].extent + first + k);
      to = std::move(next);
    }
    std::vector<int64_t> there;
    if (one->values.present)
      there = reference::offsets(one->values.axes, *one->values.present);
    for (auto [i, target] : llvm::enumerate(to)) {
      if (!there.empty() && !one->values.present->bools[there[i]])
        continue;
      scores.put<float>(target, one->values.floats[i]);
      shields.put<uint8_t>(target, one->protect.bools[i]);
    }
  }
  Arrays out;
  out["scores"] = std::move(scores);
  out["protected"] = std::move(shields);
  return out;
}
