//===- Flops.h - operations counted in what a machine's peak counts ---------------------------===//
//
// As Cost.h counts, so that a floor of bytes and flops is one that could be reached.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DRIVER_FLOPS_H
#define KVPC_DRIVER_FLOPS_H

#include "lib/Driver/PlanCosts.h"

namespace kvpc::driver {

/// Of an operation of kvp or kvplan, by all tasks of `space` together.
int64_t flopsOf(mlir::Operation *op, kvplan::Space space, const PlanCosts &costs);

/// Of a press in the form that plans are made of, every value once: whatever the plan does.
int64_t flopsOf(kvp::PressOp program, const PlanCosts &costs);

} // namespace kvpc::driver

#endif
