//===- Module.cpp - loading a module ----------------------------------------------------------===//
#include "kvpc/Module.h"
#include "Sha256.h"
#include "Target.h"

#include <atomic>
#include <cstring>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace kvpc;

namespace {

/// Closes a file descriptor.
struct Descriptor {
  int fd;
  explicit Descriptor(int fd) : fd(fd) {}
  ~Descriptor() {
    if (fd >= 0)
      close(fd);
  }
  Descriptor(const Descriptor &) = delete;
};

/// dlopen takes two files of one name for the same, and descriptors are reused: the name of each
/// load is made unique by writing a count in slashes.
std::string uniquePath(int fd) {
  static std::atomic<uint32_t> count{0};
  std::string path = "/proc/self/fd";
  for (uint32_t bits = ++count; bits; bits /= 2)
    path += bits % 2 ? "/." : "/";
  return path + "/" + std::to_string(fd);
}

Failure checkDigest(std::string_view wanted, const std::string &have) {
  if (wanted.starts_with("sha256:"))
    wanted.remove_prefix(7);
  std::string lower(wanted);
  for (char &c : lower)
    if (c >= 'A' && c <= 'F')
      c = char(c - 'A' + 'a');
  if (lower.size() != 64 || lower.find_first_not_of("0123456789abcdef") != std::string::npos)
    return Error{ErrorCode::Digest, "`" + std::string(wanted) +
                                        "` is not a SHA-256; need 64 "
                                        "hexadecimal digits, as `sha256sum FILE` prints them"};
  if (lower != have)
    return Error{ErrorCode::Digest, "the file has SHA-256 " + have + "; expected " + lower +
                                        "; it is another module than the one you pinned"};
  return {};
}

} // namespace

Failure Module::checkTargets(int level) const {
  for (const PressHeader &press : contents.presses) {
    bool runs = false;
    for (const Variant &variant : press.variants) {
      Level needed = levelNamed(contents.targets[variant.target]);
      runs |= needed != Level::None && int(needed) <= level;
    }
    if (!runs)
      return Error{ErrorCode::Target, "the module has code for " + quoteList(contents.targets) +
                                          "; this machine runs " +
                                          std::string(levelName(Level(level))) +
                                          "; compile the press for this machine"};
  }
  return {};
}

/// What is run is what was checked: a copy in memory, not the file, which may change meanwhile.
Failure Module::open(Bytes bytes, int useLevel) {
  Descriptor copy(memfd_create("kvpc-module", MFD_CLOEXEC));
  size_t done = 0;
  while (copy.fd >= 0 && done < bytes.size()) {
    ssize_t n = write(copy.fd, bytes.data() + done, bytes.size() - done);
    if (n <= 0)
      break;
    done += size_t(n);
  }
  if (copy.fd < 0 || done < bytes.size())
    return Error{ErrorCode::Memory,
                 std::string("cannot copy the module into memory: ") + std::strerror(errno)};
  handle = dlopen(uniquePath(copy.fd).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    return Error{ErrorCode::Damaged, std::string("the loader refuses the module: ") + dlerror()};
  level = useLevel;
  for (const PressHeader &press : contents.presses) {
    auto &list = entries.emplace_back();
    for (const Variant &variant : press.variants) {
      Level needed = levelNamed(contents.targets[variant.target]);
      if (needed == Level::None || int(needed) > level)
        continue;
      Entry entry{&variant, int(needed), nullptr, nullptr};
      entry.plan = reinterpret_cast<kvpc_entry>(dlsym(handle, variant.plan.c_str()));
      entry.run = reinterpret_cast<kvpc_entry>(dlsym(handle, variant.run.c_str()));
      if (!entry.plan || !entry.run)
        return Error{ErrorCode::Damaged, "the module's header names `" +
                                             (entry.plan ? variant.run : variant.plan) +
                                             "`, which it does not hold; compile the press again"};
      list.push_back(entry);
    }
  }
  return {};
}

Result<std::shared_ptr<const Module>> Module::load(const std::string &path,
                                                   std::string_view digest) {
  auto bytes = readFile(path);
  if (!bytes)
    return bytes.error();
  auto named = [&](const Error &error) {
    return Error{error.code, "`" + path + "`: " + error.message};
  };
  std::string fileDigest = hex(sha256(*bytes));
  if (!digest.empty())
    if (auto error = checkDigest(digest, fileDigest))
      return named(*error);
  auto header = readHeader(*bytes, path);
  if (!header)
    return header.error();
  auto level = chosenLevel();
  if (!level)
    return level.error();

  std::shared_ptr<Module> module(new Module);
  module->file = path;
  module->fileDigest = std::move(fileDigest);
  module->contents = std::move(*header);
  module->contents.bytecode = {}; // of the file's bytes, which go
  if (auto error = module->checkTargets(int(*level))) {
    // Slower code is better than none.
    *level = machineLevel();
    if (isLevelForced() || module->checkTargets(int(*level)))
      return named(*error);
  }
  if (auto error = module->open(*bytes, int(*level)))
    return named(*error);
  return std::shared_ptr<const Module>(std::move(module));
}

Result<std::string_view> kvpc::runtime::machineTarget() {
  auto level = chosenLevel();
  if (!level)
    return level.error();
  return *level == Level::None ? std::string_view() : levelName(*level);
}

Module::~Module() {
  if (handle)
    dlclose(handle);
}

std::string_view Module::target() const {
  int best = -1;
  for (const auto &list : entries)
    for (const Entry &entry : list)
      best = std::max(best, entry.level);
  return levelName(Level(best));
}

Result<Press> Module::press(std::string_view name) const {
  Press out;
  out.owner = shared_from_this();
  if (name.empty() && contents.presses.size() == 1) {
    out.press = &contents.presses.front();
    return out;
  }
  if (name.empty())
    return Error{ErrorCode::Press,
                 "the module has presses " + contents.pressNames() + "; name the one to use"};
  std::vector<std::string> names;
  for (const PressHeader &press : contents.presses) {
    if (press.name == name) {
      out.press = &press;
      return out;
    }
    names.push_back(press.name);
  }
  std::string near = nearest(name, names);
  return Error{ErrorCode::Press, "the module has no press `" + std::string(name) + "`; it has " +
                                     contents.pressNames() +
                                     (near.empty() ? "" : "; did you mean `" + near + "`?")};
}
