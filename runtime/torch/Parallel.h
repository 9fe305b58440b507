//===- Parallel.h - Torch's threads for modules -----------------------------------------------===//
#ifndef KVPC_TORCH_PARALLEL_H
#define KVPC_TORCH_PARALLEL_H

#include "kvpc/abi.h"

namespace kvpc::torch {

/// A kvpc_parallel_for over as many of Torch's threads as torch.set_num_threads says.
void parallelFor(void *host, kvpc_body body, void *context, int64_t count);

} // namespace kvpc::torch

#endif
