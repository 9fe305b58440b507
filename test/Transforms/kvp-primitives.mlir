// RUN: kvp-opt %s --pass-pipeline='builtin.module(kvp.press(kvp-primitives),canonicalize,cse)' | FileCheck %s

// CHECK-LABEL: kvp.press @norm
// CHECK: %[[S:.*]] = kvp.map mul(%[[K:.*]], %[[K]])
// CHECK: %[[R:.*]] = kvp.reduce sum %[[S]] over ["channel"]
// CHECK: kvp.map sqrt(%[[R]])
// CHECK-NOT: kvp.reduce norm
kvp.press @norm kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %k = kvp.input keys of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %s = kvp.reduce norm %k over ["channel"] : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}

// Short axes go first, heads last; the mean over heads is a sum and a division.
// CHECK-LABEL: kvp.press @staged
// CHECK: kvp.reduce sum %{{.*}} over ["channel"]
// CHECK: kvp.reduce sum %{{.*}} over ["head"]
// CHECK: kvp.map div
kvp.press @staged kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %k = kvp.input keys of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %s = kvp.reduce mean %k over ["head", "channel"] : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[token], f32>
  %c1 = kvp.topk %c by %s keep %n : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}
