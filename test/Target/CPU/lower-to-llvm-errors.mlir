// RUN: kvp-opt %s --split-input-file --verify-diagnostics --kvpc-lower-to-llvm

// expected-error @+1 {{with `kvpc.body` must take a frame and a count}}
func.func private @a.parallel(!llvm.ptr) attributes {kvpc.body = @a}
func.func private @a(!llvm.ptr, i64, i64)

// -----

// expected-error @+1 {{needs @a to take a frame, a begin and an end}}
func.func private @a.parallel(!llvm.ptr, i64) attributes {kvpc.body = @a}
func.func private @a(!llvm.ptr)

// -----

// expected-error @+1 {{with `kvpc.body` must not have a body}}
func.func private @a.parallel(%frame: !llvm.ptr, %n: i64) attributes {kvpc.body = @a} {
  return
}
func.func private @a(!llvm.ptr, i64, i64)
