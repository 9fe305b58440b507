//===- Batch.h - tensors of one call of a press -----------------------------------------------===//
#ifndef KVPC_DRIVER_BATCH_H
#define KVPC_DRIVER_BATCH_H

#include "lib/Driver/Safetensors.h"
#include "lib/Module/Summary.h"
#include "lib/Reference/Interpreter.h"

#include <optional>

namespace kvpc::driver {

/// What is no tensor.
struct HostValues {
  int64_t layer = 0, layers = 1;
  std::optional<double> scale; ///< absent: 1 / sqrt(channels)
  double ropeScaling = 1;
  bool ropeInterleaved = false;
};

/// A call of a press on a batch of rows, its shapes checked:
///
///   keys, values               [batch, head, token, channel]         F32, BF16 or F16
///   queries, unrotated_queries [batch, head, group, query, channel]  ending at a row's last token
///   hidden                     [batch, query, feature]               the same
///   output_weight              [head, group, channel, feature]
///   original_positions         I64 [batch, head, token]              absent: token - start
///   start, length, seen        I64 [batch]       absent: 0, the tokens, the length
///   rope_frequencies           F64 [pairs]
///   weight.<name>              F32, at this layer (a command line also takes it whole)
class Batch {
public:
  static llvm::Expected<Batch> of(Arrays arrays, const HostValues &host);

  int64_t batch = 0, heads = 0, groups = 1, tokens = 0, channels = 0, valueChannels = 0;
  HostValues host;
  std::vector<int64_t> start, length, seen;

  const Arrays &arrays() const { return given; }
  /// Null where it was not given.
  const Array *find(llvm::StringRef name) const;
  double scale() const;

  /// One row, widened, for the reference.
  reference::Row row(int64_t index) const;

private:
  llvm::Error readKeysAndValues();
  llvm::Error readQueries();
  llvm::Error readOthers();
  llvm::Error readRows();
  llvm::Error checkPositions() const;

  Arrays given;
};

/// Random tensors of a batch that has what the press needs. Weights cannot be made up.
llvm::Expected<Arrays> syntheticArrays(const PressSummary &press, llvm::ArrayRef<int64_t> shape,
                                       uint64_t seed);

} // namespace kvpc::driver

#endif
