// RUN: kvp-opt %s --pass-pipeline='builtin.module(kvp.press(kvp-primitives),cse,kvp.press(kvp-algebra),canonicalize,cse)' | FileCheck %s

// A sum of products with something small is a contraction of the keys as they lie; what has no
// channels stays outside.
// CHECK-LABEL: kvp.press @product
// CHECK: %[[K:.*]] = kvp.input keys
// CHECK: %[[M:.*]] = kvp.map mul(%arg2, %arg3)
// CHECK: %[[D:.*]] = kvp.dot %[[K]], %[[M]] over "channel"
// CHECK: kvp.map mul(%[[D]], %arg4)
kvp.press @product kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %a: !kvp.tensor<[head, channel], f32>, %b: !kvp.tensor<[channel], f32>, %w: !kvp.tensor<[head], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %0 = kvp.map mul(%k, %w) : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head], f32>) -> !kvp.tensor<[head, token, channel], f32>
  %1 = kvp.map mul(%a, %0) : (!kvp.tensor<[head, channel], f32>, !kvp.tensor<[head, token, channel], f32>) -> !kvp.tensor<[head, token, channel], f32>
  %2 = kvp.map mul(%1, %b) : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[channel], f32>) -> !kvp.tensor<[head, token, channel], f32>
  %s = kvp.reduce sum %2 over ["channel"] : <[head, token, channel], f32> -> <[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}

// What turns the keys turns the other side instead, transposed.
// CHECK-LABEL: kvp.press @turned
// CHECK: %[[K:.*]] = kvp.input keys
// CHECK: %[[C:.*]] = kvp.rotary cos
// CHECK: %[[S:.*]] = kvp.rotary sin
// CHECK: %[[OWN:.*]] = kvp.map mul(%arg2, %[[C]])
// CHECK: %[[OTHER:.*]] = kvp.map mul(%arg2, %[[S]])
// CHECK: %[[P:.*]] = kvp.pair %[[OTHER]] along "channel"
// CHECK: %[[M:.*]] = kvp.map add(%[[OWN]], %[[P]])
// CHECK: kvp.dot %[[K]], %[[M]] over "channel"
kvp.press @turned kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %m: !kvp.tensor<[head, channel], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %r = kvp.rotate %k by %n : <[head, token, channel], f32>, i64 -> <[head, token, channel], f32>
  %s = kvp.dot %r, %m over "channel" : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, channel], f32>) -> !kvp.tensor<[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}

// A matrix between a value and itself is a form, and takes what is done to the value on both sides.
// CHECK-LABEL: kvp.press @form
// CHECK: %[[K:.*]] = kvp.input keys
// CHECK: %[[M1:.*]] = kvp.map mul(%arg3, %arg2)
// CHECK: %[[V:.*]] = kvp.rename %arg3 from "channel" to "channel'"
// CHECK: %[[M2:.*]] = kvp.map mul(%[[M1]], %[[V]])
// CHECK: kvp.form %[[K]] along "channel", %[[M2]] along "channel", "channel'"
kvp.press @form kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %m: !kvp.tensor<[head, channel, "channel'"], f32>, %v: !kvp.tensor<[channel], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %x = kvp.map mul(%k, %v) : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[channel], f32>) -> !kvp.tensor<[head, token, channel], f32>
  %y = kvp.rename %x from "channel" to "channel'" : <[head, token, channel], f32> -> <[head, token, "channel'"], f32>
  %0 = kvp.map mul(%x, %m) : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, channel, "channel'"], f32>) -> !kvp.tensor<[head, token, channel, "channel'"], f32>
  %1 = kvp.map mul(%0, %y) : (!kvp.tensor<[head, token, channel, "channel'"], f32>, !kvp.tensor<[head, token, "channel'"], f32>) -> !kvp.tensor<[head, token, channel, "channel'"], f32>
  %s = kvp.reduce sum %1 over ["channel", "channel'"] : <[head, token, channel, "channel'"], f32> -> <[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}

// Keys and values on the two sides of a matrix are two contractions, one after the other.
// CHECK-LABEL: kvp.press @bilinear
// CHECK-NOT: kvp.form
// CHECK: %[[D:.*]] = kvp.dot %{{.*}}, %arg2 over "channel"
// CHECK: kvp.dot %[[D]], %{{.*}} over "channel'"
kvp.press @bilinear kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %m: !kvp.tensor<[head, channel, "channel'"], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %v = kvp.input values of %c : <0> -> <[head, token, channel], f32>
  %y = kvp.rename %v from "channel" to "channel'" : <[head, token, channel], f32> -> <[head, token, "channel'"], f32>
  %0 = kvp.map mul(%k, %m) : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, channel, "channel'"], f32>) -> !kvp.tensor<[head, token, channel, "channel'"], f32>
  %1 = kvp.map mul(%0, %y) : (!kvp.tensor<[head, token, channel, "channel'"], f32>, !kvp.tensor<[head, token, "channel'"], f32>) -> !kvp.tensor<[head, token, channel, "channel'"], f32>
  %s = kvp.reduce sum %1 over ["channel", "channel'"] : <[head, token, channel, "channel'"], f32> -> <[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}

// What differs from entry to entry stays with the keys, and so do turns to the entries' own positions.
// CHECK-LABEL: kvp.press @left_alone
// CHECK: %[[T:.*]] = kvp.map add(%{{.*}}, %{{.*}}) : {{.*}} -> !kvp.tensor<[head, token, channel], f32>
// CHECK: kvp.dot %[[T]], %arg2 over "channel"
kvp.press @left_alone kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %m: !kvp.tensor<[head, channel], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %p = kvp.position %c : <0> -> <[token], i64>
  %r = kvp.rotate %k by %p : <[head, token, channel], f32>, !kvp.tensor<[token], i64> -> <[head, token, channel], f32>
  %s = kvp.dot %r, %m over "channel" : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, channel], f32>) -> !kvp.tensor<[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : <0>, <[head, token], f32> -> <1>
  kvp.return %c1 : <1>
}
