// RUN: kvp-opt %s | kvp-opt | FileCheck %s
// RUN: kvp-opt %s --mlir-print-op-generic | kvp-opt | FileCheck %s

// CHECK-LABEL: kvp.press @knorm kind "score"
// CHECK: kvp.input keys of %{{.*}} : <0> -> <[head, token, channel], f32>
// CHECK: kvp.reduce norm %{{.*}} over ["channel"]
// CHECK: kvp.topk %{{.*}} by %{{.*}} keep %{{.*}} -> <1>
kvp.press @knorm kind "score" parameters [] {
^bb0(%c: !kvp.cache<0>, %b: !kvp.budget):
  %k = kvp.input keys of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %n = kvp.reduce norm %k over ["channel"] : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
  %s = kvp.map neg(%n) : (!kvp.tensor<[head, token], f32>) -> !kvp.tensor<[head, token], f32>
  %l = kvp.dim length %c : !kvp.cache<0>
  %kept = kvp.budget_of %b of %l
  %c1 = kvp.topk %c by %s keep %kept : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>
  kvp.return %c1 score %s : !kvp.tensor<[head, token], f32> : !kvp.cache<1>
}

// Axes of a later state, static extents and primed names.
// CHECK-LABEL: kvp.press @axes
// CHECK: <[head, token/1, "channel'"/1], f32>
// CHECK: <[head, group, query:8, channel/1], f32>
kvp.press @axes kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  %c1 = kvp.topk %c by %f keep %n : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  %k = kvp.input keys of %c1 : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
  %v = kvp.input values of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %w = kvp.input keys of %c1 : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
  %r = kvp.rename %w from "channel" to "channel'" : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1, "channel'"/1], f32>
  %q = kvp.input queries last 8 of %c1 : !kvp.cache<1> -> !kvp.tensor<[head, group, query:8, channel/1], f32>
  kvp.return %c1 : !kvp.cache<1>
}
