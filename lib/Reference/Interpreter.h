//===- Interpreter.h - the oracle: what a kvp program means for one batch row
//------------------===//
//
// Evaluates a kvp.press on demand: only what the asked results depend on is computed, so a layer
// that takes another's choice needs no inputs of the choosing.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_REFERENCE_INTERPRETER_H
#define KVPC_REFERENCE_INTERPRETER_H

#include "lib/Reference/Operations.h"

#include "llvm/Support/Error.h"

#include <map>
#include <optional>
#include <variant>

namespace kvpc::reference {

/// Rotary embedding of the model: pairs of the first 2 * frequencies.size() channels turn.
struct Rope {
  std::vector<double> frequencies;
  double scaling = 1;
  bool interleaved = false;

  int64_t width() const { return 2 * static_cast<int64_t>(frequencies.size()); }
  /// The other channel of a pair; itself, if it does not turn.
  int64_t partner(int64_t channel) const;
  /// What a channel (cos) and its partner (sin, with its sign) are multiplied by. `back`: in the
  /// turn that undoes the model's own.
  double wave(kvp::Wave wave, int64_t channel, int64_t position, bool back = false) const;
};

/// What the host gives for one batch row. Tensors have the axes that `kvp.input` says; queries and
/// hidden states end at the row's last token and may reach back further than the row.
struct Row {
  int64_t length = 0; ///< real tokens: extent of `token`
  int64_t seen = 0;   ///< tokens ever cached
  int64_t layer = 0, layers = 1;
  int64_t heads = 1, groups = 1, channels = 1;
  double scale = 1; ///< of attention logits
  Tensor keys, values;
  std::optional<Tensor> queries, unrotatedQueries, hidden, outputWeight;
  std::optional<Tensor> originalPositions; ///< i64 [head, token]; absent: the token's index
  std::optional<Rope> rope;
};

/// `drop(fraction)`, or `keep(int)` where `drop` is absent.
struct Budget {
  std::optional<double> drop;
  int64_t keep = 0;

  int64_t of(int64_t n) const;
  double share(int64_t n) const;
};

/// A runtime scalar, budget or weight, in the order of the press's block arguments.
using Argument = std::variant<int64_t, double, Budget, Tensor>;

/// Ascending ids per head.
using Sets = std::vector<std::vector<int64_t>>;

/// Choices that the first of several layers leaves to the others, by number of the selection in
/// the program.
using State = std::map<int64_t, Sets>;

struct Kept {
  Sets tokens;                  ///< of the row's own numbering
  std::optional<Sets> channels; ///< of the keys; absent: all
};

struct Score {
  Tensor values;
  Tensor protect; ///< i1 over the same axes
};

/// Scores (and protection) to select by instead of the computed ones, by number of the selection.
struct Given {
  std::map<int64_t, Tensor> scores, protects;
};

/// What the press keeps. `state` is read and written where layers share a choice, and may else be
/// null.
llvm::Expected<Kept> select(kvp::PressOp press, const Row &row, llvm::ArrayRef<Argument> arguments,
                            State *state = nullptr, const Given &given = {});

/// The first stage's score, over the axes of its type in their order.
llvm::Expected<Score> score(kvp::PressOp press, const Row &row, llvm::ArrayRef<Argument> arguments);

} // namespace kvpc::reference

#endif
