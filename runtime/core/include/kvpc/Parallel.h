//===- Parallel.h - threads for hosts that have none ------------------------------------------===//
#ifndef KVPC_PARALLEL_H
#define KVPC_PARALLEL_H

#include "kvpc/abi.h"

namespace kvpc {
inline namespace runtime {

/// A kvpc_parallel_for over the process's own pool, one thread a core. Its context is not used.
/// A call from inside a body, or while another thread uses the pool, runs on the caller alone.
void parallelFor(void *host, kvpc_body body, void *context, int64_t count);

/// Threads of the pool, the caller included.
int64_t parallelThreads();

} // namespace runtime
} // namespace kvpc

#endif
