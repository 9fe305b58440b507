//===- Sha256.h - FIPS 180-4 ------------------------------------------------------------------===//
#ifndef KVPC_RUNTIME_SHA256_H
#define KVPC_RUNTIME_SHA256_H

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace kvpc {
inline namespace runtime {

std::array<uint8_t, 32> sha256(std::span<const uint8_t> data);
std::string hex(std::span<const uint8_t> bytes);

} // namespace runtime
} // namespace kvpc

#endif
