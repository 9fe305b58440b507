// RUN: kvp-opt %s -split-input-file -verify-diagnostics

// C1 of kvp.press
// expected-error@+1 {{first argument must be the untouched cache `!kvp.cache<0>` (C1)}}
kvp.press @no_cache kind "press" parameters [] {
^bb0(%c: !kvp.cache<1>):
  kvp.return %c : !kvp.cache<1>
}

// -----
// C1 of kvp.map: operands that share an axis agree on its state
kvp.press @stale kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  %c1 = kvp.topk %c by %f keep %n : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  %q = kvp.position %c1 : !kvp.cache<1> -> !kvp.tensor<[token/1], i64>
  // expected-error@+2 {{axis `token` belongs to cache state 0 and to state 1}}
  // expected-error@+1 {{failed to infer returned types}}
  %s = kvp.map add(%p, %q) : (!kvp.tensor<[token], i64>, !kvp.tensor<[token/1], i64>) -> !kvp.tensor<[token], i64>
  kvp.return %c1 : !kvp.cache<1>
}

// -----
// C1 of kvp.reduce
kvp.press @axis kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  // expected-error@+2 {{unknown axis `chanel`; the operand has}}
  // expected-error@+1 {{failed to infer returned types}}
  %s = kvp.reduce sum %p over ["chanel"] : !kvp.tensor<[token], i64> -> !kvp.tensor<[token], i64>
  kvp.return %c : !kvp.cache<0>
}

// -----
// C2 of kvp.topk: the score belongs to the state it selects from
kvp.press @state kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  %c1 = kvp.topk %c by %f keep %n : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  // expected-error@+1 {{axis `token` belongs to cache state 0, the cache is in state 1 (C2)}}
  %c2 = kvp.topk %c1 by %f keep %n : !kvp.cache<1>, !kvp.tensor<[token], f32> -> !kvp.cache<2>
  kvp.return %c2 : !kvp.cache<2>
}

// -----
// C3 of kvp.topk
kvp.press @part kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  // expected-error@+1 {{needs `part_size` with axis `part`, and only there (C3)}}
  %c1 = kvp.topk %c by %f keep %n part_size 4 : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}

// -----
// C4 of kvp.topk: a budget is shared by heads
kvp.press @joint kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  // expected-error@+1 {{`joint` chooses over `head` and `token`; the score is '!kvp.tensor<[token], f32>' (C4)}}
  %c1 = kvp.topk %c by %f keep %n joint : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}

// -----
// C4 of kvp.topk: a share of what is shared
kvp.press @alone kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %a: f64):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  // expected-error@+1 {{`at_least` needs `joint` (C4)}}
  %c1 = kvp.topk %c by %f keep %n at_least %a : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}

// -----
// C5 of kvp.topk: a count of each head needs a score of each head
kvp.press @counts kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>):
  %p = kvp.position %c : !kvp.cache<0> -> !kvp.tensor<[token], i64>
  %f = kvp.map float(%p) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>
  %k = kvp.input keys of %c : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %h = kvp.index "head" of %k : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head], i64>
  // expected-error@+1 {{cannot keep '!kvp.tensor<[head], i64>' of the score '!kvp.tensor<[token], f32>' (C5)}}
  %c1 = kvp.topk %c by %f keep %h as !kvp.tensor<[head], i64> : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>
  kvp.return %c1 : !kvp.cache<1>
}

// -----
// C7 of kvplan.pipeline
// expected-error@+1 {{needs one `kvplan.compact`, as its last operation (C7)}}
kvplan.pipeline @none {
^bb0(%c: !kvp.cache<0>):
  %b = kvplan.buffer "b0" call : !kvplan.buffer<[head, token], f32>
}

// -----
// C1 of kvp.rotate
kvp.press @turned_by_channel kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %i = kvp.index "channel" of %k : <[head, token, channel], f32> -> <[channel], i64>
  // expected-error@+2 {{positions have `channel`}}
  // expected-error@+1 {{failed to infer returned types}}
  %0 = kvp.rotate %k by %i : <[head, token, channel], f32>, !kvp.tensor<[channel], i64> -> <[head, token, channel], f32>
  kvp.return %c : !kvp.cache<0>
}

// -----
// C1 of kvp.rotate: nothing to turn
kvp.press @no_channels kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %n: i64, %w: !kvp.tensor<[head], f32>):
  // expected-error@+2 {{unknown axis `channel`}}
  // expected-error@+1 {{failed to infer returned types}}
  %0 = kvp.rotate %w by %n : <[head], f32>, i64 -> <[head], f32>
  kvp.return %c : !kvp.cache<0>
}

// -----
// C2 of kvp.rotate
kvp.press @averaged_tokens kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %p = kvp.position %c : <0> -> <[token], i64>
  // expected-error@+2 {{takes the mean over `token`, which must be of the positions alone (C2)}}
  // expected-error@+1 {{failed to infer returned types}}
  %0 = kvp.rotate %k by %p mean ["token"] : <[head, token, channel], f32>, !kvp.tensor<[token], i64> -> <[head, channel], f32>
  kvp.return %c : !kvp.cache<0>
}

// -----
// C2 of kvp.rotary
kvp.press @averaged_channels kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  %p = kvp.position %c : <0> -> <[token], i64>
  // expected-error@+2 {{takes the mean over `channel`, which the positions have not (C2)}}
  // expected-error@+1 {{failed to infer returned types}}
  %0 = kvp.rotary cos of %p mean ["channel"] along "channel" of %k : !kvp.tensor<[token], i64>, <[head, token, channel], f32> -> <[token], f32>
  kvp.return %c : !kvp.cache<0>
}

// -----
// C1 of kvp.form
kvp.press @form_of_one_axis kind "press" parameters [] {
^bb0(%c: !kvp.cache<0>, %m: !kvp.tensor<[head, channel, "channel'"], f32>):
  %k = kvp.input keys of %c : <0> -> <[head, token, channel], f32>
  // expected-error@+2 {{cannot name rows `channel` and columns `channel` (C1)}}
  // expected-error@+1 {{failed to infer returned types}}
  %0 = kvp.form %k along "channel", %m along "channel", "channel" : <[head, token, channel], f32>, <[head, channel, "channel'"], f32> -> <[head, token], f32>
  kvp.return %c : !kvp.cache<0>
}
