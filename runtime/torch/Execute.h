//===- Execute.h - one call of a press on tensors ---------------------------------------------===//
#ifndef KVPC_TORCH_EXECUTE_H
#define KVPC_TORCH_EXECUTE_H

#include "kvpc/torch.h"

namespace kvpc::torch {

/// What a call is made from; operators and the class fill it alike.
struct Request {
  at::Tensor keys, values;
  std::optional<at::Tensor> queries, unrotatedQueries, hidden, outputWeight;
  std::optional<at::Tensor> rope; // inverse frequencies
  double ropeScaling = 1;
  bool ropeInterleaved = false;
  std::optional<double> scale;
  int64_t layer = 0, layers = 1;
  std::optional<at::Tensor> lengths;
  bool padRight = false;
  std::optional<at::Tensor> originalPositions, seen;
  std::vector<at::Tensor> weights; // at this layer
  std::optional<at::Tensor> state; // uint8, of State
};

/// Checks everything, runs nothing.
Sizes plan(const BoundPress &press, const Request &request, bool scores);

/// Keys or values that the press leaves whole share the request's memory, where it has no lengths.
Output compress(const BoundPress &press, const Request &request);
/// Raises where keys and values cannot be written in place: entries that share memory, or that
/// require a gradient.
void checkWritable(const at::Tensor &keys, const at::Tensor &values);
/// Without keys and values: they are the first `tokens.size(2)` entries of the request's.
Output compressInPlace(const BoundPress &press, const Request &request);
Scores scores(const BoundPress &press, const Request &request);

/// Sizes from shapes alone, for tracing; an empty shape is an input that is not given. Padding, and
/// counts that depend on data, are not known.
struct Shapes {
  at::ScalarType dtype;
  at::IntArrayRef keys, values, queries, unrotatedQueries, hidden, outputWeight;
  int64_t ropeWidth, layer, layers;
};
Sizes planShapes(const BoundPress &press, const Shapes &shapes);

/// -> indices [..., kept], counts [...]
std::pair<at::Tensor, at::Tensor> select(const at::Tensor &scores,
                                         const std::optional<at::Tensor> &isProtected,
                                         std::optional<double> drop, std::optional<int64_t> keep,
                                         const std::optional<at::Tensor> &lengths, bool padRight);

} // namespace kvpc::torch

#endif
