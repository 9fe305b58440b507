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

// A turn is each channel by one table, and its partner by another; averaged positions are averaged
// tables. Nothing has tokens and `ahead`.
// CHECK-LABEL: kvp.press @turned
// CHECK-NOT: kvp.rotate
// CHECK-NOT: token, {{.*}}ahead
// CHECK: %[[C:.*]] = kvp.rotary cos of %{{.*}} mean ["ahead"] along "channel" of %[[K:[^ ]*]]
// CHECK: %[[A:.*]] = kvp.map mul(%[[K]], %[[C]])
// CHECK: %[[P:.*]] = kvp.pair %[[K]] along "channel"
// CHECK: %[[S:.*]] = kvp.rotary sin of %{{.*}} mean ["ahead"] along "channel" of %[[K]]
// CHECK: %[[B:.*]] = kvp.map mul(%[[P]], %[[S]])
// CHECK: kvp.map add(%[[A]], %[[B]])
kvp.press @turned kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %i = kvp.iota "ahead" : 4 -> <[ahead:4], i64>
  %r = kvp.rotate %k by %i mean ["ahead"] : <[head, token, channel], f32>, !kvp.tensor<[ahead:4], i64> -> <[head, token, channel], f32>
  %s = kvp.reduce norm %r over ["channel"] : <[head, token, channel], f32> -> <[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}

// Keys before their turn are keys turned back from where they were first cached.
// CHECK-LABEL: kvp.press @unrotated
// CHECK: %[[P:.*]] = kvp.position original
// CHECK: kvp.rotary cos back of %[[P]]
// CHECK: kvp.rotary sin back of %[[P]]
kvp.press @unrotated kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %k = kvp.input unrotated_keys of %c : <0> -> <[head, token, channel], f32>
  %s = kvp.reduce norm %k over ["channel"] : <[head, token, channel], f32> -> <[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}
