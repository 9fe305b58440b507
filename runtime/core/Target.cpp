//===- Target.cpp - which code this machine runs ----------------------------------------------===//
#include "Target.h"

#include <algorithm>
#include <cpuid.h>
#include <cstdint>
#include <cstdlib>

using namespace kvpc;

namespace {

constexpr std::string_view names[] = {"x86-64-v3", "x86-64-v4", "x86-64-v4+avx512bf16"};

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d); // zeros where there is no such leaf
  return r;
}

bool all(unsigned word, std::initializer_list<unsigned> bits) {
  for (unsigned bit : bits)
    if (!(word >> bit & 1))
      return false;
  return true;
}

uint64_t savedRegisters() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

Level detect() {
  Registers one = cpuid(1), seven = cpuid(7), more = cpuid(0x80000001);
  // fma, cx16, sse4.1, sse4.2, movbe, popcnt, xsave, osxsave, avx, f16c; bmi1, avx2, bmi2; lzcnt.
  if (!all(one.c, {12, 13, 19, 20, 22, 23, 26, 27, 28, 29}) || !all(seven.b, {3, 5, 8}) ||
      !all(more.c, {5}))
    return Level::None;
  uint64_t saved = savedRegisters();
  if ((saved & 0x6) != 0x6) // xmm, ymm
    return Level::None;
  // avx512 f, dq, cd, bw, vl; mask registers, upper halves of zmm0-15, zmm16-31.
  if (!all(seven.b, {16, 17, 28, 30, 31}) || (saved & 0xe0) != 0xe0)
    return Level::V3;
  return all(cpuid(7, 1).a, {5}) ? Level::V4Bf16 : Level::V4;
}

} // namespace

std::string_view kvpc::runtime::levelName(Level level) {
  return level == Level::None ? "less than x86-64-v3" : names[int(level)];
}

Level kvpc::runtime::levelNamed(std::string_view name) {
  for (int i = 0; i < 3; ++i)
    if (names[i] == name)
      return Level(i);
  return Level::None;
}

Level kvpc::runtime::machineLevel() {
  static const Level level = detect();
  return level;
}

Level kvpc::runtime::preferredLevel() {
  static const bool intel = cpuid(0).b == 0x756e6547; // "Genu"
  return intel ? std::min(machineLevel(), Level::V4) : machineLevel();
}

bool kvpc::runtime::isLevelForced() {
  const char *wanted = std::getenv("KVPC_TARGET");
  return wanted && *wanted;
}

Result<Level> kvpc::runtime::chosenLevel() {
  if (!isLevelForced())
    return preferredLevel();
  const char *wanted = std::getenv("KVPC_TARGET");
  Level level = levelNamed(wanted);
  if (level == Level::None)
    return Error{ErrorCode::Target, "the environment variable KVPC_TARGET is `" +
                                        std::string(wanted) +
                                        "`; it may be `x86-64-v3`, "
                                        "`x86-64-v4`, `x86-64-v4+avx512bf16` or not set"};
  if (level > machineLevel())
    return Error{ErrorCode::Target, "the environment variable KVPC_TARGET asks for `" +
                                        std::string(wanted) + "`; this machine runs " +
                                        std::string(levelName(machineLevel())) + "; unset it"};
  return level;
}
