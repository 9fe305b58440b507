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

// One budget for all heads, with and without a share for certain; counts from data.
// CHECK-LABEL: kvp.press @together
// CHECK: kvp.topk %{{.*}} by %{{.*}} keep %{{.*}} joint at_least %{{.*}} protect %{{.*}} : !kvp.tensor<[token], i1> : <0>
// CHECK: kvp.topk %{{.*}} by %{{.*}} keep %{{.*}} as !kvp.tensor<[head], i64> joint : <1>
kvp.press @together kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %a: f64):
  %k = kvp.input keys of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %s = kvp.reduce norm %k over ["channel"] : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
  %h = kvp.index "head" of %k : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head], i64>
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %t = kvp.map lt(%p, %n) : (!kvp.tensor<[token], i64>, i64) -> !kvp.tensor<[token], i1>
  %c1 = kvp.topk %c by %s keep %n joint at_least %a protect %t : !kvp.tensor<[token], i1> : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>
  %k1 = kvp.input keys of %c1 : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
  %s1 = kvp.reduce norm %k1 over ["channel"] : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1], f32>
  %c2 = kvp.topk %c1 by %s1 keep %h as !kvp.tensor<[head], i64> joint : !kvp.cache<1>, !kvp.tensor<[head, token/1], f32> -> !kvp.cache<2>
  kvp.return %c2 : !kvp.cache<2>
}

// Turns by the model's rotary embedding, what they are made of, and quadratic forms.
// CHECK-LABEL: kvp.press @turned
// CHECK: kvp.rotate %{{.*}} by %{{.*}} mean ["ahead"] : <[head, token, channel], f32>, !kvp.tensor<[ahead:4], i64> -> <[head, token, channel], f32>
// CHECK: kvp.rotate %{{.*}} by %{{.*}} : <[head, token, channel], f32>, !kvp.tensor<[ahead:4], i64> -> <[head, token, channel, ahead:4], f32>
// CHECK: kvp.rotary cos back of %{{.*}} along "channel" of %{{.*}} : i64, <[head, token, channel], f32> -> <[channel], f32>
// CHECK: kvp.rotary sin of %{{.*}} mean ["ahead"] along "channel" of %{{.*}} : !kvp.tensor<[ahead:4], i64>, <[head, token, channel], f32> -> <[channel], f32>
// CHECK: kvp.pair %{{.*}} along "channel" : <[head, token, channel], f32> -> <[head, token, channel], f32>
// CHECK: kvp.form %{{.*}} along "channel", %{{.*}} along "channel", "channel'" : <[head, token, channel], f32>, <[head, channel, "channel'"], f32> -> <[head, token], f32>
kvp.press @turned kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %m: !kvp.tensor<[head, channel, "channel'"], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %i = kvp.iota "ahead" : 4 -> <[ahead:4], i64>
  %0 = kvp.rotate %k by %i mean ["ahead"] : <[head, token, channel], f32>, !kvp.tensor<[ahead:4], i64> -> <[head, token, channel], f32>
  %1 = kvp.rotate %k by %i : <[head, token, channel], f32>, !kvp.tensor<[ahead:4], i64> -> <[head, token, channel, ahead:4], f32>
  %2 = kvp.rotary cos back of %n along "channel" of %k : i64, <[head, token, channel], f32> -> <[channel], f32>
  %3 = kvp.rotary sin of %i mean ["ahead"] along "channel" of %k : !kvp.tensor<[ahead:4], i64>, <[head, token, channel], f32> -> <[channel], f32>
  %4 = kvp.pair %k along "channel" : <[head, token, channel], f32> -> <[head, token, channel], f32>
  %5 = kvp.form %k along "channel", %m along "channel", "channel'" : <[head, token, channel], f32>, <[head, channel, "channel'"], f32> -> <[head, token], f32>
  kvp.return %c : !kvp.cache<0>
}
