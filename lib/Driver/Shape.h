//===- Shape.h - the option --shape -----------------------------------------------------------===//
#ifndef KVPC_DRIVER_SHAPE_H
#define KVPC_DRIVER_SHAPE_H

#include "lib/Driver/CommandLine.h"

#include <array>

namespace kvpc::driver {

/// Batch, heads, groups, tokens, channels of --shape, all positive and small enough that their
/// product is. Nothing after reporting.
std::optional<std::array<int64_t, 5>> readShape(const llvm::opt::InputArgList &options);

} // namespace kvpc::driver

#endif
