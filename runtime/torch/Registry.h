//===- Registry.h - modules and presses that operators name by text ---------------------------===//
//
// An operator's arguments must be plain: a press is named by a text that says all of it,
// `<SHA-256 of the module>/<press>?<arguments as JSON>`. It means the same in every process that
// has loaded a file of that content.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_TORCH_REGISTRY_H
#define KVPC_TORCH_REGISTRY_H

#include "kvpc/torch.h"

namespace kvpc::torch {

[[noreturn]] void raise(const kvpc::Error &error);

/// The module of a file, kept for the life of the process.
std::shared_ptr<const Module> loadModule(const std::string &path, const std::string &digest);
std::shared_ptr<const Module> moduleOf(const std::string &digest);

std::string handleOf(const Module &module, const PressHeader &press, const std::string &arguments);
/// Binds what the handle says, once.
std::shared_ptr<const BoundPress> boundOf(const std::string &handle);
/// Lets `handle` mean a press that was bound already.
void remember(const std::string &handle, std::shared_ptr<const BoundPress> press);

/// Arguments as the JSON that handles hold.
std::string toJson(const kvpc::Press::Arguments &arguments);

} // namespace kvpc::torch

#endif
