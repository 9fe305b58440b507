// RUN: kvp-opt %s --pass-pipeline='builtin.module(kvp.press(kvp-primitives),canonicalize,cse,kvplan-cut)' | FileCheck %s
// RUN: kvp-opt %s --pass-pipeline='builtin.module(kvp.press(kvp-primitives),canonicalize,cse,kvplan-cut{stored=true})' | FileCheck %s --check-prefix=STORED
// RUN: kvp-opt %s --pass-pipeline='builtin.module(kvp.press(kvp-primitives),canonicalize,cse,kvplan-cut)' | kvp-opt | FileCheck %s

// One pass holds the score alone; K and V are gathered once, at the end.
// CHECK-LABEL: kvplan.pipeline @knorm
// CHECK-COUNT-1: kvplan.buffer
// CHECK-NOT: kvplan.buffer
// CHECK: kvplan.tasks head
// CHECK: kvplan.pass over <token> tile 128 segment 4
// CHECK: kvplan.store
// CHECK-NOT: kvplan.pass
// CHECK: kvplan.select
// CHECK-NEXT: kvplan.compact

// Every operation in a pass of its own: product, sum, root, sign.
// STORED-LABEL: kvplan.pipeline @knorm
// STORED-COUNT-4: kvplan.pass over <token>
// STORED-NOT: kvplan.pass
// STORED: kvplan.compact
kvp.press @knorm kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %k = kvp.input keys of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %r = kvp.reduce norm %k over ["channel"] : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
  %s = kvp.map neg(%r) : (!kvp.tensor<[head, token], f32>) -> !kvp.tensor<[head, token], f32>
  %c1 = kvp.topk %c by %s keep %n : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}
