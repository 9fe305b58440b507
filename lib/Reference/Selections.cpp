//===- Selections.cpp - topk and mask over a cache state --------------------------------------===//
#include "lib/Reference/Evaluation.h"

#include "llvm/ADT/STLExtras.h"

using namespace kvpc;
using namespace kvpc::reference;

static int64_t sharedLayers(mlir::Operation *op) {
  if (auto topk = mlir::dyn_cast<kvp::TopkOp>(op))
    return topk.getReuse().value_or(1);
  if (auto mask = mlir::dyn_cast<kvp::MaskOp>(op))
    return mask.getReuse().value_or(1);
  return 1;
}

bool kvpc::reference::follows(mlir::Operation *op, int64_t layer) {
  return layer % sharedLayers(op) != 0;
}

int64_t Evaluation::selectionNumber(mlir::Operation *op) const {
  int64_t number = 0;
  for (mlir::Operation &other : *op->getBlock()) {
    if (&other == op)
      break;
    number += mlir::isa<kvp::TopkOp, kvp::MaskOp>(other);
  }
  return number;
}

llvm::Expected<std::optional<Sets>> Evaluation::followed(mlir::Operation *op, const Cache &left,
                                                         int64_t entries) {
  if (!follows(op, row.layer))
    return std::nullopt;
  int64_t leader = row.layer - row.layer % sharedLayers(op);
  auto it = state ? state->find(selectionNumber(op)) : State::iterator();
  if (!state || it == state->end())
    return failed("layer %lld takes the choice of layer %lld: give the state that it left",
                  static_cast<long long>(row.layer), static_cast<long long>(leader));
  bool fits = it->second.size() == left.tokens.size();
  for (const std::vector<int64_t> &ids : it->second)
    fits &= ids.empty() || ids.back() < entries;
  if (!fits)
    return failed("the choice of layer %lld was made on another cache: layers that share one see "
                  "the same tokens",
                  static_cast<long long>(leader));
  return it->second;
}

Cache Evaluation::narrowed(const Cache &left, const Sets &chosen, bool channels) const {
  Cache out = left;
  if (channels && !out.channels) {
    std::vector<int64_t> all(row.channels);
    for (int64_t i = 0; i < row.channels; ++i)
      all[i] = i;
    out.channels = Sets(row.heads, all);
  }
  for (int64_t head = 0; head < row.heads; ++head) {
    std::vector<int64_t> &ids = channels ? (*out.channels)[head] : out.tokens[head];
    std::vector<int64_t> kept;
    for (int64_t i : chosen[head])
      kept.push_back(ids[i]);
    ids = std::move(kept);
  }
  return out;
}

/// One head's entries of a tensor over some of [head, `axis`], the first `n` of them.
template <typename T>
static std::vector<T> line(const Tensor &tensor, const std::vector<T> &entries,
                           llvm::StringRef axis, int64_t head, int64_t heads, int64_t n) {
  std::vector<int64_t> at = offsets(Axes{{"head", heads}, {axis.str(), n}}, tensor);
  std::vector<T> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back(entries[at[head * n + i]]);
  return out;
}

/// Tokens of parts of `size`, of n tokens.
static std::vector<int64_t> tokensOfParts(const std::vector<int64_t> &parts, int64_t size,
                                          int64_t n) {
  std::vector<int64_t> tokens;
  for (int64_t part : parts)
    for (int64_t i = part * size; i < std::min((part + 1) * size, n); ++i)
      tokens.push_back(i);
  return tokens;
}

llvm::Expected<Value> Evaluation::topk(kvp::TopkOp op) {
  const Cache &left = cache(op.getCache());
  llvm::StringRef axis = op.getElementAxis();
  bool channels = axis == "channel";
  int64_t number = selectionNumber(op);
  int64_t size = axis == "part" ? static_cast<int64_t>(*op.getPartSize()) : 1;
  int64_t width = left.channels ? (*left.channels)[0].size() : row.channels;
  auto entriesOf = [&](int64_t tokens) { return channels ? width : (tokens + size - 1) / size; };

  auto shared = followed(op, left, channels ? width : left.length());
  if (!shared)
    return shared.takeError();
  if (*shared)
    return std::make_shared<const Cache>(narrowed(left, **shared, channels));

  auto givenScore = given.scores.find(number), givenProtect = given.protects.find(number);
  const Tensor &score =
      givenScore != given.scores.end() ? givenScore->second : tensor(op.getScore());
  const Tensor *protect = op.getProtect() ? &tensor(op.getProtect()) : nullptr;
  if (givenProtect != given.protects.end())
    protect = &givenProtect->second;
  int64_t entries = entriesOf(left.length());
  for (const Tensor *t : {&score, protect})
    if (t && t->has(axis) && t->extent(axis) != entries)
      return failed("selection %lld: the score has %lld entries along `%s`, the cache has %lld",
                    static_cast<long long>(number), static_cast<long long>(t->extent(axis)),
                    axis.str().c_str(), static_cast<long long>(entries));

  Sets chosen(row.heads);
  for (int64_t head = 0; head < row.heads; ++head) {
    int64_t tokens = left.tokens[head].size(), n = entriesOf(tokens);
    std::vector<float> values = line(score, score.floats, axis, head, row.heads, n);
    std::vector<uint8_t> shield;
    if (protect)
      shield = line(*protect, protect->bools, axis, head, row.heads, n);
    chosen[head] = selectBest(values, shield, integer(op.getCount()));
    if (axis == "part")
      chosen[head] = tokensOfParts(chosen[head], size, tokens);
  }
  if (state && op.getReuse())
    (*state)[number] = chosen;
  return std::make_shared<const Cache>(narrowed(left, chosen, channels));
}

llvm::Expected<Value> Evaluation::mask(kvp::MaskOp op) {
  const Cache &left = cache(op.getCache());
  auto shared = followed(op, left, left.length());
  if (!shared)
    return shared.takeError();
  if (*shared)
    return std::make_shared<const Cache>(narrowed(left, **shared, false));

  const Tensor &condition = tensor(op.getCondition());
  Sets chosen(row.heads);
  for (int64_t head = 0; head < row.heads; ++head) {
    int64_t n = left.tokens[head].size();
    std::vector<uint8_t> holds = line(condition, condition.bools, "token", head, row.heads, n);
    for (int64_t i = 0; i < n; ++i)
      if (holds[i])
        chosen[head].push_back(i);
    if (chosen[head].empty() && n > 0)
      chosen[head].push_back(n - 1);
  }
  if (state && op.getReuse())
    (*state)[selectionNumber(op)] = chosen;
  return std::make_shared<const Cache>(narrowed(left, chosen, false));
}
