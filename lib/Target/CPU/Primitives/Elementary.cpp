//===- Elementary.cpp - the functions of Math.h as symbols ----------------===//
#include "Math.h"
#include "Primitives.h"

namespace prim = kvpc::prim;
using prim::Lanes;

#define UNARY(NAME)                                                                                \
  __attribute__((always_inline)) float kvpc_prim_##NAME(float x) { return prim::NAME(x); }         \
  __attribute__((always_inline)) Lanes kvpc_prim_##NAME##_v(Lanes x) { return prim::NAME(x); }

extern "C" {
UNARY(exp)
UNARY(exp2)
UNARY(log)
UNARY(tanh)
UNARY(sigmoid)
UNARY(erf)
UNARY(gelu)
__attribute__((always_inline)) float kvpc_prim_pow(float x, float y) { return prim::pow(x, y); }
__attribute__((always_inline)) Lanes kvpc_prim_pow_v(Lanes x, Lanes y) { return prim::pow(x, y); }
float kvpc_prim_mod(float x, float y) { return prim::mod(x, y); }
Lanes kvpc_prim_mod_v(Lanes x, Lanes y) { return prim::mod(x, y); }
}
