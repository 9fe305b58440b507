//===- Selections.cpp - topk and mask over a cache state --------------------------------------===//
#include "dialect/IR/Kvplan.h"
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

/// Tokens of parts, of n tokens; of none the newest.
static std::vector<int64_t> tokensOfParts(const std::vector<int64_t> &parts, const Cut &cut,
                                          int64_t n) {
  std::vector<int64_t> tokens;
  int64_t first = cut.parts(n).first;
  for (int64_t part : parts)
    for (int64_t i = 0; i < cut.size && first + part * cut.size + i < cut.end(n); ++i)
      tokens.push_back(first + part * cut.size + i);
  if (tokens.empty() && n > 0)
    tokens.push_back(n - 1);
  return tokens;
}

/// What a selection of parts selects from. The score knows which of them are whole.
Cut Evaluation::partsOf(kvp::TopkOp op) const {
  Cut cut{static_cast<int64_t>(op.getPartSize().value_or(1))};
  if (op.getPartFrom())
    cut.from = integer(op.getPartFrom());
  if (op.getPartTo())
    cut.to = integer(op.getPartTo());
  if (auto partition = kvplan::partitionOf(op.getScore(), "part"))
    cut.whole = partition.getWhole();
  return cut;
}

llvm::SmallVector<mlir::Value> Evaluation::needsOf(mlir::Operation *op) const {
  llvm::SmallVector<mlir::Value> needs(op->getOperands());
  // The cache comes first; a follower takes nothing else, and given scores are not computed.
  if (follows(op, row.layer))
    needs.resize(1);
  else if (auto topk = mlir::dyn_cast<kvp::TopkOp>(op);
           topk && given.scores.count(selectionNumber(op)))
    llvm::erase(needs, topk.getScore());
  return needs;
}

Evaluation Evaluation::asSeenBy(int64_t seer) const {
  Evaluation out = *this;
  out.head = seer;
  for (auto &[value, known] : values)
    if (!mlir::isa<kvp::CacheType>(value.getType()) && value.getDefiningOp())
      out.values.erase(value);
  return out;
}

/// One head after the other. Where they have different numbers of entries each evaluates the
/// operands anew, with its own length.
llvm::Error Evaluation::eachHead(mlir::Operation *op, const Cache &left,
                                 llvm::function_ref<llvm::Error(const Evaluation &, int64_t)> see) {
  bool ragged = left.present() != nullptr;
  for (int64_t seer = 0; seer < row.heads; ++seer) {
    std::optional<Evaluation> own;
    if (ragged) {
      own.emplace(asSeenBy(seer));
      for (mlir::Value need : needsOf(op))
        if (llvm::Error error = own->demand(need))
          return error;
    }
    if (llvm::Error error = see(own ? *own : *this, seer))
      return error;
  }
  return llvm::Error::success();
}

template <typename Op>
llvm::Expected<Sets> Evaluation::chooseAll(Op op, const Cache &left) {
  Sets chosen;
  auto choose = [&](const Evaluation &own, int64_t seer) -> llvm::Error {
    llvm::Expected<std::vector<int64_t>> one = own.choose(op, seer);
    if (!one)
      return one.takeError();
    chosen.push_back(std::move(*one));
    return llvm::Error::success();
  };
  if (llvm::Error error = eachHead(op, left, choose))
    return error;
  auto topk = mlir::dyn_cast<kvp::TopkOp>(op.getOperation());
  bool channels = topk && topk.getElementAxis() == "channel";
  if (channels && !llvm::all_equal(llvm::map_range(chosen, [](auto &ids) { return ids.size(); })))
    return failed("heads would keep different numbers of channels");
  return chosen;
}

llvm::Expected<Evaluation::Contest> Evaluation::contest(kvp::TopkOp op, int64_t seer) const {
  const Cache &left = cache(op.getCache());
  llvm::StringRef axis = op.getElementAxis();
  int64_t number = selectionNumber(op);
  Cut cut = partsOf(op);
  auto entriesOf = [&](int64_t tokens) {
    if (axis == "channel")
      return left.channels ? static_cast<int64_t>((*left.channels)[0].size()) : row.channels;
    return cut.parts(tokens).second;
  };
  auto givenScore = given.scores.find(number), givenProtect = given.protects.find(number);
  const Tensor &score =
      givenScore != given.scores.end() ? givenScore->second : tensor(op.getScore());
  const Tensor *protect = op.getProtect() ? &tensor(op.getProtect()) : nullptr;
  if (givenProtect != given.protects.end())
    protect = &givenProtect->second;
  int64_t entries = entriesOf(left.length());
  // Given scores are over all parts that there may be.
  bool longer = axis == "part" && givenScore != given.scores.end();
  for (const Tensor *t : {&score, protect})
    if (t && t->has(axis) && (longer ? t->extent(axis) < entries : t->extent(axis) != entries))
      return failed("selection %lld: the score has %lld entries along `%s`, the cache has %lld",
                    static_cast<long long>(number), static_cast<long long>(t->extent(axis)),
                    axis.str().c_str(), static_cast<long long>(entries));

  int64_t n = entriesOf(left.tokens[seer].size());
  Contest out;
  out.scores = line(score, score.floats, axis, seer, row.heads, n);
  if (protect)
    out.shield = line(*protect, protect->bools, axis, seer, row.heads, n);
  if (op.countsData()) {
    const Tensor &counts = tensor(op.getCount());
    out.count = counts.ints[offsets(Axes{{"head", row.heads}}, counts)[seer]];
  } else {
    out.count = integer(op.getCount());
  }
  out.count = std::min(std::max<int64_t>(out.count, 1), n);
  return out;
}

llvm::Expected<std::vector<int64_t>> Evaluation::choose(kvp::TopkOp op, int64_t seer) const {
  auto own = contest(op, seer);
  if (!own)
    return own.takeError();
  std::vector<int64_t> chosen = selectBest(own->scores, own->shield, own->count);
  if (op.getElementAxis() != "part")
    return chosen;
  int64_t tokens = cache(op.getCache()).tokens[seer].size();
  return tokensOfParts(chosen, partsOf(op), tokens);
}

/// One budget for all heads: what each has for certain, then the best of the others.
llvm::Expected<Sets> Evaluation::chooseJointly(kvp::TopkOp op, const Cache &left) {
  struct Entry {
    int64_t head, token;
    bool shield;
    float score;
  };
  Sets chosen(row.heads);
  std::vector<Entry> others;
  int64_t budget = 0;
  auto enter = [&](const Evaluation &own, int64_t head) -> llvm::Error {
    auto mine = own.contest(op, head);
    if (!mine)
      return mine.takeError();
    double share = op.getAtLeast() ? own.number(op.getAtLeast()) : 0;
    int64_t certain = kvp::floatToInt(kvp::Fn::Int, share * static_cast<double>(mine->count));
    int64_t n = mine->scores.size();
    chosen[head] = selectBest(mine->scores, mine->shield, certain);
    budget += mine->count - static_cast<int64_t>(chosen[head].size());
    for (int64_t i = 0; i < n; ++i)
      if (!llvm::is_contained(chosen[head], i))
        others.push_back({head, i, !mine->shield.empty() && mine->shield[i], mine->scores[i]});
    return llvm::Error::success();
  };
  if (llvm::Error error = eachHead(op, left, enter))
    return error;
  llvm::sort(others, [](const Entry &a, const Entry &b) {
    if (a.shield != b.shield)
      return a.shield;
    if (better(a.score, b.score) || better(b.score, a.score))
      return better(a.score, b.score);
    auto placeA = std::pair(a.token, a.head), placeB = std::pair(b.token, b.head);
    return a.shield ? placeA > placeB : placeA < placeB; // of equal protected ones the newest
  });
  for (const Entry &entry : llvm::ArrayRef(others).take_front(budget))
    chosen[entry.head].push_back(entry.token);
  for (std::vector<int64_t> &ids : chosen)
    llvm::sort(ids);
  return chosen;
}

std::vector<int64_t> Evaluation::choose(kvp::MaskOp op, int64_t seer) const {
  const Tensor &condition = tensor(op.getCondition());
  int64_t n = cache(op.getCache()).tokens[seer].size();
  std::vector<uint8_t> holds = line(condition, condition.bools, "token", seer, row.heads, n);
  std::vector<int64_t> chosen;
  for (int64_t i = 0; i < n; ++i)
    if (holds[i])
      chosen.push_back(i);
  if (chosen.empty() && n > 0)
    chosen.push_back(n - 1);
  return chosen;
}

llvm::Expected<Value> Evaluation::topk(kvp::TopkOp op) {
  const Cache left = cache(op.getCache());
  bool channels = op.getElementAxis() == "channel";
  int64_t width = left.channels ? (*left.channels)[0].size() : row.channels;
  auto shared = followed(op, left, channels ? width : left.length());
  if (!shared)
    return shared.takeError();
  if (*shared)
    return std::make_shared<const Cache>(narrowed(left, **shared, channels));
  auto chosen = op.getJoint() ? chooseJointly(op, left) : chooseAll(op, left);
  if (!chosen)
    return chosen.takeError();
  if (state && op.getReuse())
    (*state)[selectionNumber(op)] = *chosen;
  return std::make_shared<const Cache>(narrowed(left, *chosen, channels));
}

llvm::Expected<Value> Evaluation::mask(kvp::MaskOp op) {
  const Cache left = cache(op.getCache());
  auto shared = followed(op, left, left.length());
  if (!shared)
    return shared.takeError();
  if (*shared)
    return std::make_shared<const Cache>(narrowed(left, **shared, false));
  auto chosen = chooseAll(op, left);
  if (!chosen)
    return chosen.takeError();
  if (state && op.getReuse())
    (*state)[selectionNumber(op)] = *chosen;
  return std::make_shared<const Cache>(narrowed(left, *chosen, false));
}
