// RUN: kvp-opt %s --kvpc-lower-to-llvm | FileCheck %s --implicit-check-not=math. \
// RUN:   --implicit-check-not=arith. --implicit-check-not=vector. --implicit-check-not=scf.
// RUN: kvp-opt %s --kvpc-lower-to-llvm=level=1 | FileCheck %s --check-prefix=WIDE


// A vector as long as the level's registers is one call, others are cut or padded.
// CHECK-LABEL: llvm.func @vectors
// CHECK: llvm.call @kvpc_prim_exp_v(%{{.*}}) : (vector<8xf32>) -> vector<8xf32>
// CHECK-COUNT-2: llvm.call @kvpc_prim_tanh_v(%{{.*}}) : (vector<8xf32>) -> vector<8xf32>
// WIDE-LABEL: llvm.func @vectors
// WIDE: llvm.call @kvpc_prim_exp_v(%{{.*}}) : (vector<16xf32>) -> vector<16xf32>
// WIDE: llvm.call @kvpc_prim_tanh_v(%{{.*}}) : (vector<16xf32>) -> vector<16xf32>
func.func @vectors(%x: vector<8xf32>, %y: vector<16xf32>) -> (vector<8xf32>, vector<16xf32>) {
  %a = math.exp %x : vector<8xf32>
  %b = math.tanh %y : vector<16xf32>
  return %a, %b : vector<8xf32>, vector<16xf32>
}

// CHECK-LABEL: llvm.func @scalars
// CHECK: llvm.call @kvpc_prim_pow(%{{.*}}) : (f32, f32) -> f32
// CHECK: llvm.call @kvpc_prim_f64_log(%{{.*}}) : (f64) -> f64
// f16 goes through f32, sine through f64.
// CHECK: llvm.fpext %{{.*}} : f16 to f32
// CHECK: llvm.call @kvpc_prim_erf(%{{.*}}) : (f32) -> f32
// CHECK: llvm.fpext %{{.*}} : f32 to f64
// CHECK: llvm.call @kvpc_prim_f64_sin(%{{.*}}) : (f64) -> f64
// CHECK: llvm.intr.sqrt
// CHECK: llvm.fdiv
// CHECK: llvm.intr.floor
func.func @scalars(%x: f32, %y: f64, %z: f16) -> (f32, f64, f16, f32, f32, f64) {
  %a = math.powf %x, %x : f32
  %b = math.log %y : f64
  %c = math.erf %z : f16
  %d = math.sin %x : f32
  %e = math.rsqrt %x : f32
  %f = math.floor %y : f64
  return %a, %b, %c, %d, %e, %f : f32, f64, f16, f32, f32, f64
}

// Rounding to bf16 is arithmetic, not a call of __truncsfbf2.
// CHECK-LABEL: llvm.func @bf16
// CHECK-NOT: llvm.fptrunc
// CHECK: llvm.store %{{.*}} {alignment = 2 : i64} : vector<8xbf16>, !llvm.ptr
func.func @bf16(%p: !llvm.ptr) {
  %x = llvm.load %p : !llvm.ptr -> vector<8xbf16>
  %y = arith.extf %x : vector<8xbf16> to vector<8xf32>
  %z = arith.addf %y, %y : vector<8xf32>
  %w = arith.truncf %z : vector<8xf32> to vector<8xbf16>
  llvm.store %w, %p : vector<8xbf16>, !llvm.ptr
  return
}

// Alignments that are given stay.
// CHECK-LABEL: llvm.func @alignment
// CHECK: llvm.load %{{.*}} {alignment = 64 : i64} : !llvm.ptr -> vector<16xf32>
// CHECK: llvm.load %{{.*}} {alignment = 4 : i64} : !llvm.ptr -> vector<16xf32>
// CHECK: llvm.load %{{.*}} : !llvm.ptr -> f32
func.func @alignment(%p: !llvm.ptr) -> f32 {
  %x = llvm.load %p {alignment = 64 : i64} : !llvm.ptr -> vector<16xf32>
  %y = llvm.load %p : !llvm.ptr -> vector<16xf32>
  %z = arith.addf %x, %y : vector<16xf32>
  llvm.store %z, %p : vector<16xf32>, !llvm.ptr
  %f = llvm.load %p : !llvm.ptr -> f32
  return %f : f32
}

// The host's loop: offsets are those of kvpc_call.
// CHECK-LABEL: llvm.func @body.parallel
// CHECK-SAME: %[[FRAME:.*]]: !llvm.ptr, %[[COUNT:.*]]: i64
// CHECK: %[[CALL:.*]] = llvm.load %[[FRAME]] : !llvm.ptr -> !llvm.ptr
// CHECK: %[[FOR:.*]] = llvm.load
// CHECK: %[[HOST:.*]] = llvm.load
// CHECK: %[[BODY:.*]] = llvm.mlir.addressof @body
// CHECK: llvm.call %[[FOR]](%[[HOST]], %[[BODY]], %[[FRAME]], %[[COUNT]])
func.func private @body.parallel(!llvm.ptr, i64) attributes {kvpc.body = @body}
func.func private @body(%frame: !llvm.ptr, %begin: i64, %end: i64) {
  %one = arith.constant 1 : i64
  scf.for %i = %begin to %end step %one : i64 {
    %p = llvm.getelementptr %frame[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    llvm.store %i, %p : i64, !llvm.ptr
  }
  return
}
