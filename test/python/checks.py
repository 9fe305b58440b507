"""What the tests of compiled presses share: inputs, the reference's answer to given scores, bounds."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import kvpc
from kvpc import library, reference

CAST = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def best_target():
    """The instruction set that this machine is fastest with."""
    info = Path("/proc/cpuinfo").read_text()
    flags = next(x for x in info.splitlines() if x.startswith("flags"))
    if "avx512bw" not in flags:
        return "x86-64-v3"
    has_pairs = "avx512_bf16" in flags and "GenuineIntel" not in info
    return "x86-64-v4+avx512bf16" if has_pairs else "x86-64-v4"


@dataclass
class Row:
    """One sequence: keys, values [head, token, channel], queries [query head, token, channel]."""

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor

    @property
    def length(self):
        return self.keys.shape[1]


def row(tokens, seed, dtype="f32", heads=2, groups=2, channels=16):
    """Queries come near to some keys, so that attention is neither flat nor a single peak."""
    make = torch.Generator().manual_seed(seed)
    keys = torch.randn(heads, tokens, channels, generator=make)
    # Channels and tokens of different size, as caches have them.
    keys *= 0.3 + 1.5 * torch.rand(channels, generator=make)
    keys *= 0.5 + torch.rand(heads, tokens, 1, generator=make)
    keys += torch.randn(heads, 1, channels, generator=make)
    values = torch.randn(heads, tokens, channels, generator=make)
    queries = torch.randn(heads * groups, tokens, channels, generator=make)
    return Row(*(x.to(CAST[dtype]) for x in (keys, values, queries)))


def batch(rows, padding="right", window=None, fill=float("nan")):
    """The arguments of `compress` for these sequences. What no row owns holds `fill`."""
    most = max(r.length for r in rows)
    asked = most if window is None else min(window, most)

    def whole(tensors, extent, left):
        first = tensors[0]
        out = torch.full(
            (len(rows), first.shape[0], extent, first.shape[2]), fill, dtype=first.dtype
        )
        for place, tensor in zip(out, tensors):
            real = tensor[:, -extent:]
            n = real.shape[1]
            (place[:, extent - n :] if left else place[:, :n]).copy_(real)
        return out

    left = padding == "left"
    call = {
        "keys": whole([r.keys for r in rows], most, left),
        "values": whole([r.values for r in rows], most, left),
        "lengths": torch.tensor([r.length for r in rows]),
        "padding": padding,
    }
    if window != 0:
        # Each row's end at its last real token, whatever the padding of the cache.
        call["queries"] = whole([r.queries for r in rows], asked, True)
    return call


def same_bits(a, b):
    """Equal bytes: NaN equals itself, zeros differ in sign."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(
        a.contiguous().view(torch.uint8) if a.numel() else a,
        b.contiguous().view(torch.uint8) if b.numel() else b,
    )


@dataclass
class Kept:
    """What one sequence keeps: per head its tokens, counted from the sequence's first."""

    tokens: list
    channels: torch.Tensor | None
    keys: list = field(default_factory=list)
    values: list = field(default_factory=list)

    def __eq__(self, other):
        return (
            len(self.tokens) == len(other.tokens)
            and all(torch.equal(a, b) for a, b in zip(self.tokens, other.tokens))
            and same_bits(self.channels, other.channels)
            and all(same_bits(a, b) for a, b in zip(self.keys, other.keys))
            and all(same_bits(a, b) for a, b in zip(self.values, other.values))
        )


def kept(out, call, index):
    """The Kept of a batch row; checks what lies past its counts."""
    most = call["keys"].shape[2]
    length = int(call["lengths"][index])
    start = most - length if call["padding"] == "left" else 0
    result = Kept([], None if out.channels is None else out.channels[index])
    for head, tokens in enumerate(out.tokens[index]):
        count = out.lengths[index]
        count = int(count[head] if count.dim() else count)
        assert (tokens[count:] == -1).all(), "tokens past the count are -1"
        for tensor in (out.keys, out.values):
            assert not tensor[index, head, count:].any(), "zero past the count"
        result.tokens.append(tokens[:count] - start)
        result.keys.append(out.keys[index, head, :count])
        result.values.append(out.values[index, head, :count])
    return result


def check_output(out, call):
    """Whatever is chosen: ascending, real, at least one, bytes as gathered, every row's counts."""
    for index, length in enumerate(call["lengths"].tolist()):
        here = kept(out, call, index)
        start = call["keys"].shape[2] - length if call["padding"] == "left" else 0
        for head, tokens in enumerate(here.tokens):
            assert 1 <= len(tokens) <= length
            assert (tokens[1:] > tokens[:-1]).all(), "ascending"
            assert tokens[0] >= 0 and tokens[-1] < length, "padding is never kept"
            keys = call["keys"][index, head, tokens + start]
            if here.channels is not None:
                channels = here.channels[head]
                assert (channels[1:] > channels[:-1]).all()
                keys = keys[:, channels]
            assert same_bits(here.keys[head], keys)
            assert same_bits(here.values[head], call["values"][index, head, tokens + start])


def selected_by_reference(press, call, given=None):
    """The reference's output; `given` (scores, protected) stand for those of the first selection."""
    if given is None:
        return press.compress(**call, backend="reference")
    made = press._call(_all_arguments(call))
    made.plan()
    with tempfile.TemporaryDirectory(prefix="kvpc-given-") as folder:
        inputs, scores, outputs = (Path(folder) / name for name in ("in", "scores", "out"))
        save_file(reference._tensors(press, made), inputs)
        tensors = {"scores.0": given[0].contiguous(), "protected.0": given[1].contiguous()}
        save_file(tensors, scores)
        scale = call.get("scale") or call["keys"].shape[3] ** -0.5
        command = [
            library.compiler(),
            "run",
            press.module.path,
            "--reference",
            f"--press={press.name}",
            f"--input={inputs}",
            f"--given-scores={scores}",
            f"--output={outputs}",
            *reference._settings(press, made),
            *reference._rope(made),
            f"--layer={made.layer}",
            f"--layers={made.layers}",
            f"--scale={scale!r}",
        ]
        done = library.run(command)
        assert done.returncode == 0, done.stderr
        out = load_file(outputs)
    lengths = out["lengths"]
    return kvpc.Output(
        out["keys"],
        out["values"],
        out["tokens"],
        out["channels"] if press.info.drops_channels else None,
        lengths if press.info.ragged else lengths[:, 0],
    )


def _all_arguments(call):
    names = "queries unrotated_queries hidden output_weight rope scale lengths original_positions seen state"
    return dict.fromkeys(names.split()) | {"layer": 0, "layers": 1, "padding": "left"} | call
