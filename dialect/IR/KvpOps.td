//===- KvpOps.td - what a press computes ------------------------------------------------------===//
//
// Values are tensors with named axes; batch is not in the IR: a program is evaluated for one batch
// row, whose entries are numbered 0 .. length-1 from its first real token. Host scalars (shapes,
// parameters, counts) are i64, f64 and i1. Every op is pure; selections make new cache values.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DIALECT_IR_KVPOPS_TD
#define KVPC_DIALECT_IR_KVPOPS_TD

include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/OpBase.td"
include "dialect/IR/EnumBase.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def Kvp_Dialect : Dialect {
  let name = "kvp";
  let cppNamespace = "::kvpc::kvp";
  let summary = "presses: which entries of a KV cache survive";
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
  let hasConstantMaterializer = 1;
  let dependentDialects = ["::mlir::arith::ArithDialect"];
}

//===------------------------------------------------------------------------------------------===//
// Types and attributes
//===------------------------------------------------------------------------------------------===//

def Kvp_Axis : AttrDef<Kvp_Dialect, "Axis"> {
  let mnemonic = "axis";
  let summary = "a named axis: `token/1`, `query:64`, `channel`";
  let description = [{
    `extent` is the static extent, -1 where it is known only when the press is called. A `query` axis
    of extent w made by `last(w)` has min(w, length) entries at run time. `state` counts the
    selections made before the axis was read from the cache (0 for axes that no selection touches).
  }];
  let parameters = (ins StringRefParameter<"name">:$name, "int64_t":$extent, "int64_t":$state);
  let hasCustomAssemblyFormat = 1;
  let extraClassDeclaration = [{
    static constexpr int64_t kDynamic = -1;
    bool isStatic() const { return getExtent() != kDynamic; }
    AxisAttr withName(::llvm::StringRef name) const {
      return get(getContext(), name, getExtent(), getState());
    }
  }];
}

class Kvp_Type<string name, string typeMnemonic> : TypeDef<Kvp_Dialect, name> {
  let mnemonic = typeMnemonic;
}

def Kvp_TensorType : Kvp_Type<"NamedTensor", "tensor"> {
  let summary = "values over named axes: `!kvp.tensor<[head, token/1], f32>`";
  let description = [{
    Elements are i1, i64 or f32. Axis order carries no meaning for the program; results of operations
    list axes in one canonical order: head, group, query, part, slot, token, channel, feature, others.
    No two axes have one name.
  }];
  let parameters = (ins ArrayRefParameter<"AxisAttr">:$axes, "::mlir::Type":$elementType);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The axis called `name`, or null.
    AxisAttr getAxis(::llvm::StringRef name) const;
    bool hasAxis(::llvm::StringRef name) const { return bool(getAxis(name)); }
    /// The same axes with another element type.
    NamedTensorType withElement(::mlir::Type element) const {
      return get(getContext(), getAxes(), element);
    }
    /// The axes without those called `names`.
    NamedTensorType without(::llvm::ArrayRef<::llvm::StringRef> names) const;
  }];
}

def Kvp_CacheType : Kvp_Type<"Cache", "cache"> {
  let summary = "the cache after `state` selections";
  let parameters = (ins "int64_t":$state);
  let assemblyFormat = "`<` $state `>`";
}

def Kvp_BudgetType : Kvp_Type<"Budget", "budget"> {
  let summary = "`drop(fraction)` or `keep(int)`: how much a selection keeps";
}

def Kvp_Host : AnyTypeOf<[I64, F64, I1], "host scalar (i64, f64 or i1)">;
def Kvp_Value : AnyTypeOf<[Kvp_TensorType, I64, F64, I1], "tensor or host scalar">;
def Kvp_BoolTensor : Type<And<[CPred<"::llvm::isa<::kvpc::kvp::NamedTensorType>($_self)">,
    CPred<"::llvm::cast<::kvpc::kvp::NamedTensorType>($_self).getElementType().isInteger(1)">]>,
    "tensor of i1", "::kvpc::kvp::NamedTensorType">;
def Kvp_IntTensor : Type<And<[CPred<"::llvm::isa<::kvpc::kvp::NamedTensorType>($_self)">,
    CPred<"::llvm::cast<::kvpc::kvp::NamedTensorType>($_self).getElementType().isInteger(64)">]>,
    "tensor of i64", "::kvpc::kvp::NamedTensorType">;
def Kvp_FloatTensor : Type<And<[CPred<"::llvm::isa<::kvpc::kvp::NamedTensorType>($_self)">,
    CPred<"::llvm::cast<::kvpc::kvp::NamedTensorType>($_self).getElementType().isF32()">]>,
    "tensor of f32", "::kvpc::kvp::NamedTensorType">;

class Kvp_EnumAttr<EnumAttrInfo info, string mnemonic>
    : EnumAttr<Kvp_Dialect, info, mnemonic> { let assemblyFormat = "$value"; }

def Kvp_Fn : Kvp_Enum<"Fn", "scalar function", [
    "add", "sub", "mul", "div", "pow", "mod", "minimum", "maximum",
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "gelu", "relu",
    "floor", "round", "int", "float",
    "lt", "le", "eq", "ne", "and", "or", "not", "where"]>;
def Kvp_FnAttr : Kvp_EnumAttr<Kvp_Fn, "fn">;

def Kvp_Reduction : Kvp_Enum<"Reduction", "reduction", [
    "sum", "mean", "max", "min", "std", "var", "norm", "all", "any", "count", "argmax"]>;
def Kvp_ReductionAttr : Kvp_EnumAttr<Kvp_Reduction, "reduction">;

def Kvp_Input : Kvp_Enum<"Input", "host input", [
    "keys", "values", "queries", "unrotated_queries", "unrotated_keys", "hidden",
    "output_weight"]>;
def Kvp_InputAttr : Kvp_EnumAttr<Kvp_Input, "input">;

def Kvp_Dim : Kvp_Enum<"Dim", "host dimension", [
    "length", "seen", "layer", "layers", "heads", "groups", "channels"]>;
def Kvp_DimAttr : Kvp_EnumAttr<Kvp_Dim, "dim">;

def Kvp_Wave : Kvp_Enum<"Wave", "rotary table", ["cos", "sin"]>;
def Kvp_WaveAttr : Kvp_EnumAttr<Kvp_Wave, "wave">;

//===------------------------------------------------------------------------------------------===//
// Programs
//===------------------------------------------------------------------------------------------===//

class Kvp_Op<string mnemonic, list<Trait> traits = []> : Op<Kvp_Dialect, mnemonic, traits>;
/// A pure op whose result type follows from operands and attributes; the verifier compares.
class Kvp_Pure<string mnemonic, list<Trait> traits = []>
    : Kvp_Op<mnemonic, !listconcat(traits, [Pure, InferTypeOpAdaptor])>;

def Kvp_PressOp : Kvp_Op<"press", [Symbol, IsolatedFromAbove, SingleBlock]> {
  let summary = "one exported press: a pipeline of selections over the cache";
  let description = [{
    The block's arguments are the untouched cache (`!kvp.cache<0>`), then the runtime scalars and
    budgets in the order of the module header, then the weights (f32 tensors, taken at this layer;
    those with an axis `layer` are those of all layers).
    `parameters` describes all parameters, static ones with their value: a dictionary each with
    `name`, `type`, `static`, `doc` and, where they exist, `default`, `value`, `min`, `max`, `axes`.
    `kind` is `score` for a declaration that was a score and got `topk(budget)`, else `press`.

    - **C1**: the first argument is the cache of state 0; the others are i64, f64, budgets or tensors
    - **C2**: the block ends in `kvp.return`

    ```mlir
    kvp.press @knorm kind "score" parameters [] {
    ^bb0(%cache: !kvp.cache<0>, %budget: !kvp.budget):
      ...
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, StrAttr:$kind, OptionalAttr<StrAttr>:$doc,
                       ArrayAttr:$parameters);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name `kind` $kind (`doc` $doc^)? `parameters` $parameters attr-dict-with-keyword $body
  }];
  let hasVerifier = 1;
}

def Kvp_ReturnOp : Kvp_Op<"return", [Terminator, Pure, HasParent<"PressOp">,
                                      AttrSizedOperandSegments]> {
  let summary = "the cache that is left, and the first stage's score for `press.scores`";
  let arguments = (ins Kvp_CacheType:$cache, Optional<Kvp_FloatTensor>:$score,
                       Optional<Kvp_BoolTensor>:$protect);
  let assemblyFormat = [{
    $cache (`score` $score^ `:` type($score))? (`protect` $protect^ `:` type($protect))?
    attr-dict `:` type($cache)
  }];
}

def Kvp_RequireOp : Kvp_Op<"require"> {
  let summary = "refuses a call before anything runs, unless the host condition holds";
  let arguments = (ins I1:$condition, StrAttr:$message);
  let assemblyFormat = "$condition `,` $message attr-dict";
}

//===------------------------------------------------------------------------------------------===//
// Host values and inputs
//===------------------------------------------------------------------------------------------===//

def Kvp_DimOp : Kvp_Op<"dim", [Pure]> {
  let summary = "a dimension: length and channels of this cache state; seen, layer, layers, heads, groups";
  let description = [{
    `length` is the number of entries of this state (per head equal; upper bound while planning where
    it depends on data), `channels` those of its keys. `kvp.dim length %cache : !kvp.cache<0>`.
  }];
  let arguments = (ins Kvp_DimAttr:$dim, Kvp_CacheType:$cache);
  let results = (outs I64:$result);
  let assemblyFormat = "$dim $cache attr-dict `:` type($cache)";
}

def Kvp_ExtentOp : Kvp_Op<"extent", [Pure]> {
  let summary = "the extent of an axis of a tensor";
  let arguments = (ins Kvp_TensorType:$like, StrAttr:$axis);
  let results = (outs I64:$result);
  let assemblyFormat = "$axis `of` $like attr-dict `:` type($like)";
  let hasVerifier = 1;
}

def Kvp_BudgetOp : Kvp_Op<"budget", [Pure]> {
  let summary = "`drop(f)` of an f64 or `keep(n)` of an i64";
  let arguments = (ins AnyTypeOf<[I64, F64]>:$amount);
  let results = (outs Kvp_BudgetType:$result);
  let assemblyFormat = "$amount attr-dict `:` type($amount)";
}

def Kvp_BudgetOfOp : Kvp_Op<"budget_of", [Pure]> {
  let summary = "entries kept of n: min(keep, n) or int(n (1 - drop)), clamped to 1..n";
  let arguments = (ins Kvp_BudgetType:$budget, I64:$n);
  let results = (outs I64:$result);
  let assemblyFormat = "$budget `of` $n attr-dict";
}

def Kvp_BudgetShareOp : Kvp_Op<"budget_share", [Pure]> {
  let summary = "the float before rounding: n (1 - drop), or what keep says";
  let arguments = (ins Kvp_BudgetType:$budget, I64:$n);
  let results = (outs F64:$result);
  let assemblyFormat = "$budget `of` $n attr-dict";
}

def Kvp_BudgetIsDropOp : Kvp_Op<"budget_is_drop", [Pure]> {
  let summary = "whether the budget is a drop(fraction)";
  let arguments = (ins Kvp_BudgetType:$budget);
  let results = (outs I1:$result);
  let assemblyFormat = "$budget attr-dict";
}

def Kvp_InputOp : Kvp_Pure<"input"> {
  let summary = "a host input as this state of the cache sees it, widened to f32";
  let description = [{
    keys and values are [head, token, channel]; queries [head, group, query, channel], `last` of them
    (min(last, length at state 0)), or all of this pass; output_weight [head, group, channel,
    feature]; hidden [query, feature]. After a channel selection, `channel` of keys and queries has
    that state, of values it stays whole.
  }];
  let arguments = (ins Kvp_InputAttr:$input, Kvp_CacheType:$cache, OptionalAttr<I64Attr>:$last);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = [{
    $input (`last` $last^)? `of` $cache attr-dict `:` type($cache) `->` type($result)
  }];
}

def Kvp_PositionOp : Kvp_Pure<"position"> {
  let summary = "0 .. length-1 of what is left; `original`: as first cached";
  let arguments = (ins Kvp_CacheType:$cache, UnitAttr:$original);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = "(`original` $original^)? $cache attr-dict `:` type($cache) `->` type($result)";
}

def Kvp_CausalOp : Kvp_Pure<"causal"> {
  let summary = "whether a query may see an entry: its original position is not after the query's";
  let description = [{
    Over [query, token]. Query i of the w given ones stands at original position seen - w + i.
  }];
  let arguments = (ins Kvp_CacheType:$cache, OptionalAttr<I64Attr>:$last);
  let results = (outs Kvp_BoolTensor:$result);
  let assemblyFormat = "(`last` $last^)? `of` $cache attr-dict `:` type($cache) `->` type($result)";
}

def Kvp_ScaleOp : Kvp_Op<"scale", [Pure]> {
  let summary = "the model's scale of attention logits";
  let results = (outs F64:$result);
  let assemblyFormat = "attr-dict";
}

def Kvp_IndexOp : Kvp_Pure<"index"> {
  let summary = "0 .. extent-1 along an axis of a tensor";
  let arguments = (ins Kvp_TensorType:$like, StrAttr:$axis);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = "$axis `of` $like attr-dict `:` type($like) `->` type($result)";
}

def Kvp_IotaOp : Kvp_Pure<"iota"> {
  let summary = "0 .. extent-1 along a new axis of static extent";
  let arguments = (ins StrAttr:$axis, ConfinedAttr<I64Attr, [IntPositive]>:$extent);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = "$axis `:` $extent attr-dict `->` type($result)";
}

def Kvp_UniformOp : Kvp_Pure<"uniform"> {
  let summary = "counter-based uniform numbers in [0, 1)";
  let description = [{
    A function of seed, layer, head, original position and the indices along other axes, in this order;
    `axes` names head, token, channel (of the keys, numbered before any went) and new axes (static
    extents). Philox 4x32-10, see Primitives/Random.h.
  }];
  let arguments = (ins Kvp_CacheType:$cache, I64:$seed, ArrayAttr:$axes);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = "$seed `over` $axes `of` $cache attr-dict `:` type($cache) `->` type($result)";
}

//===------------------------------------------------------------------------------------------===//
// Element-wise, reductions, along an axis
//===------------------------------------------------------------------------------------------===//

def Kvp_MapOp : Kvp_Pure<"map"> {
  let summary = "an element-wise function; tensors align by axis name, host scalars spread";
  let description = [{
    With host scalars alone the result is a host scalar (i64, f64, i1). With a tensor, axes are the
    union of the operands'; scalars become f32 (an i64 stays i64 among integers). int < float:
    arithmetic on integers alone stays integer, but `div`, `exp` and their like give float. `floor`,
    `round` (half to even) and `int` (towards zero) give i64 (NaN gives 0), `float` gives f32.
    Integer `mod` has the divisor's sign, as in Python; by zero it gives 0. Comparisons give i1;
    `where(c, a, b)`.

    - **C1**: operands that share an axis agree on its extent and cache state
    - **C2**: `and or not` take i1, arithmetic takes i64 and f32, `where` an i1 and two of one kind

    ```mlir
    %0 = kvp.map mul(%k, %k) : (!kvp.tensor<[head, token, channel], f32>, ...) -> ...
    ```
  }];
  let arguments = (ins Kvp_FnAttr:$fn, Variadic<Kvp_Value>:$operands);
  let results = (outs Kvp_Value:$result);
  let assemblyFormat = "$fn `(` $operands `)` attr-dict `:` functional-type($operands, $result)";
  let hasFolder = 1;
}

def Kvp_ReduceOp : Kvp_Pure<"reduce"> {
  let summary = "removes axes; entries outside `where` are as if absent";
  let description = [{
    Sums accumulate in f32 or wider. mean, std, var (over n - 1) and argmax of nothing are 0, max of
    nothing -inf, min of nothing +inf, all true, any false. argmax (one axis) ties to the earlier. `norm` is
    Euclidean. sum, max, min keep i64; count and argmax give i64; all and any i1; the rest f32. max and min
    propagate NaN.

    - **C1**: every axis of `over` is the input's
    - **C2**: the axes of `where` are among the input's
    - **C3**: all, any and count take i1; argmax one axis
  }];
  let arguments = (ins Kvp_ReductionAttr:$kind, Kvp_TensorType:$input, ArrayAttr:$over,
                       Optional<Kvp_BoolTensor>:$where);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = [{
    $kind $input `over` $over (`where` $where^ `:` type($where))? attr-dict
    `:` type($input) `->` type($result)
  }];
}

def Kvp_DotOp : Kvp_Pure<"dot"> {
  let summary = "sum of products over one axis; other axes unite";
  let arguments = (ins Kvp_FloatTensor:$lhs, Kvp_FloatTensor:$rhs, StrAttr:$over);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = "$lhs `,` $rhs `over` $over attr-dict `:` functional-type(operands, results)";
}

def Kvp_RotateOp : Kvp_Pure<"rotate"> {
  let summary = "turns pairs of channels by the angles of positions, as the model's rotary embedding does";
  let description = [{
    Channels a and b of pair i become s (a cos t - b sin t) and s (b cos t + a sin t), where t is the
    position times the pair's inverse frequency and s the model's scaling of its tables; channels that
    the model does not turn stay. So a turn by -p is the transpose of one by p, and its inverse where
    s is 1. Positions may be negative, and past the end of the cache. Axes unite; `mean` names those
    of `by` over which the turned values are averaged, which is one turn by averaged tables.

    - **C1**: the input has `channel`, the positions have not
    - **C2**: an axis of `mean` is one of `by` and not one of the input
  }];
  let arguments = (ins Kvp_FloatTensor:$input, AnyTypeOf<[I64, Kvp_IntTensor]>:$by,
                       OptionalAttr<StrArrayAttr>:$mean);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = [{
    $input `by` $by (`mean` $mean^)? attr-dict `:` type($input) `,` type($by) `->` type($result)
  }];
}

def Kvp_RotaryOp : Kvp_Pure<"rotary"> {
  let summary = "what `rotate` multiplies a channel (cos) and its partner (sin, with its sign) by";
  let description = [{
    Over the axes of `by` and one axis of `like`, whose entries are channels. Angles are taken in
    double, and what comes of it is rounded once. Channels that the model does not turn have 1 and 0.
    `back`: divided by the model's scaling, of the opposite angle: it undoes the model's own turn.
    `mean`: averaged over axes of the positions.

    - **C1**: the positions have no axis of that name
    - **C2**: an axis of `mean` is one of the positions
  }];
  let arguments = (ins Kvp_WaveAttr:$wave, AnyTypeOf<[I64, Kvp_IntTensor]>:$by,
                       Kvp_TensorType:$like, StrAttr:$axis, OptionalAttr<StrArrayAttr>:$mean,
                       UnitAttr:$back);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = [{
    $wave (`back` $back^)? `of` $by (`mean` $mean^)? `along` $axis `of` $like attr-dict
    `:` type($by) `,` type($like) `->` type($result)
  }];
}

def Kvp_PairOp : Kvp_Pure<"pair"> {
  let summary = "the other channel of the pair that the model's rotary embedding turns; itself, if none";
  let arguments = (ins Kvp_FloatTensor:$input, StrAttr:$axis);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = "$input `along` $axis attr-dict `:` type($input) `->` type($result)";
}

def Kvp_FormOp : Kvp_Pure<"form"> {
  let summary = "quadratic form: sum over a and b of x[a] * m[a, b] * x[b]";
  let description = [{
    `axis` is the input's, `row` and `column` are the matrix's. Other axes unite. What contractions of
    one value with a matrix, from both sides, become in `kvp-algebra`; no program says it itself.

    - **C1**: the input has neither `row` nor `column` beside `axis`
  }];
  let arguments = (ins Kvp_FloatTensor:$input, StrAttr:$axis, Kvp_FloatTensor:$matrix,
                       StrAttr:$row, StrAttr:$column);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = [{
    $input `along` $axis `,` $matrix `along` $row `,` $column attr-dict
    `:` type($input) `,` type($matrix) `->` type($result)
  }];
}

class Kvp_Along<string mnemonic, string text, dag extra, string asm> : Kvp_Pure<mnemonic> {
  let summary = text;
  let arguments = !con((ins Kvp_TensorType:$input, StrAttr:$axis,
                            Optional<Kvp_BoolTensor>:$where), extra);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = "$input `along` $axis " # asm #
      " (`where` $where^ `:` type($where))? attr-dict `:` type($input) `->` type($result)";
}

def Kvp_SoftmaxOp : Kvp_Along<"softmax",
    "exp(x - max) / sum along an axis; 0 outside `where` and where nothing is admitted", (ins), "">;
def Kvp_NormalizeOp : Kvp_Along<"normalize",
    "x / ||x|| along an axis; a zero vector stays zero, outside `where` 0", (ins), "">;
def Kvp_CumsumOp : Kvp_Along<"cumsum", "running sum along an axis; outside `where` adds 0 and is 0", (ins), "">;
def Kvp_SortOp : Kvp_Along<"sort",
    "values from the highest to the lowest (NaN last) along an axis; the axis becomes `to`",
    (ins StrAttr:$to), "`to` $to">;
def Kvp_AvgPoolOp : Kvp_Along<"avg_pool",
    "centred mean of `size` (odd) neighbours, zeros outside counted; outside `where` reads as 0 and is 0",
    (ins I64Attr:$size), "`size` $size">;
def Kvp_MaxPoolOp : Kvp_Along<"max_pool",
    "centred maximum of `size` (odd) neighbours; nothing outside counts; outside `where` is 0",
    (ins I64Attr:$size), "`size` $size">;

def Kvp_ShiftOp : Kvp_Pure<"shift"> {
  let summary = "out[i] = x[i - by], `fill` outside";
  let arguments = (ins Kvp_TensorType:$input, StrAttr:$axis, I64:$by, Kvp_Host:$fill);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = [{
    $input `along` $axis `by` $by `fill` $fill attr-dict
    `:` type($input) `,` type($fill) `->` type($result)
  }];
}

def Kvp_RankOp : Kvp_Pure<"rank", [AttrSizedOperandSegments]> {
  let summary = "place from the highest (0) over one or more axes; i64";
  let description = [{
    Order as in selections: protected first, then value, ties to the earlier (of several axes in the
    order token, head), -inf above NaN; entries outside `where` come after all others.
  }];
  let arguments = (ins Kvp_TensorType:$input, ArrayAttr:$over, Optional<Kvp_BoolTensor>:$protect,
                       Optional<Kvp_BoolTensor>:$where);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = [{
    $input `over` $over (`protect` $protect^ `:` type($protect))?
    (`where` $where^ `:` type($where))? attr-dict `:` type($input) `->` type($result)
  }];
}

//===------------------------------------------------------------------------------------------===//
// Axes
//===------------------------------------------------------------------------------------------===//

def Kvp_RenameOp : Kvp_Pure<"rename"> {
  let summary = "gives an axis another name";
  let arguments = (ins Kvp_TensorType:$input, StrAttr:$from, StrAttr:$to);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = "$input `from` $from `to` $to attr-dict `:` type($input) `->` type($result)";
}

def Kvp_PartitionOp : Kvp_Pure<"partition", [AttrSizedOperandSegments]> {
  let summary = "splits an axis into `part` and `slot`";
  let description = [{
    Entry i of [from, to) is slot (i - from) % size of part (i - from) / size. There are
    ceil((to - from) / size) parts, floor with `whole`. The last part may be short: its missing
    slots are absent from every reduction over `slot`. Default range: the whole axis.
  }];
  let arguments = (ins Kvp_TensorType:$input, StrAttr:$axis, ConfinedAttr<I64Attr, [IntPositive]>:$size,
                       Optional<I64>:$from, Optional<I64>:$to, UnitAttr:$whole);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = [{
    $input `along` $axis `size` $size (`from` $from^)? (`to` $to^)? (`whole` $whole^)? attr-dict
    `:` type($input) `->` type($result)
  }];
}

def Kvp_JoinOp : Kvp_Pure<"join", [AttrSizedOperandSegments]> {
  let summary = "undoes a partition: [part, slot] to `axis`, `fill` for entries that no part has";
  let description = [{
    `like` is a tensor over the axis as it was before the partition (its extent and state).
  }];
  let arguments = (ins Kvp_TensorType:$input, Kvp_TensorType:$like, StrAttr:$axis,
                       ConfinedAttr<I64Attr, [IntPositive]>:$size, Optional<I64>:$from,
                       Optional<I64>:$to, UnitAttr:$whole, Kvp_Host:$fill);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = [{
    $input `like` $like `along` $axis `size` $size (`from` $from^)? (`to` $to^)? (`whole` $whole^)?
    `fill` $fill attr-dict `:` type($input) `,` type($like) `,` type($fill) `->` type($result)
  }];
}

def Kvp_AtOp : Kvp_Pure<"at"> {
  let summary =
    "picks along an axis by index, clamped to the axis (of slots to those that a part has); a tensor's axes unite";
  let arguments = (ins Kvp_TensorType:$input, StrAttr:$axis, Kvp_Value:$index);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = [{
    $input `along` $axis `,` $index attr-dict `:` type($input) `,` type($index) `->` type($result)
  }];
}

//===------------------------------------------------------------------------------------------===//
// Selections
//===------------------------------------------------------------------------------------------===//

def Kvp_TopkOp : Kvp_Pure<"topk", [AttrSizedOperandSegments]> {
  let summary = "keeps the `count` highest-scored entries along the score's own element axis";
  let description = [{
    The axis is `token`, `channel` or `part`. `count` entries are kept of each row of the score
    (clamped to 1..n); exactly that many. Protected entries first; of more protected than `count` the highest stay, of equals
    the newest; then by score, ties to the earlier, -inf, then NaN. Kept entries ascend. `part`: whole
    runs of `part_size` tokens, of the tokens `from` .. `to` where they are given: others go; where
    there are no parts the newest token stays. `reuse = n`: the first of every n layers chooses, the others take its
    choice.

    A `count` from data is a tensor, over `head` where heads keep different numbers. `joint`: the
    counts of all heads are one budget, which goes to the highest entries of all; of equals the earlier
    token, then head comes first. But each head keeps int(`at_least` * count), and at least one, of its
    own best.

    - **C1**: the score has exactly one of token, channel, part and at most head beside it
    - **C2**: the element axis belongs to the state of `cache`
    - **C3**: `part_size` is given iff the axis is `part`; `from` and `to` only then
    - **C4**: `joint` takes a score over head and token; `at_least` stands with it alone
    - **C5**: a count from data is over nothing, or over head like the score, and not of channels
  }];
  let arguments = (ins Kvp_CacheType:$cache, Kvp_FloatTensor:$score,
                       AnyTypeOf<[I64, Kvp_IntTensor]>:$count, Optional<Kvp_BoolTensor>:$protect,
                       Optional<F64>:$at_least, Optional<I64>:$part_from, Optional<I64>:$part_to,
                       UnitAttr:$joint, OptionalAttr<I64Attr>:$part_size,
                       OptionalAttr<I64Attr>:$reuse);
  let results = (outs Kvp_CacheType:$result);
  let assemblyFormat = [{
    $cache `by` $score `keep` $count `` custom<CountType>(type($count)) (`joint` $joint^)?
    (`at_least` $at_least^)? (`protect` $protect^ `:` type($protect))? (`part_size` $part_size^)?
    (`from` $part_from^)? (`to` $part_to^)? (`reuse` $reuse^)? attr-dict `:` type($cache) `,` type($score) `->` type($result)
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// `token`, `channel` or `part`.
    ::llvm::StringRef getElementAxis();
    /// Whether one choice serves all heads.
    bool isUniform() { return !getScore().getType().hasAxis("head"); }
    /// Whether how many are kept is known only when the data is.
    bool countsData() { return !getCount().getType().isInteger(64); }
  }];
}

def Kvp_MaskOp : Kvp_Pure<"mask"> {
  let summary = "keeps exactly the entries for which the condition holds; at least the newest";
  let arguments = (ins Kvp_CacheType:$cache, Kvp_BoolTensor:$condition, OptionalAttr<I64Attr>:$reuse);
  let results = (outs Kvp_CacheType:$result);
  let assemblyFormat = [{
    $cache `where` $condition (`reuse` $reuse^)? attr-dict
    `:` type($cache) `,` type($condition) `->` type($result)
  }];
  let hasVerifier = 1;
}

#endif
