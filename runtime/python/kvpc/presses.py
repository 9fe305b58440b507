"""Calling presses."""

import inspect
import json
import math
import operator
import os
from dataclasses import dataclass

import torch

from . import library
from .budget import Budget
from .errors import (
    ArgumentError,
    InputError,
    MissingInput,
    StateError,
    Unsupported,
    of_runtime,
)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass
class Output:
    """What is left of a cache.

    keys      [batch, head, kept, channel], zero past a row's count
    values    [batch, head, kept, channel]
    tokens    int64 [batch, head, kept]: indices into the given keys, ascending, -1 past a count
    channels  int64 [batch, head, kept channels], ascending, or None if the press drops none
    lengths   int64 [batch], or [batch, head] where heads keep different counts
    """

    keys: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor
    channels: torch.Tensor | None
    lengths: torch.Tensor


class State:
    """What the layers of one forward pass share, where a press reuses one layer's choice.

    Make one for each forward pass (or `reset` it) and give it to the calls of all layers, in order.
    """

    def __init__(self):
        self.buffer = None  # the runtime's; it begins with whose choice it holds
        self.reference = None  # the same of the reference interpreter

    def reset(self):
        self.__init__()

    def _sized(self, size):
        if self.buffer is None or self.buffer.numel() < size:
            self.buffer = torch.zeros(size, dtype=torch.uint8, device="cpu")
        return self.buffer


@dataclass(frozen=True)
class Rope:
    """A model's rotary embedding.

    inverse_frequencies  [width / 2]
    attention_scaling    by which the model multiplies cos and sin
    layout               "half": channel i pairs with i + width / 2; "interleaved": with its neighbour
    width                rotated channels, twice the number of frequencies
    """

    inverse_frequencies: torch.Tensor
    attention_scaling: float = 1.0
    layout: str = "half"
    width: int | None = None

    @classmethod
    def of(cls, rope):
        """From a Rope, a mapping with the same names, or the inverse frequencies alone."""
        if rope is None or isinstance(rope, cls):
            return rope
        if isinstance(rope, torch.Tensor):
            return cls(rope)
        try:
            return cls(**rope)
        except TypeError:
            have = f"has {', '.join(map(str, rope))}" if isinstance(rope, dict) else "is no mapping"
            raise InputError(
                f"`rope` {have}; need `inverse_frequencies`, and if they differ "
                "`attention_scaling`, `layout` and `width`",
                "kvm-dtype",
            ) from None

    def __post_init__(self):
        if self.layout not in ("half", "interleaved"):
            raise ArgumentError(
                f'`layout` is "{self.layout}"; need "half" or "interleaved"', "kvm-parameter"
            )
        _tensor("rope.inverse_frequencies", self.inverse_frequencies)
        if self.inverse_frequencies.dim() != 1:
            raise InputError(
                f"`inverse_frequencies` has shape {list(self.inverse_frequencies.shape)}; need one "
                "axis",
                "kvm-shape",
            )
        frequencies = self.inverse_frequencies.shape[0]
        if self.width is not None and self.width != 2 * frequencies:
            raise InputError(
                f"`rope` has width {self.width} and {frequencies} inverse frequencies; need half as "
                "many as the width",
                "kvm-shape",
            )


class Press:
    """A press of a loaded module with its arguments. Several threads may call one at once.

    name, doc    as in the source
    parameters   name → value, of those that are not tensors
    inputs       what a call must give beside keys and values: name → number of last queries, "all",
                 or True
    info         all that the module says of it (PressInfo)
    """

    def __init__(self, module, name, parameters):
        ops = library.ops()
        self.module = module
        info = module.presses.get(name)
        arguments, tensors = {}, {}
        for key, value in parameters.items():
            if info and key in info.weights:
                tensors[key] = value
            elif value is not None:
                arguments[key] = _plain(key, value)
        try:
            self._handle = ops.bind(module.digest, name, json.dumps(arguments))
        except RuntimeError as error:
            raise of_runtime(error) from None
        self.name, self.doc, self.info, self.inputs = name, info.doc, info, dict(info.inputs)
        self.parameters = {
            n: p.value if p.static else p.default for n, p in info.parameters.items()
        }
        for key, value in parameters.items():
            if value is not None and key in info.parameters and key not in info.weights:
                self.parameters[key] = value
        for key in ("drop", "keep", "compression_ratio"):
            if key in arguments and key not in info.parameters:
                budget = next(
                    p.name for p in info.parameters.values() if p.type == "budget" and not p.static
                )
                kind = "keep" if key == "keep" else "drop"
                self.parameters[budget] = Budget(kind, arguments[key])
        for key in info.weights:
            self.parameters.pop(key, None)
        self._weights = [
            _weight(self.name, info.parameters[key], layered, tensors.get(key))
            for key, layered in info.weights.items()
        ]

    def __repr__(self):
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}({given})"

    # What the model hook and callers ask most.
    @property
    def reuse(self):
        """Layers that share one choice; 0: each layer chooses."""
        return self.info.reuse

    @property
    def dtypes(self):
        """Of keys and values, as torch has them: those that there is code for."""
        return tuple(DTYPES[name] for name in self.module.header["dtypes"])

    def inputs_at(self, layer):
        """`inputs` of one layer: one that takes another's choice needs fewer."""
        if self.reuse > 1 and layer % self.reuse:
            return {n: x for n, x in self.inputs.items() if n not in self.info.leader_inputs}
        return dict(self.inputs)

    def compress(
        self,
        keys,
        values,
        *,
        queries=None,
        unrotated_queries=None,
        hidden=None,
        output_weight=None,
        rope=None,
        scale=None,
        layer=0,
        layers=1,
        lengths=None,
        padding="left",
        original_positions=None,
        seen=None,
        state=None,
        backend="compiled",
    ):
        """What the press keeps of one layer's cache (Output).

        The Output's tensors have no gradient. They are new, but for keys or values that the press
        leaves whole (a press of channels leaves the values so): without `lengths` they are the
        given ones, not a copy.

        keys, values       [batch, head, token, channel] in f32, bf16 or f16, as the module has code
                           for, any strides with contiguous channels; all inputs have one dtype
        queries            [batch, query head, query, channel], rotated; each row's end at its own
                           last real token. At least as many as `inputs` lists, or as the longest
                           row has
        unrotated_queries  the same, before the rotary embedding
        hidden             [batch, query, feature], the attention layer's input, likewise
        output_weight      [feature, query head * channel], as the output projection has it, or
                           [head, group, channel, feature]
        rope               Rope, a mapping of its fields, or inverse frequencies
        scale              of attention logits; 1 / sqrt(channels) of the given keys
        layer, layers      which of the model's attention layers this is, of how many
        lengths            int64 [batch], real tokens of each row; None: all. A row of length 0
                           yields nothing
        padding            "left" or "right" of the real tokens
        original_positions int64 [batch, head, token] or [batch, token], for caches that were
                           compressed before: of real entries ascending, below `seen`; the same
                           for all heads where a press reads them itself, as `original_position`
                           or to unrotate keys; None: counted from the first real token
        seen               int or int64 [batch], tokens ever cached; None: `lengths`
        state              State of this forward pass, for presses that reuse a layer's choice
        backend            "compiled", or "reference": the interpreter of `kvpc run --reference`,
                           slow and plain

        Exactly the `inputs` of the press must be given (`rope`, which is of the model and not of
        the call, may be given to any). Raises MissingInput, ExtraInput, InputError
        (shape, stride, dtype, device), ArgumentError, StateError; nothing has then changed.
        """
        call = self._call(locals())
        if backend == "reference":
            from . import reference

            return reference.compress(self, call, state)
        _known("backend", backend, ("compiled", "reference"))
        buffer = self._state(call, state)
        out = _run(torch.ops.kvpc.compress, *call.arguments, buffer, self._handle)
        new_keys, new_values, tokens, channels, kept = out
        whole = lengths is None and not self.info.drops_tokens
        keys = keys.detach() if whole and not self.info.drops_channels else new_keys
        values = values.detach() if whole else new_values
        if self.info.data_counts and not torch.compiler.is_compiling():
            keys, values = _compact(keys), _compact(values)
        return Output(keys, values, tokens, channels if self.info.drops_channels else None, kept)

    def compress_(
        self,
        keys,
        values,
        *,
        queries=None,
        unrotated_queries=None,
        hidden=None,
        output_weight=None,
        rope=None,
        scale=None,
        layer=0,
        layers=1,
        lengths=None,
        padding="left",
        original_positions=None,
        seen=None,
        state=None,
        backend="compiled",
    ):
        """`compress` in place: what is kept moves to the front of `keys` and `values`.

        The Output's keys and values are views of them; what lies behind is left undefined. A view
        frees no memory. Arguments and errors as of `compress`; besides, no two entries of `keys` and
        `values` may share memory (views that interleave in one buffer do not), and neither may
        require a gradient.
        """
        call = self._call(locals(), in_place=True)
        if backend == "reference":
            from . import reference

            _run(torch.ops.kvpc.check_writable, keys, values)
            out = reference.compress(self, call, state)
            front = (slice(None), slice(None), slice(out.keys.shape[2]))
            # There tensors may be written whether they were made under inference or not.
            with torch.inference_mode():
                keys[(*front, slice(out.keys.shape[3]))] = out.keys
                values[front] = out.values
            tokens, channels, lengths = out.tokens, out.channels, out.lengths
        else:
            _known("backend", backend, ("compiled", "reference"))
            buffer = self._state(call, state)
            out = _run(torch.ops.kvpc.compress_, *call.arguments, buffer, self._handle)
            tokens, channels, lengths = out
            channels = channels if self.info.drops_channels else None
        kept_keys = keys.narrow(2, 0, tokens.shape[2])
        if channels is not None:
            kept_keys = kept_keys.narrow(3, 0, channels.shape[2])
        return Output(kept_keys, values.narrow(2, 0, tokens.shape[2]), tokens, channels, lengths)

    def check(self, keys, values, **given):
        """Raises what `compress` would of such a call. Runs nothing and reads shapes alone."""
        options = inspect.signature(self.compress).parameters.values()
        known = {x.name: x.default for x in options if x.default is not x.empty}
        Call(self, {"keys": keys, "values": values, **known, **given}).plan()

    def scores(
        self,
        keys,
        values,
        *,
        queries=None,
        unrotated_queries=None,
        hidden=None,
        output_weight=None,
        rope=None,
        scale=None,
        layer=0,
        layers=1,
        lengths=None,
        padding="left",
        original_positions=None,
        seen=None,
        state=None,
        backend="compiled",
    ):
        """The scores of the first stage, by which it selects.

        Returns (scores, protected): f32 and bool over [batch, *info.score_axes]; the token axis is
        that of `keys`, scores are NaN at padding. Arguments and errors as of `compress`; Unsupported
        where the first stage has no score, or where the layer takes another's choice.
        """
        call = self._call(locals(), scores=True)
        if backend == "reference":
            from . import reference

            return reference.scores(self, call)
        _known("backend", backend, ("compiled", "reference"))
        return _run(torch.ops.kvpc.scores, *call.arguments, self._handle)

    def __call__(self, model, **options):
        """`with press(model): model.generate(...)` compresses every prompt that the model sees.

        Options are those of kvpc.hook.attach.
        """
        from .hook import attach

        return attach(model, self, **options)

    def _call(self, given, **options):
        return Call(self, given, **options)

    def _state(self, call, state):
        if state is None or not self.reuse:
            return None
        if self.reuse > 1 and call.layer % self.reuse:
            return state.buffer
        return state._sized(call.plan()[3])


_DIFFERENTIABLE = ("queries", "unrotated_queries", "hidden", "output_weight")


def _detached(tensor):
    return tensor.detach() if tensor is not None and tensor.requires_grad else tensor


class Call:
    """The arguments of one call, as the operators take them."""

    def __init__(self, press, given, scores=False, in_place=False):
        keys, values = _tensor("keys", given["keys"]), _tensor("values", given["values"])
        for name in ("values", "queries", "unrotated_queries", "hidden", "output_weight"):
            one = given[name]
            if one is not None and _tensor(name, one).device != keys.device:
                raise InputError(
                    f"`{name}` is on {one.device}, `keys` are on {keys.device}; move it there",
                    "kvm-device",
                )
        if given["original_positions"] is not None:
            _tensor("original_positions", given["original_positions"])
        if not isinstance(given["state"], State | None):
            raise StateError(
                f"`state` is a {type(given['state']).__name__}; need a kvpc.State()", "kvm-state"
            )
        _known("padding", given["padding"], ("left", "right"))
        if keys.device.type == "meta" and scores:
            raise InputError(
                "`keys` are on meta, and have no values; need the CPU to score", "kvm-device"
            )
        if keys.device.type == "meta" and given["backend"] == "reference":
            raise InputError(
                "`keys` are on meta, and have no values; need the CPU to interpret", "kvm-device"
            )
        # Torch's own fallback would stumble over it.
        if in_place and not torch.compiler.is_compiling():
            for name, tensor in (("keys", keys), ("values", values)):
                if tensor.is_neg():
                    raise InputError(
                        f"`{name}` is a view that changes values as it is read; make a copy",
                        "kvm-stride",
                    )
        # Results have no gradient. What is written in place is told whose tensor it is.
        inputs = {name: _detached(given[name]) for name in _DIFFERENTIABLE}
        if not in_place:
            keys, values = _detached(keys), _detached(values)
        self.press = press
        self.layer, self.layers = _whole("layer", given["layer"]), _whole("layers", given["layers"])
        self.rope = rope = Rope.of(given["rope"])
        batch = keys.shape[0] if keys.dim() else 1
        self.weights = [w.at(self.layer, self.layers) for w in press._weights]
        self.arguments = (
            keys,
            values,
            *inputs.values(),
            None if rope is None else _detached(rope.inverse_frequencies),
            1.0 if rope is None else _real("rope.attention_scaling", rope.attention_scaling),
            rope is not None and rope.layout == "interleaved",
            None if given["scale"] is None else _real("scale", given["scale"]),
            self.layer,
            self.layers,
            _rows("lengths", given["lengths"], batch),
            given["padding"] == "right",
            given["original_positions"],
            _rows("seen", given["seen"], batch),
            self.weights,
        )

    def plan(self, scores=False, state=None):
        """Checks everything, runs nothing → (kept, kept channels, workspace bytes, state bytes)."""
        return _run(torch.ops.kvpc.plan, *self.arguments, state, scores, self.press._handle)


class _Weight:
    def __init__(self, name, tensor, layered):
        self.name, self.tensor, self.layered = name, tensor, layered

    def at(self, layer, layers):
        if not self.layered:
            return self.tensor
        have = self.tensor.shape[0]
        if have != layers or not 0 <= layer < layers:
            raise InputError(
                f"`{self.name}` has {have} layers; the call is of layer {layer} of {layers}; give "
                "`layer` and `layers` of the model that the tensor is for",
                "kvm-shape",
            )
        return self.tensor[layer]


def _weight(press, parameter, layered, value):
    """A tensor parameter, whole → f32, contiguous, `layer` first."""
    name = parameter.name
    if value is None:
        raise MissingInput(
            f"`{press}` needs the tensor `{name}` over [{', '.join(parameter.axes)}]; give it to "
            f"`press(..., {name}=...)`",
            "kvm-missing-input",
        )
    if isinstance(value, str | os.PathLike):
        value = _from_file(name, os.fspath(value))
    if not isinstance(value, torch.Tensor):
        raise ArgumentError(
            f"`{name}` is a {type(value).__name__}; need a torch tensor or the path of a safetensors "
            "file",
            "kvm-parameter",
        )
    tensor = _tensor(name, value).detach().to("cpu", torch.float32)
    if tensor.isnan().any():
        raise ArgumentError(f"`{name}` holds NaN; need numbers", "kvm-parameter")
    if parameter.type == "bool" and ((tensor != 0) & (tensor != 1)).any():
        raise ArgumentError(f"`{name}` holds other numbers than 0 and 1", "kvm-parameter")
    if parameter.axes and tensor.dim() != len(parameter.axes):
        raise InputError(
            f"`{name}` has shape {list(tensor.shape)}; need [{', '.join(parameter.axes)}]",
            "kvm-shape",
        )
    if layered:
        tensor = tensor.movedim(parameter.axes.index("layer"), 0)
    return _Weight(name, tensor.contiguous(), layered)


def _from_file(name, path):
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if name in names:
                return file.get_tensor(name)
            if len(names) == 1:
                return file.get_tensor(names[0])
    except Exception as error:
        raise ArgumentError(
            f"cannot read `{path}` as safetensors: {error}", "kvm-parameter"
        ) from None
    raise ArgumentError(
        f"`{path}` has tensors {', '.join(f'`{n}`' for n in names)}; need `{name}`", "kvm-parameter"
    )


def _plain(name, value):
    """An argument as JSON has it."""
    if isinstance(value, Budget):
        return {value.kind: _plain(name, value.amount)}
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ArgumentError(f"`{name}` is not a number of 64 bits", "kvm-parameter")
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):
        return _plain(name, value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(name, x) for x in value]
    raise ArgumentError(
        f"`{name}` is a {type(value).__name__}; need a number, kvpc.drop(r), kvpc.keep(n), one "
        "number a layer, or a tensor where the press has one",
        "kvm-parameter",
    )


def _tensor(name, value):
    if isinstance(value, torch.Tensor):
        if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(value):
            raise Unsupported(
                f"`{name}` is batched by torch.func.vmap, which presses do not take; call them "
                "without it: their first axis is a batch already",
                "kvm-unsupported",
            )
        if value.is_nested or value.layout != torch.strided:
            raise InputError(
                f"`{name}` is not a dense tensor; need one, padded, with `lengths`",
                "kvm-shape",
            )
        return value
    raise InputError(f"`{name}` is a {type(value).__name__}; need a torch tensor", "kvm-dtype")


def _whole(name, value):
    """An int of a number, which may be NumPy's, a tensor's or a symbol of the tracer."""
    if isinstance(value, torch.SymInt):
        return value
    try:
        if not isinstance(value, bool) and _fits(whole := operator.index(value)):
            return whole
    except (TypeError, ValueError):
        pass
    raise ArgumentError(
        f"`{name}` is {value!r}; need a whole number of 64 bits", "kvm-parameter"
    ) from None


def _fits(whole):
    return -(2**63) <= whole < 2**63


def _real(name, value):
    try:
        if not isinstance(value, bool | str):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ArgumentError(f"`{name}` is {value!r}; need a number", "kvm-parameter") from None


def _rows(name, value, batch):
    """int64 [batch] of a tensor, a list or one number for all rows."""
    if isinstance(value, torch.Tensor):
        _tensor(name, value)
    if value is None or (isinstance(value, torch.Tensor) and value.dim()):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and _fits(value):
        return torch.full((batch,), value, dtype=torch.int64, device="cpu")
    try:
        rows = torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, OverflowError, RuntimeError):
        rows = None
    if rows is None or rows.dim() > 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise InputError(f"`{name}` are {value!r}; need whole numbers, one a row", "kvm-dtype")
    return rows.to(torch.int64).reshape(-1)


def _known(name, value, known):
    if value not in known:
        listed = " or ".join(f'"{x}"' for x in known)
        raise ArgumentError(f'`{name}` is "{value}"; need {listed}', "kvm-parameter")


def _compact(tensor):
    """A view keeps all of its memory alive; where that is much more than is seen, it is given back."""
    seen = tensor.numel() * tensor.element_size()
    return tensor.clone() if 8 * seen < 7 * tensor.untyped_storage().nbytes() else tensor


def _run(op, *arguments):
    try:
        return op(*arguments)
    except RuntimeError as error:
        raise of_runtime(error) from None


def select(scores, *, keep=None, drop=None, protected=None, lengths=None, padding="left"):
    """The best entries along the last axis, by the rules of every press.

    scores     [..., token]; f32, or bf16 and f16 (as exact f32)
    keep, drop one of them: a count, or the fraction that goes: int(n * (1 - drop)) stay. Both are
               clamped to 1..n
    protected  bool, the shape of scores: above all others
    lengths    int64 [batch] (the first axis): real entries, the budget is counted on them
    padding    "left" or "right"

    Returns int64 [..., kept], ascending, -1 where a row has fewer. Exactly the budget's size; ties
    go to the earlier entry; NaN lies below everything.
    """
    _known("padding", padding, ("left", "right"))
    if protected is not None:
        _tensor("protected", protected)
    if _tensor("scores", scores).dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    if (drop is None) == (keep is None):
        raise ArgumentError("need one of `drop` and `keep`", "kvm-parameter")
    if not torch.compiler.is_compiling():  # the tracer cannot load a library
        library.ops()
    rows = _rows("lengths", lengths, scores.shape[0] if scores.dim() else 1)
    return _run(
        torch.ops.kvpc.select,
        scores,
        protected,
        None if drop is None else _real("drop", drop),
        None if keep is None else _whole("keep", keep),
        rows,
        padding == "right",
    )[0]
