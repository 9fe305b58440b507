"""Compiled modules (.kvm) and what they say of themselves."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from . import library
from .budget import Budget
from .errors import ArgumentError, of_runtime


@dataclass(frozen=True)
class Parameter:
    """A parameter of a press.

    type     `int`, `float`, `fraction` (0 <= x < 1), `bool`, `budget`, `score` or `press`
    default  None: it must be given
    static   fixed when the module was compiled, to `value`
    min, max inclusive, or None
    axes     of a tensor parameter, `layer` included; else ()
    """

    name: str
    type: str
    default: object = None
    doc: str = ""
    static: bool = False
    value: object = None
    min: float | None = None
    max: float | None = None
    axes: tuple = ()


@dataclass(frozen=True)
class PressInfo:
    """What a module says of one press.

    parameters  name → Parameter
    inputs      what a call must give beside keys and values: name → how much of it: for `queries`,
                `unrotated_queries` and `hidden` a number of last queries or "all", else True
    uniform     all heads keep the same tokens
    ragged      heads keep different counts
    data_counts counts depend on data: sizes are upper bounds until the call
    reuse       layers that share one choice, 0: none do
    score_axes  axes of `press.scores` after the batch, None: the press has no score
    """

    name: str
    doc: str
    parameters: dict
    inputs: dict
    leader_inputs: tuple
    weights: dict
    runtime: tuple
    uniform: bool
    ragged: bool
    data_counts: bool
    drops_channels: bool
    drops_tokens: bool
    reuse: int
    score_axes: tuple | None
    locations: dict = field(default_factory=dict)


def _value(json_value, kind=None):
    if kind in ("float", "fraction") and type(json_value) is int:
        return float(json_value)
    if isinstance(json_value, dict):
        [(kind, amount)] = json_value.items()
        return Budget(kind, amount)
    return (
        {"inf": float("inf"), "-inf": float("-inf")}.get(json_value, json_value)
        if isinstance(json_value, str)
        else json_value
    )


def _inputs(listed):
    names = ("queries", "unrotated_queries", "hidden", "output_weight", "rope")
    wanted = {name: listed.get(name) for name in names}
    for name in ("queries", "unrotated_queries", "hidden"):
        if wanted[name] is True:
            wanted[name] = "all"
    return {name: amount for name, amount in wanted.items() if amount}


def _info(press):
    parameters = {
        p["name"]: Parameter(
            p["name"],
            p["type"],
            _value(p.get("default"), p["type"]),
            p.get("doc", ""),
            bool(p.get("static")),
            _value(p.get("value"), p["type"]),
            p.get("min"),
            p.get("max"),
            tuple(p.get("axes") or ()),
        )
        for p in press.get("parameters", ())
    }
    axes = press.get("score_axes")
    return PressInfo(
        name=press["name"],
        doc=press.get("doc", ""),
        parameters=parameters,
        inputs=_inputs(press.get("inputs") or {}),
        leader_inputs=tuple(press.get("leader_inputs") or ()),
        weights={w["name"]: bool(w.get("layered")) for w in press.get("weights") or ()},
        runtime=tuple(press.get("runtime") or ()),
        uniform=bool(press.get("uniform")),
        ragged=bool(press.get("ragged")),
        data_counts=bool(press.get("data_counts")),
        drops_channels=bool(press.get("drops_channels")),
        drops_tokens=bool(press.get("drops_tokens", True)),
        reuse=int(press.get("reuse") or 0),
        score_axes=None if axes is None else tuple(axes),
        locations=dict(press.get("locations") or {}),
    )


class Module:
    """A loaded module.

    presses  name → PressInfo
    header   all that the module says of itself, as its JSON has it
    path     the file it was loaded from
    digest   SHA-256 of that file
    target   the best code in it that this machine runs, e.g. `x86-64-v4`
    """

    def __init__(self, path, digest):
        ops = library.ops()
        self.path, self.digest = Path(path), digest
        self.header = json.loads(ops.header(digest))
        self.target = ops.target(digest)
        self.presses = {press["name"]: _info(press) for press in self.header["presses"]}

    def press(self, name=None, **parameters):
        """A press with its arguments.

        name: may be left out where the module has only one.
        parameters: by name. `drop=0.5` or `keep=1024` (or `compression_ratio=0.5`, the same as
        `drop`) set the only budget; of several each is given by its name,
        `budget=kvpc.drop(0.5)`. A parameter over layers takes one value, or one a layer. A tensor
        takes a torch tensor with all its axes, `layer` too, or the path of a safetensors file
        that has one of its name, or only one. None is as good as left out.

        Raises ArgumentError for what is unknown, missing, of another type, out of range or NaN,
        StaticParameter for what was fixed when the module was compiled.
        """
        from .presses import Press

        if name is None and len(self.presses) == 1:
            [name] = self.presses
        if not isinstance(name, str):
            listed = ", ".join(f"`{n}`" for n in self.presses)
            have = "" if name is None else f", and `name` is a {type(name).__name__}"
            raise ArgumentError(
                f"the module has presses {listed}{have}; name the one to use", "kvm-press"
            )
        return Press(self, name, parameters)

    def __repr__(self):
        return f"<kvpc.Module {self.path} ({', '.join(self.presses)}; {self.target})>"


def _path(path):
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise ArgumentError(
            f"`path` is a {type(path).__name__}; need the path of a module (.kvm)", "kvm-parameter"
        ) from None
    if "\0" in text:
        raise ArgumentError(
            f"`path` is {text!r}, which holds a NUL; need the path of a module (.kvm)",
            "kvm-parameter",
        )
    return text


def load(path, digest=None):
    """The module of a file.

    digest: the file's SHA-256 in hexadecimal; another file is then refused.

    A module is machine code, and loading it is trusting it. What is checked first, without running
    any: that the file is a module, whole, of a format this runtime reads, for this kind of machine,
    and that it neither needs libraries nor runs code by itself. Raises ModuleError otherwise.

    The environment variable KVPC_TARGET (`x86-64-v3`, `x86-64-v4`, `x86-64-v4+avx512bf16`) makes it
    use the code of that level, which the machine must have, instead of what it is fastest with.
    """
    path = _path(path)
    if not isinstance(digest, str | None):
        raise ArgumentError(
            f"`digest` is a {type(digest).__name__}; need the file's SHA-256 in hexadecimal",
            "kvm-parameter",
        )
    try:
        return Module(path, library.ops().load(path, digest or ""))
    except RuntimeError as error:
        raise of_runtime(error) from None


def inspect(path):
    """What a module file says of itself, as a dict. Loads no code."""
    path = _path(path)
    try:
        return json.loads(library.ops().inspect(path))
    except RuntimeError as error:
        raise of_runtime(error) from None
