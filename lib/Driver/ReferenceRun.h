//===- ReferenceRun.h - a press on a batch, by the reference interpreter ----------------------===//
#ifndef KVPC_DRIVER_REFERENCERUN_H
#define KVPC_DRIVER_REFERENCERUN_H

#include "kvpc/Header.h"
#include "lib/Driver/Batch.h"

namespace kvpc::driver {

/// What layers share, a state a row.
using States = std::vector<reference::State>;

llvm::Expected<States> readStates(const Arrays &arrays);
Arrays writeStates(const States &states);

/// A press with the values of its run-time parameters.
struct BoundProgram {
  kvp::PressOp press;
  const runtime::PressHeader *header;
  std::vector<runtime::Value> arguments; ///< of header->runtime
};

/// keys, values [batch, head, kept, channel] of the input's dtype, zero past a row's count; tokens
/// I64 [batch, head, kept], indices into the given tokens, -1 past the count; channels I64 [batch,
/// head, kept channel] where the press drops some; lengths I64 [batch, head]. `given` are scores to
/// select by, `scores.<i>` and `protected.<i>` with the batch first.
llvm::Expected<Arrays> runReference(const BoundProgram &program, const Batch &batch, States &states,
                                    const Arrays &given);

/// scores F32 [batch, axes...], NaN at padding, and protected BOOL of the same shape.
llvm::Expected<Arrays> scoreReference(const BoundProgram &program, const Batch &batch);

} // namespace kvpc::driver

#endif
