//===- Registry.cpp - modules and presses that operators name by text -------------------------===//
#include "Registry.h"

#include <cmath>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

using namespace kvpc;
using namespace kvpc::torch;

namespace {

struct Registry {
  std::shared_mutex mutex;
  std::unordered_map<std::string, std::shared_ptr<const Module>> modules;
  std::unordered_map<std::string, std::shared_ptr<const BoundPress>> presses;
};

/// Never destroyed: threads may still call presses while the process ends.
Registry &registry() {
  static auto *instance = new Registry;
  return *instance;
}

std::string quote(const std::string &text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\')
      out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string toJson(const Value &value) {
  switch (value.kind) {
  case Value::None:
    return "null";
  case Value::Text:
    return quote(value.text);
  case Value::Drop:
    return "{\"drop\": " + toJson(Value::ofFloat(value.f)) + "}";
  case Value::Keep:
    return "{\"keep\": " + std::to_string(value.i) + "}";
  case Value::List: {
    std::string out = "[";
    for (const Value &item : value.items)
      out += (out.size() > 1 ? ", " : "") + toJson(item);
    return out + "]";
  }
  case Value::Float:
    // JSON has no such numbers.
    return std::isfinite(value.f) ? value.str() : quote(value.str());
  default:
    return value.str();
  }
}

} // namespace

void kvpc::torch::raise(const kvpc::Error &error) { throw kvpc::torch::Error(error); }

std::string kvpc::torch::toJson(const kvpc::Press::Arguments &arguments) {
  std::string out = "{";
  for (auto &[name, value] : arguments)
    out += (out.size() > 1 ? ", " : "") + quote(name) + ": " + ::toJson(value);
  return out + "}";
}

std::shared_ptr<const Module> kvpc::torch::loadModule(const std::string &path,
                                                      const std::string &digest) {
  auto module = Module::load(path, digest);
  if (!module)
    raise(module.error());
  std::unique_lock lock(registry().mutex);
  auto &known = registry().modules[(*module)->digest()];
  if (known && known->target() == (*module)->target())
    return known;
  // KVPC_TARGET changed: what was bound is of the other code.
  if (known)
    std::erase_if(registry().presses,
                  [&](const auto &entry) { return entry.first.starts_with(known->digest()); });
  known = *module;
  return known;
}

std::shared_ptr<const Module> kvpc::torch::moduleOf(const std::string &digest) {
  std::shared_lock lock(registry().mutex);
  auto it = registry().modules.find(digest);
  if (it == registry().modules.end())
    raise({ErrorCode::Press, "no module with SHA-256 `" + digest +
                                 "` is loaded in this process; load its file first"});
  return it->second;
}

std::string kvpc::torch::handleOf(const Module &module, const PressHeader &press,
                                  const std::string &arguments) {
  return module.digest() + "/" + press.name + "?" + arguments;
}

void kvpc::torch::remember(const std::string &handle, std::shared_ptr<const BoundPress> press) {
  std::unique_lock lock(registry().mutex);
  registry().presses[handle] = std::move(press);
}

std::shared_ptr<const BoundPress> kvpc::torch::boundOf(const std::string &handle) {
  {
    std::shared_lock lock(registry().mutex);
    auto it = registry().presses.find(handle);
    if (it != registry().presses.end())
      return it->second;
  }
  size_t slash = handle.find('/'), question = handle.find('?');
  if (slash == std::string::npos || question == std::string::npos || question < slash)
    raise({ErrorCode::Press, "`" + handle +
                                 "` does not name a press; take the handle of a loaded "
                                 "one"});
  auto module = moduleOf(handle.substr(0, slash));
  auto press = module->press(handle.substr(slash + 1, question - slash - 1));
  if (!press)
    raise(press.error());
  auto arguments = parseArguments(std::string_view(handle).substr(question + 1));
  if (!arguments)
    raise(arguments.error());
  auto bound = press->bind(*arguments);
  if (!bound)
    raise(bound.error());
  auto shared = std::make_shared<const BoundPress>(std::move(*bound));
  remember(handle, shared);
  return shared;
}
