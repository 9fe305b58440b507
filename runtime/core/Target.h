//===- Target.h - which code this machine runs ------------------------------------------------===//
#ifndef KVPC_RUNTIME_TARGET_H
#define KVPC_RUNTIME_TARGET_H

#include "kvpc/Result.h"

namespace kvpc {
inline namespace runtime {

/// Levels of x86-64 a module has code for; each includes those before it.
enum class Level { None = -1, V3, V4, V4Bf16 };

std::string_view levelName(Level level);
/// None for names this runtime does not know.
Level levelNamed(std::string_view name);

/// By CPUID, and XGETBV: the operating system must save the registers too.
Level machineLevel();

/// machineLevel(), but for what this machine has and is slower with: on Intel's processors, dot
/// products of bf16 pairs have half the rate of multiply-adds of f32 (measured,
/// docs/Performance.md).
Level preferredLevel();

/// Whether the environment variable KVPC_TARGET is set.
bool isLevelForced();

/// preferredLevel(), or the level that the environment variable KVPC_TARGET names. An error if it
/// names none, or one that this machine lacks.
Result<Level> chosenLevel();

} // namespace runtime
} // namespace kvpc

#endif
