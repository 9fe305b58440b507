//===- Passes.td - from what a press computes to how often the data is read -------------------===//
#ifndef KVPC_DIALECT_TRANSFORMS_PASSES_TD
#define KVPC_DIALECT_TRANSFORMS_PASSES_TD

include "mlir/Pass/PassBase.td"

def KvpPrimitives : Pass<"kvp-primitives", "::kvpc::kvp::PressOp"> {
  let summary = "decompose reductions and maps along an axis into sums, extrema and functions";
  let description = [{
    Afterwards `mean` (but over short axes), `std`, `var`, `norm`, `argmax` and `normalize` are gone,
    `softmax`, `rank` and `cumsum` are left along `token` and `part` only, softmax has no `where`
    (masked entries are -inf), and no reduction removes short axes, entries and heads at once.
    `rotate` and unrotated keys have become products with rotary tables: each channel by a cosine, its
    partner by a sine; the mean of turns is one with averaged tables.

    ```mlir
    %0 = kvp.reduce norm %k over ["channel"] : ...
    // becomes sqrt(sum(k * k))
    ```
  }];
  let dependentDialects = ["::mlir::arith::ArithDialect"];
}

def KvpAlgebra : Pass<"kvp-algebra", "::kvpc::kvp::PressOp"> {
  let summary = "contractions of keys as they lie in memory: linear maps move to the small side";
  let description = [{
    Expects the form that `kvp-primitives` leaves. A sum over channels of a product of something over
    entries and something small is a `dot`. In a `dot` of what a linear map makes of keys or values
    (scaled channels, partners of channels, their sums) with something without entries, the map is
    applied to the latter instead, transposed: once, not for each entry. And a `dot` with a matrix
    from both sides is a quadratic `form`, which half of the matrix is enough for. Results may differ
    in their last bits; `-O0` leaves all of it out.

    ```mlir
    %w = kvp.map mul(%k, %c) : ...
    %0 = kvp.dot %w, %q over "channel" : ...
    // becomes
    %m = kvp.map mul(%q, %c) : ...
    %0 = kvp.dot %k, %m over "channel" : ...
    ```
  }];
}

def KvplanCut : Pass<"kvplan-cut", "::mlir::ModuleOp"> {
  let summary = "cut every press into passes, small steps, selections and one compaction";
  let description = [{
    Expects the form that `kvp-primitives` leaves. A value is held in a buffer where a selection or a
    whole-row operation needs it, where it is a finished reduction, or where it would be computed
    again for each element of another axis; everything else is evaluated where it is used. A pass
    sweeps one axis for one kind of task; values go to the earliest pass that has their operands.
    With `stored` (`-O0`) every value is held and has its own pass. With `recompute=always`
    (`--workspace=0`) what is wide, more than a number for an entry, is made again in each pass that
    reads it, a tile at a time, with the same bits; but for what a pass reads at other entries than
    its own, and whole rows that are put in order. With `recompute=over` (any other `--workspace`)
    there are both plans, and the call takes the one that fits.
  }];
  let dependentDialects = ["::kvpc::kvplan::KvplanDialect", "::mlir::arith::ArithDialect"];
  let options = [Option<"stored", "stored", "bool", "false", "hold every value, one pass each">,
                 Option<"recompute", "recompute", "Recompute", "Recompute::Never",
                        "make wide values again, tile by tile, in each pass that reads them",
                        [{::llvm::cl::values(
                          clEnumValN(Recompute::Never, "never", "hold them"),
                          clEnumValN(Recompute::Over, "over",
                                     "a second plan, for where they do not fit the workspace"),
                          clEnumValN(Recompute::Always, "always", "hold none that need not be"))}]>,
                 Option<"without", "without", "unsigned", "0",
                        "optimisations to leave out, a sum of `Without`">];
}

#endif
