"""What an attention module does around its attention, found by trying a copy of it.

Models differ in how they rotate queries and keys (which channels pair, layers that rotate nothing)
and in which of their projections follows the attention. Nothing says so for all of them, but it
shows: the same numbers in the place of all projections, once with rotary tables and once with tables
that turn nothing. Neither weights nor hooks of the module are touched, nor those hooks called that are for
all modules.
"""

import copy
import functools
import itertools

import torch

NAME = "kvpc_probe"  # of `attention` below, as transformers knows it
# few, and none that every table leaves as it is
POSITIONS = torch.tensor([[1, 4, 9]], device="cpu")


class Projection(torch.nn.Module):
    """Stands for a linear layer: always the same numbers, and a note of what it was given."""

    def __init__(self, linear, seed):
        super().__init__()
        self.linear, self.seed = (linear,), seed  # a tuple: no child of this one
        self.given = self.made = None

    def __call__(self, x):
        self.given = x
        self.made = _numbers(self.seed, *x.shape[:-1], self.linear[0].out_features)
        return self.made


def _numbers(seed, *shape):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


def _skeleton(module, seeds):
    """A copy with projections that cost nothing; norms and the like are as they are."""
    if hasattr(module, "out_features"):
        return Projection(module, next(seeds))
    new, own = quiet(copy.copy(module)), vars(module)
    vars(new).pop("forward", None)  # of wrappers, such as move weights between devices
    for name in ("_parameters", "_buffers"):
        vars(new)[name] = {n: _plain(x) for n, x in own[name].items()}
    vars(new)["_modules"] = {n: m and _skeleton(m, seeds) for n, m in own["_modules"].items()}
    new.training = False
    return new


def quiet(module):
    """A copy whose calls run no hooks: neither its own nor those for all modules."""
    module.__class__ = _quiet(type(module))
    return module


class _Quiet(torch.nn.Module):
    def __init_subclass__(cls):
        """Not that of `kind`, which may take arguments or keep a register."""

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)


@functools.cache
def _quiet(kind):
    body = {"__module__": kind.__module__}
    return type.__new__(type(kind), kind.__name__, (_Quiet, kind), body)  # nor its metaclass' code


def tables(source, *kind):
    """What a rotary embedding gives at POSITIONS."""
    return quiet(source)(torch.zeros(1, 1, dtype=torch.float32, device="cpu"), POSITIONS, *kind)


def _plain(x):
    if x is None or not x.is_floating_point():
        return x
    return x.detach().to("cpu", torch.float32)


class Trial:
    """One attention module. `config`: a copy of its own, set to call `attention` below."""

    @torch.no_grad()
    def __init__(self, module, config, tables):
        self.skeleton = _skeleton(module, itertools.count(1))
        self.skeleton.config = config
        self.hidden = torch.zeros(1, 3, config.hidden_size, dtype=torch.float32, device="cpu")
        self.cos, self.sin = tables
        self.turned = self._call(self.cos, self.sin)
        self.plain = self._call(torch.ones_like(self.cos), torch.zeros_like(self.sin))

    def _call(self, cos, sin):
        self.seen = None
        out = self.skeleton(
            hidden_states=self.hidden,
            position_embeddings=(cos, sin),
            attention_mask=None,
            kvpc=self,
        )
        self.result = out[0] if isinstance(out, tuple) else out
        return self.seen

    def layout(self):
        """How queries and keys are rotated: "half", "none", or "other"."""
        found = {self._layout(x, y) for x, y in zip(self.plain, self.turned)}
        return found.pop() if len(found) == 1 else "other"

    def _layout(self, plain, turned):
        if _same(plain, turned):
            return "none"
        width = self.cos.shape[-1]
        a, b = plain[..., :width].chunk(2, -1)
        half = plain[..., :width] * self.cos[:, None]
        half = half + torch.cat([-b, a], -1) * self.sin[:, None]
        return "half" if _same(torch.cat([half, plain[..., width:]], -1), turned) else "other"

    def shapes(self, dtype, tokens):
        """Queries, keys, values and hidden states of so many tokens, in no memory."""
        for x in (*self.plain, self.value):
            one = torch.zeros(x.shape[3], dtype=dtype, device="cpu")
            yield one.expand(1, x.shape[1], tokens, -1)
        yield self.hidden.new_zeros(self.hidden.shape[2], dtype=dtype).expand(1, tokens, -1)

    def output(self):
        """The module's own projection that takes what attention gives, or None; and why a press
        cannot have its weight, or None."""
        found = [
            m
            for m in self.skeleton.modules()
            if isinstance(m, Projection) and _same(m.given, self.out.flatten(2))
        ]
        if len(found) != 1:
            return None, "no projection of {} takes what attention gives as it is"
        linear, start = found[0].linear[0], "the projection behind the attention of {} "
        weight = getattr(linear, "weight", None)  # a method, where torch has quantized it
        shape = self.hidden.shape[-1], self.out[0, 0].numel()
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            return linear, start + "has no plain weight"
        if tuple(weight.shape) != shape:
            return linear, start + f"has a weight of shape {list(weight.shape)}, not {list(shape)}"
        plain = "forward" not in vars(linear) or hasattr(linear, "_hf_hook")  # accelerate's
        if type(linear).forward is not torch.nn.Linear.forward or not plain:
            name = type(linear).__name__ + ("" if plain else " with a forward of its own")
            return linear, start + (
                f"is of the class {name}, which may do more than its weight says; an adapter, "
                "such as a LoRA, can be merged into it"
            )
        if not _same(self.result, found[0].made):
            return linear, start + "is not the last to change what attention gives"
        return linear, None


def attention(module, query, key, value, attention_mask, *args, kvpc, **kwargs):
    """What the copy takes for its attention."""
    kvpc.seen, kvpc.value = (query, key), value
    kvpc.out = _numbers(0, query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    return kvpc.out, None


def is_half(tables, inverse_frequencies, scaling):
    """Whether rotary tables at POSITIONS repeat the frequencies one after the other."""
    angles = POSITIONS[..., None] * inverse_frequencies.repeat(2)
    return all(_same(f(angles) * scaling, x) for f, x in zip((torch.cos, torch.sin), tables))


def _same(a, b):
    return a is not None and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
