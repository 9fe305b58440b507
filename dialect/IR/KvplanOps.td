//===- KvplanOps.td - how often the data is read ----------------------------------------------===//
//
// A pipeline is a list of steps: tasks (loops over batch rows and heads) that hold passes (one sweep
// over the entries each), small steps and whole-row orders; then selections and one compaction.
// The bodies of steps are kvp operations on tensors with named axes: what stands in a pass is
// evaluated in that pass, element by element, and only what a `store`, `accumulate`, `contract` or
// `statistics` names is ever held in memory.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DIALECT_IR_KVPLANOPS_TD
#define KVPC_DIALECT_IR_KVPLANOPS_TD

include "dialect/IR/KvpOps.td"
include "dialect/IR/KvplanEnums.td"

def Kvplan_Dialect : Dialect {
  let name = "kvplan";
  let cppNamespace = "::kvpc::kvplan";
  let summary = "plans: passes over the cache, buffers between them, one gather at the end";
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
  let dependentDialects = ["::kvpc::kvp::KvpDialect"];
}

class Kvplan_EnumAttr<EnumAttrInfo info, string mnemonic>
    : EnumAttr<Kvplan_Dialect, info, mnemonic> { let assemblyFormat = "$value"; }

def Kvplan_ScopeAttr : Kvplan_EnumAttr<Kvplan_Scope, "scope">;

def Kvplan_SpaceAttr : Kvplan_EnumAttr<Kvplan_Space, "space">;

def Kvplan_CombineAttr : Kvplan_EnumAttr<Kvplan_Combine, "combine">;

def Kvplan_OrderAttr : Kvplan_EnumAttr<Kvplan_Order, "order">;

def Kvplan_BufferType : TypeDef<Kvplan_Dialect, "Buffer"> {
  let mnemonic = "buffer";
  let summary = "memory between steps: `!kvplan.buffer<[head, token], f32>`, axes outermost first";
  let parameters = (ins "::kvpc::kvp::NamedTensorType":$tensor);
  let hasCustomAssemblyFormat = 1;
}

class Kvplan_Op<string mnemonic, list<Trait> traits = []> : Op<Kvplan_Dialect, mnemonic, traits>;

def Kvplan_PipelineOp : Kvplan_Op<"pipeline", [Symbol, IsolatedFromAbove, SingleBlock, NoTerminator]> {
  let summary = "the plan of one press";
  let description = [{
    Block arguments are those of the press. Host scalars (kvp operations on i64, f64, i1) may stand
    anywhere; they are evaluated for each batch row where they are used.

    `tight`: a plan of the same bits, for calls in which what one task holds of wide values exceeds the
    workspace.

    - **C7**: one `kvplan.compact`, the last operation
    - **C14**: refers to no declaration's name
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, OptionalAttr<FlatSymbolRefAttr>:$tight);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name (`tight` $tight^)? attr-dict-with-keyword $body";
  let hasVerifier = 1;
}

def Kvplan_BufferOp : Kvplan_Op<"buffer"> {
  let summary = "declares memory; extents follow from the axes' upper bounds";
  let description = [{ `every = n`: one entry for n neighbours along token or part. }];
  let arguments = (ins StrAttr:$name, Kvplan_ScopeAttr:$scope, OptionalAttr<I64Attr>:$every);
  let results = (outs Kvplan_BufferType:$result);
  let assemblyFormat = "$name $scope (`every` $every^)? attr-dict `:` type($result)";
}

def Kvplan_TasksOp : Kvplan_Op<"tasks", [SingleBlock, NoTerminator]> {
  let summary = "its steps in order, for every batch row (and head)";
  let description = [{
    As many tasks are in flight as give every thread work; buffers of scope `task` exist once per task
    in flight. With `leader = n` the tasks run only on the first of every n layers.
  }];
  let arguments = (ins Kvplan_SpaceAttr:$space, OptionalAttr<I64Attr>:$leader);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$space (`leader` $leader^)? attr-dict-with-keyword $body";
}

def Kvplan_RowsOp : Kvplan_Op<"rows", [SingleBlock, NoTerminator, HasParent<"TasksOp">]> {
  let summary = "its steps in order, for one block of queries after the other";
  let description = [{
    What has all queries beside entries is never whole: the steps see `block` queries at a time, and
    so many are in a buffer of scope `rows`. Blocks count from the row's first query. `causal`: what
    an entry after a block's last query would add is nothing, so sweeps end before it.
  }];
  let arguments = (ins I64Attr:$block, UnitAttr:$causal);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "`block` $block (`causal` $causal^)? attr-dict-with-keyword $body";
  let hasVerifier = 1;
}

def Kvplan_Steps : ParentOneOf<["TasksOp", "RowsOp"]>;

def Kvplan_PassOp : Kvplan_Op<"pass", [SingleBlock, NoTerminator, Kvplan_Steps]> {
  let summary = "one sweep over the tiles of an axis";
  let description = [{
    `over` is the axis (token or part, with its cache state). `tile` entries make a tile, `segment`
    tiles a segment: the unit of work of one thread and of reductions. Both are counted from the
    row's first entry; neither depends on threads, neighbours or padding.
  }];
  let arguments = (ins Kvp_Axis:$over, I64Attr:$tile, I64Attr:$segment);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "`over` $over `tile` $tile `segment` $segment attr-dict-with-keyword $body";
}

def Kvplan_SmallOp : Kvplan_Op<"small", [SingleBlock, NoTerminator, Kvplan_Steps]> {
  let summary = "work on values of bounded extent, once per task";
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "attr-dict-with-keyword $body";
}

def Kvplan_LoadOp : Kvplan_Op<"load", [Pure]> {
  let summary = "the tensor a buffer holds";
  let arguments = (ins Kvplan_BufferType:$buffer);
  let results = (outs Kvp_TensorType:$result);
  let assemblyFormat = "$buffer attr-dict `:` type($buffer) `->` type($result)";
  let hasVerifier = 1;
}

def Kvplan_StoreOp : Kvplan_Op<"store"> {
  let summary = "evaluates a tensor over the current tile (or whole, in a small step) into a buffer";
  let arguments = (ins Kvp_TensorType:$value, Kvplan_BufferType:$buffer);
  let assemblyFormat = "$value `,` $buffer attr-dict `:` type($value) `,` type($buffer)";
  let hasVerifier = 1;
}

def Kvplan_AccumulateOp : Kvplan_Op<"accumulate", [HasParent<"PassOp">]> {
  let summary = "reduces over the pass's axis: tiles in order within a segment, by a tree over segments";
  let description = [{
    Complete after the pass (C2). `where` keeps entries out. The buffer has the value's axes without
    the pass's.
  }];
  let arguments = (ins Kvplan_CombineAttr:$kind, Kvp_TensorType:$value,
                       Optional<Kvp_BoolTensor>:$where, Kvplan_BufferType:$buffer);
  let assemblyFormat = [{
    $kind $value (`where` $where^ `:` type($where))? `into` $buffer attr-dict
    `:` type($value) `,` type($buffer)
  }];
  let hasVerifier = 1;
}

def Kvplan_MergeOp : Kvplan_Op<"merge", [HasParent<"PassOp">]> {
  let summary = "combines what a block of queries gives with what the blocks before gave";
  let description = [{
    `value` reduces over the block's queries. Complete after the `rows` around it. `vanishing`: an
    entry to which a block's sweep does not come counts as 0 there.
  }];
  let arguments = (ins Kvplan_CombineAttr:$kind, Kvp_TensorType:$value, Kvplan_BufferType:$buffer,
                       UnitAttr:$vanishing);
  let assemblyFormat = [{
    $kind $value `into` $buffer (`vanishing` $vanishing^)? attr-dict
    `:` type($value) `,` type($buffer)
  }];
  let hasVerifier = 1;
}

def Kvplan_PackOp : Kvplan_Op<"pack", [HasParent<"SmallOp">]> {
  let summary = "packs the rows of a contraction into panels, rows on lanes";
  let description = [{
    `along`: the rows along this axis fill panels of their own for each element of the others, so that
    a block of them can be contracted by itself.
  }];
  let arguments = (ins Kvp_FloatTensor:$rows, Kvplan_BufferType:$buffer,
                       OptionalAttr<StrAttr>:$along);
  let assemblyFormat = [{
    $rows (`along` $along^)? `into` $buffer attr-dict `:` type($rows) `,` type($buffer)
  }];
}

def Kvplan_ContractOp : Kvplan_Op<"contract", [HasParent<"PassOp">]> {
  let summary = "the contraction microkernel: keys or values of the tile times packed rows";
  let description = [{
    buffer[token, row] = scale * sum over channel of stream[token, channel] * row[row, channel]. The
    stream is read in place (through the index of survivors, if there is one).
  }];
  let arguments = (ins Kvp_FloatTensor:$stream, Kvplan_BufferType:$panels, F64:$scale,
                       Kvplan_BufferType:$buffer);
  let assemblyFormat = [{
    $stream `by` $panels `scale` $scale `into` $buffer attr-dict
    `:` type($stream) `,` type($panels) `,` type($buffer)
  }];
}

def Kvplan_PackFormOp : Kvplan_Op<"pack_form", [HasParent<"SmallOp">]> {
  let summary = "packs the matrices of quadratic forms, folded onto one side of their diagonals";
  let description = [{ One matrix for each element of the axes beside `row` and `column`. }];
  let arguments = (ins Kvp_FloatTensor:$matrix, StrAttr:$row, StrAttr:$column,
                       Kvplan_BufferType:$buffer);
  let assemblyFormat = [{
    $matrix `along` $row `,` $column `into` $buffer attr-dict `:` type($matrix) `,` type($buffer)
  }];
}

def Kvplan_FormOp : Kvplan_Op<"form", [HasParent<"PassOp">]> {
  let summary = "quadratic forms of keys or values of the tile, by the contraction microkernel";
  let description = [{
    buffer[token, matrix] = sum over channels a, b of stream[token, a] * matrix[a, b] * stream[token, b].
    The stream is read in place (through the index of survivors, if there is one).
  }];
  let arguments = (ins Kvp_FloatTensor:$stream, Kvplan_BufferType:$panels,
                       Kvplan_BufferType:$buffer);
  let assemblyFormat = [{
    $stream `by` $panels `into` $buffer attr-dict `:` type($stream) `,` type($panels) `,` type($buffer)
  }];
}

def Kvplan_FoldOp : Kvplan_Op<"fold", [HasParent<"PassOp">]> {
  let summary = "reduces over the rows of a contraction, block by block, so that they are never held";
  let description = [{
    For each entry of the tile, and each element of the other axes of the rows, `block` holds the
    contraction of `stream` with some neighbouring rows along `over`; `value` is made of it and reduced
    over them. Blocks are taken in order, and have the same number of rows whatever the machine. The
    buffer has the value's axes without `over`.
  }];
  let arguments = (ins Kvplan_CombineAttr:$kind, Kvp_TensorType:$value, StrAttr:$over,
                       Optional<Kvp_BoolTensor>:$where, Kvp_FloatTensor:$stream,
                       Kvplan_BufferType:$panels, Kvplan_BufferType:$block,
                       Kvplan_BufferType:$buffer);
  let assemblyFormat = [{
    $kind $value `over` $over (`where` $where^ `:` type($where))? `of` $stream `by` $panels `in` $block
    `into` $buffer attr-dict `:` type($value) `,` type($stream) `,` type($panels) `,` type($block) `,`
    type($buffer)
  }];
  let hasVerifier = 1;
}

def Kvplan_StatisticsOp : Kvplan_Op<"statistics", [HasParent<"PassOp">, AttrSizedOperandSegments,
                                              AllTypesMatch<["maximum", "inverse"]>]> {
  let summary = "maximum and sum of exp(x - maximum) over the pass's axis, in one sweep";
  let description = [{
    `buffer` was stored in this pass. After the pass `maximum` holds m and `inverse` 1 / z, 0 where
    nothing is admitted. With `factors`, which has an entry for every tile, `buffer` then holds
    exp(x - M), M the maximum as it stood at that tile, and `factors` exp(M - m) / z; `references`
    keeps M for passes that make the exponents again.
  }];
  let arguments = (ins Kvplan_BufferType:$buffer, Kvplan_BufferType:$maximum,
                       Kvplan_BufferType:$inverse, Optional<Kvplan_BufferType>:$factors,
                       Optional<Kvplan_BufferType>:$references);
  let assemblyFormat = [{
    $buffer `into` $maximum `,` $inverse (`factors` $factors^ `:` type($factors))?
    (`references` $references^ `:` type($references))? attr-dict `:` type($buffer) `,` type($maximum)
  }];
}

def Kvplan_ExponentsOp : Kvplan_Op<"exponents", [HasParent<"PassOp">]> {
  let summary = "exp(x - M) in the place of x, with the references of the statistics of x";
  let description = [{ The bits that `statistics` left in the buffer of x; -0 where x is -inf. }];
  let arguments = (ins Kvplan_BufferType:$buffer, Kvplan_BufferType:$references);
  let assemblyFormat = "$buffer `by` $references attr-dict `:` type($buffer) `,` type($references)";
}

def Kvplan_RescaleOp : Kvplan_Op<"rescale", [Pure, AllTypesMatch<["exponents", "factors",
                                                                  "result"]>]> {
  let summary = "softmax from stored exponents and their tiles' factors; 0 where the exponent is -0, masked";
  let arguments = (ins Kvp_FloatTensor:$exponents, Kvp_FloatTensor:$factors);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = "$exponents `,` $factors attr-dict `:` type($result)";
}

def Kvplan_WeightOp : Kvplan_Op<"weight", [Pure]> {
  let summary = "exp(x - m) * (1 / z): softmax from its statistics; 0 where x is -inf";
  let arguments = (ins Kvp_FloatTensor:$value, Kvp_FloatTensor:$maximum, Kvp_FloatTensor:$inverse);
  let results = (outs Kvp_FloatTensor:$result);
  let assemblyFormat = "$value `,` $maximum `,` $inverse attr-dict `:` functional-type(operands, results)";
}

def Kvplan_OrderOp : Kvplan_Op<"order", [Kvplan_Steps, AttrSizedOperandSegments]> {
  let summary = "rank, sort or running sum of whole rows along a buffer's last axis";
  let description = [{
    `over`: axes that do not lie side by side are taken as one, the first outermost: several to rank,
    or heads.
  }];
  let arguments = (ins Kvplan_OrderAttr:$kind, Kvplan_BufferType:$input,
                       Optional<Kvplan_BufferType>:$protect, Optional<Kvplan_BufferType>:$where,
                       Kvplan_BufferType:$result, OptionalAttr<StrArrayAttr>:$over);
  let assemblyFormat = [{
    $kind $input (`over` $over^)? (`protect` $protect^ `:` type($protect))?
    (`where` $where^ `:` type($where))? `into` $result attr-dict
    `:` type($input) `,` type($result)
  }];
}

def Kvplan_SelectOp : Kvplan_Op<"select", [AttrSizedOperandSegments]> {
  let summary = "chooses `count` entries of each row of a score";
  let description = [{
    The kept entries ascend. The result is the cache restricted to them: later passes read survivors
    through the index, and nothing moves before the compaction. `leader = n`: layers that are not the
    first of n take the choice from the host's state. `joint`: one choice for all heads of a row.
  }];
  let arguments = (ins Kvp_CacheType:$cache, Kvplan_BufferType:$score,
                       AnyTypeOf<[I64, Kvplan_BufferType]>:$count,
                       Optional<Kvplan_BufferType>:$protect, Optional<F64>:$at_least,
                       Optional<I64>:$part_from, Optional<I64>:$part_to, UnitAttr:$joint, OptionalAttr<I64Attr>:$part_size,
                       OptionalAttr<I64Attr>:$leader);
  let results = (outs Kvp_CacheType:$result);
  let assemblyFormat = [{
    $cache `by` $score `keep` $count `` custom<CountType>(type($count)) (`joint` $joint^)?
    (`at_least` $at_least^)? (`protect` $protect^ `:` type($protect))? (`part_size` $part_size^)?
    (`from` $part_from^)? (`to` $part_to^)? (`leader` $leader^)? attr-dict
    `:` type($cache) `,` type($score) `->` type($result)
  }];
  let extraClassDeclaration = [{
    /// Whether how many are kept is known only when the data is.
    bool countsData() { return !getCount().getType().isInteger(64); }
  }];
}

def Kvplan_FilterOp : Kvplan_Op<"filter"> {
  let summary = "keeps the entries for which a condition holds; counts come from data";
  let arguments = (ins Kvp_CacheType:$cache, Kvplan_BufferType:$condition,
                       OptionalAttr<I64Attr>:$leader);
  let results = (outs Kvp_CacheType:$result);
  let assemblyFormat = [{
    $cache `where` $condition (`leader` $leader^)? attr-dict
    `:` type($cache) `,` type($condition) `->` type($result)
  }];
}

def Kvplan_RequireOp : Kvplan_Op<"require"> {
  let summary = "checked for every row before anything runs";
  let arguments = (ins I1:$condition, StrAttr:$message);
  let assemblyFormat = "$condition `,` $message attr-dict";
}

def Kvplan_ScoresOp : Kvplan_Op<"scores"> {
  let summary = "what `press.scores` returns; the call ends here if that is all it asks for";
  let arguments = (ins Kvplan_BufferType:$score, Optional<Kvplan_BufferType>:$protect);
  let assemblyFormat = [{
    $score (`protect` $protect^ `:` type($protect))? attr-dict `:` type($score)
  }];
}

def Kvplan_CompactOp : Kvplan_Op<"compact"> {
  let summary = "the one gather of keys and values: tokens and channels together";
  let arguments = (ins Kvp_CacheType:$cache);
  let assemblyFormat = "$cache attr-dict `:` type($cache)";
}

#endif
