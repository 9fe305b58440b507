//===- Inputs.cpp - what a cache state sees of the host's tensors -----------------------------===//
#include "lib/Reference/Evaluation.h"

#include "llvm/ADT/STLExtras.h"

#include <cmath>
#include <numeric>

using namespace kvpc;
using namespace kvpc::reference;

int64_t Cache::length() const {
  size_t n = 0;
  for (const std::vector<int64_t> &ids : tokens)
    n = std::max(n, ids.size());
  return n;
}

Shared Cache::present() const {
  if (llvm::all_equal(llvm::map_range(tokens, [](const auto &ids) { return ids.size(); })))
    return nullptr;
  int64_t n = length(), heads = tokens.size();
  Tensor there({{"head", heads}, {"token", n}}, Element::Bool);
  for (int64_t head = 0; head < heads; ++head)
    std::fill_n(there.bools.begin() + head * n, tokens[head].size(), 1);
  return std::make_shared<Tensor>(std::move(there));
}

static std::vector<int64_t> range(int64_t from, int64_t to) {
  std::vector<int64_t> ids(std::max<int64_t>(to - from, 0));
  std::iota(ids.begin(), ids.end(), from);
  return ids;
}

/// The channels of a head's keys at this state.
static std::vector<int64_t> channelsOf(const Cache &cache, int64_t head, int64_t all) {
  if (cache.channels)
    return (*cache.channels)[head];
  return range(0, all);
}

/// [head, token, channel] of what is left, `source` being over all tokens and channels.
static Tensor gather(const Cache &cache, const Tensor &source, bool allChannels) {
  int64_t heads = source.extent("head"), tokens = source.extent("token");
  int64_t width = source.extent("channel"), n = cache.length();
  int64_t kept = allChannels || !cache.channels ? width : (*cache.channels)[0].size();
  Tensor out({{"head", heads}, {"token", n}, {"channel", kept}}, Element::Float);
  out.present = cache.present();
  for (int64_t head = 0; head < heads; ++head) {
    std::vector<int64_t> channels =
        allChannels ? channelsOf({}, head, width) : channelsOf(cache, head, width);
    for (auto [to, token] : llvm::enumerate(cache.tokens[head]))
      for (auto [c, channel] : llvm::enumerate(channels))
        out.floats[(head * n + to) * kept + c] =
            source.floats[(head * tokens + token) * width + channel];
  }
  return out;
}

/// The last `n` along `query`.
static Tensor lastQueries(const Tensor &source, int64_t n) {
  int64_t first = source.extent("query") - n;
  Tensor picked = at(source, "query", Tensor::ofInts({{"query", n}}, range(first, first + n)));
  llvm::SmallVector<llvm::StringRef> order;
  for (const Axis &axis : source.axes)
    order.push_back(axis.name);
  return picked.permuted(order);
}

llvm::Expected<Tensor> Evaluation::keysOf(const Cache &left, bool unrotated) {
  if (!unrotated)
    return gather(left, row.keys, /*allChannels=*/false);
  if (!row.rope)
    return failed("the press needs unrotated keys: give the rotary frequencies of the model");
  if (left.channels)
    return failed("unrotated keys need all channels, a selection dropped some");
  Cache all;
  all.tokens.assign(row.heads, range(0, row.length));
  auto positions = originalPositions(all, /*perHead=*/true);
  if (!positions)
    return positions.takeError();
  return gather(left, unrotate(row.keys, *positions, *row.rope), /*allChannels=*/true);
}

llvm::Expected<Tensor> Evaluation::queriesOf(kvp::InputOp op, const Cache &left) {
  bool rotated = op.getInput() == kvp::Input::Queries;
  const std::optional<Tensor> &source = rotated ? row.queries : row.unrotatedQueries;
  if (!source)
    return failed("the press needs `%s`, which were not given [kvm-missing-input]",
                  rotated ? "queries" : "unrotated_queries");
  int64_t have = source->extent("query");
  int64_t need =
      op.getLast() ? std::min<int64_t>(*op.getLast(), row.length) : std::min(have, row.length);
  if (have < need)
    return failed("the press needs the last %lld queries of each row, %lld were given",
                  static_cast<long long>(need), static_cast<long long>(have));
  Tensor queries = lastQueries(*source, need);
  if (!left.channels)
    return queries;
  int64_t kept = (*left.channels)[0].size();
  std::vector<int64_t> ids;
  for (const std::vector<int64_t> &channels : *left.channels)
    llvm::append_range(ids, channels);
  Tensor index = Tensor::ofInts({{"head", row.heads}, {"channel", kept}}, ids);
  return at(queries, "channel", index).permuted({"head", "group", "query", "channel"});
}

llvm::Expected<Tensor> Evaluation::input(kvp::InputOp op) {
  const Cache &left = cache(op.getCache());
  switch (op.getInput()) {
  case kvp::Input::Keys:
  case kvp::Input::Unrotated_keys:
    return keysOf(left, op.getInput() == kvp::Input::Unrotated_keys);
  case kvp::Input::Values:
    return gather(left, row.values, /*allChannels=*/true);
  case kvp::Input::Queries:
  case kvp::Input::Unrotated_queries:
    return queriesOf(op, left);
  case kvp::Input::Hidden:
    if (!row.hidden)
      return failed("the press needs `hidden`, which was not given");
    return lastQueries(*row.hidden, std::min(row.hidden->extent("query"), row.length));
  case kvp::Input::Output_weight:
    if (!row.outputWeight)
      return failed("the press needs `output_weight`, which was not given");
    return *row.outputWeight;
  }
  llvm_unreachable("all inputs are covered");
}

/// Over [head, token], or [token] where a program sees one position for all heads.
llvm::Expected<Tensor> Evaluation::originalPositions(const Cache &left, bool perHead) {
  int64_t n = left.length();
  Tensor out({{"head", row.heads}, {"token", n}}, Element::Int);
  out.present = left.present();
  for (int64_t head = 0; head < row.heads; ++head)
    for (auto [to, token] : llvm::enumerate(left.tokens[head]))
      out.ints[head * n + to] =
          row.originalPositions ? row.originalPositions->ints[head * row.length + token] : token;
  if (perHead)
    return out;
  for (int64_t head = 1; head < row.heads; ++head)
    if (!std::equal(out.ints.begin(), out.ints.begin() + n, out.ints.begin() + head * n))
      return failed("original positions differ between heads, the press sees one for all");
  out.ints.resize(n);
  return Tensor::ofInts({{"token", n}}, std::move(out.ints));
}

llvm::Expected<Tensor> Evaluation::causal(kvp::CausalOp op) {
  bool perHead = op.getResult().getType().hasAxis("head");
  auto positions = originalPositions(cache(op.getCache()), perHead);
  if (!positions)
    return positions;
  int64_t have = row.length;
  for (const auto *source : {&row.hidden, &row.unrotatedQueries, &row.queries})
    if (*source)
      have = std::min(row.length, (*source)->extent("query"));
  int64_t n = op.getLast() ? std::min<int64_t>(*op.getLast(), row.length) : have;
  Tensor at({{"query", n}}, Element::Int);
  for (int64_t i = 0; i < n; ++i)
    at.ints[i] = row.seen - n + i;
  Tensor out = map(kvp::Fn::Le, {&*positions, &at}, Element::Bool);
  if (perHead)
    return out.permuted({"head", "query", "token"});
  return out.permuted({"query", "token"});
}

llvm::Expected<Tensor> Evaluation::uniformOf(kvp::UniformOp op) {
  const Cache &left = cache(op.getCache());
  Axes axes;
  for (kvp::AxisAttr axis : op.getAxes().getAsRange<kvp::AxisAttr>()) {
    int64_t extent =
        axis.getName() == "head"    ? row.heads
        : axis.getName() == "token" ? left.length()
        : axis.getName() == "channel"
            ? static_cast<int64_t>(left.channels ? (*left.channels)[0].size() : row.channels)
            : axis.getExtent();
    axes.push_back({axis.getName().str(), extent});
  }
  bool perHead = op.getResult().getType().hasAxis("head");
  bool tokens = op.getResult().getType().hasAxis("token");
  Tensor positions({}, Element::Int);
  if (tokens) {
    auto original = originalPositions(left, perHead);
    if (!original)
      return original;
    positions = std::move(*original);
  }
  // Which channel of the row's keys each is.
  std::optional<Tensor> channels;
  if (left.channels) {
    Axes where{{"head", row.heads}, {"channel", static_cast<int64_t>((*left.channels)[0].size())}};
    std::vector<int64_t> ids;
    for (const std::vector<int64_t> &own : *left.channels)
      llvm::append_range(ids, own);
    channels = Tensor::ofInts(where, std::move(ids));
    if (!perHead) // one choice for all heads
      channels = at(*channels, "head", Tensor::ofInts({}, {0}));
  }
  return uniform(integer(op.getSeed()), row.layer, axes, positions, row.channels,
                 channels ? &*channels : nullptr);
}
