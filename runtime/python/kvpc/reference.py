"""The reference interpreter as a backend: `kvpc run MODULE --reference` in a process of its own.

Tensors go through safetensors files, under the names of the arguments of `compress`, contiguous:

    keys, values        [batch, head, token, channel]
    queries, unrotated_queries   [batch, head, group, query, channel], the last ones
    hidden              [batch, query, feature], the last ones
    output_weight       [head, group, channel, feature]
    original_positions  int64 [batch, head, token], absent: counted from the first real token
    start, length, seen int64 [batch]
    rope_frequencies    f64 [width / 2]
    weight.NAME         f32, at this layer

scalars as `--set NAME=VALUE` and options. It returns keys, values, tokens, channels (if any are
dropped) and lengths [batch, head]; with --scores, scores and protected.
"""

import tempfile
from pathlib import Path

import torch

from . import library
from .errors import Error, StateError
from .presses import Output


def compress(press, call, state):
    """What `press.compress` returns. The runtime checks the call as it does its own."""
    following = press.reuse > 1 and call.layer % press.reuse
    if following:
        _check_leader(press, call, state)
    else:
        call.plan()
    out = _run(press, call, state if press.reuse else None, scores=False)
    lengths = out["lengths"]
    return Output(
        out["keys"],
        out["values"],
        out["tokens"],
        out["channels"] if press.info.drops_channels else None,
        lengths if press.info.ragged else lengths[:, 0].contiguous(),
    )


def scores(press, call):
    """What `press.scores` returns."""
    call.plan(scores=True)
    out = _run(press, call, None, scores=True)
    return out["scores"], out["protected"].bool()


def _check_leader(press, call, state):
    leader = call.layer - call.layer % press.reuse
    if state is None or state.reference is None or state.reference[0] != leader:
        raise StateError(
            f"layer {call.layer} takes the choice of layer {leader}, which the state does not hold; "
            "give one state to the calls of all layers of a forward pass, in order",
            "kvm-state",
        )
    theirs = state.reference[2]
    for name, ours in _shared(press, call).items():
        if not torch.equal(ours, theirs[name]):
            raise StateError(
                f"layer {call.layer} takes the choice of layer {leader}, whose call had other "
                f"`{name}`; give both layers the same",
                "kvm-state",
            )


def _shared(press, call):
    """What layers that share a choice must have in common."""
    tensors = _tensors(press, call)
    batch, heads, tokens, _ = tensors["keys"].shape
    positions = tensors.get("original_positions")
    if positions is None:
        positions = (torch.arange(tokens, device="cpu") - tensors["start"][:, None])[:, None]
        positions = positions.expand(-1, heads, -1)
    index = torch.arange(tokens, device="cpu") - tensors["start"][:, None, None]
    real = (index >= 0) & (index < tensors["length"][:, None, None])
    return {
        "keys": torch.tensor([batch, heads, tokens], device="cpu"),
        "layers": torch.tensor(call.layers, device="cpu"),
        "lengths": torch.stack([tensors["start"], tensors["length"]]),
        "original_positions": torch.where(real, positions, -1),
        "seen": tensors["seen"],
    }


def _tensors(press, call):
    keys, values, queries, unrotated, hidden, weight, rope = call.arguments[:7]
    lengths, pad_right, positions, seen = call.arguments[12:16]
    batch, heads, tokens, _ = keys.shape
    length = (
        torch.full((batch,), tokens, device="cpu") if lengths is None else lengths.to(torch.int64)
    )
    out = {"keys": keys, "values": values, "length": length}
    out["start"] = torch.zeros_like(length) if pad_right else tokens - length
    out["seen"] = length.clone() if seen is None else seen.to(torch.int64)
    for name, given in (("queries", queries), ("unrotated_queries", unrotated)):
        if given is not None:
            out[name] = _last(given, press.inputs[name], 2).unflatten(1, (heads, -1))
    if hidden is not None:
        out["hidden"] = _last(hidden, press.inputs["hidden"], 1)
    if weight is not None and weight.dim() == 2:
        weight = weight.unflatten(1, (heads, -1, values.shape[3])).permute(1, 2, 3, 0)
    if weight is not None:
        out["output_weight"] = weight
    if positions is not None:
        out["original_positions"] = (
            positions if positions.dim() == 3 else positions[:, None].expand(-1, heads, -1)
        )
    if rope is not None:
        out["rope_frequencies"] = rope.double()
    for name, tensor in zip(press.info.weights, call.weights):
        out[f"weight.{name}"] = tensor
    # Clones: a file may not hold two tensors of one memory.
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def _last(tensor, wanted, axis):
    have = tensor.shape[axis]
    count = have if wanted == "all" else min(have, wanted)
    return tensor.narrow(axis, have - count, count)


def _settings(press, call):
    for name in press.info.runtime:
        value = press.parameters[name]
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        if isinstance(value, list | tuple):
            value = value[call.layer]
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, float):
            value = repr(value)
        yield f"--set={name}={value}"


def _rope(call):
    """What is said of RoPE beside its frequencies."""
    if call.rope is not None:
        yield f"--rope-scaling={float(call.rope.attention_scaling)!r}"
        if call.rope.layout == "interleaved":
            yield "--rope-interleaved"


def _run(press, call, state, scores):
    from safetensors.torch import load_file, save_file

    scale = call.arguments[9]
    if scale is None:
        scale = call.arguments[0].shape[3] ** -0.5
    with tempfile.TemporaryDirectory(prefix="kvpc-reference-") as folder:
        given, result, kept = (Path(folder) / name for name in ("in", "out", "state"))
        save_file(_tensors(press, call), given)
        command = [
            library.compiler(),
            "run",
            press.module.path,
            "--reference",
            f"--press={press.name}",
            f"--input={given}",
            f"--output={result}",
            *_settings(press, call),
            f"--layer={call.layer}",
            f"--layers={call.layers}",
            f"--scale={scale!r}",
        ]
        if scores:
            command.append("--scores")
        command += _rope(call)
        if state is not None:
            following = call.layer % press.reuse
            kept.write_bytes(state.reference[1] if following else b"")
            command.append(f"--state={kept}")
        done = library.run(command)
        if done.returncode:
            reason = done.stderr.strip() or f"exit code {done.returncode}"
            raise Error(f"the reference interpreter failed: {reason}")
        if state is not None and not following:
            state.reference = (call.layer, kept.read_bytes(), _shared(press, call))
        return load_file(result)
