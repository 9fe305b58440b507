"""A model's `generate` while a press is attached."""

import functools
import inspect
import sys
import threading

import torch
from transformers import GenerationMixin

from .errors import HookError, Unsupported

# Settings of generate() with which a forward holds candidates beside the prompt; any of them may be
# rejected later, and the hook cannot tell them from the prompt. `use_mtp` is of 5.23.
CANDIDATES = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


class Generate:
    """A model's `generate` within a `with`, on the instance: a forward cannot see where a prompt
    ends that it feeds in chunks, nor that candidates come along."""

    def __init__(self, model, hook):
        self.own, self.stock = "generate" in vars(model), model.generate
        self.model, self.hook = model, hook
        functools.update_wrapper(self, self.stock)
        model.generate = self

    def leave(self):
        if vars(self.model).get("generate") is self:  # else another has put its own there
            del self.model.generate
            if self.own:
                self.model.generate = self.stock
        self.model = self.hook = None

    def __reduce__(self):
        # A copy of the model has its own stock one: that of a bound method's copy is the copy's.
        return _itself, (self.stock,)

    def __call__(self, *args, **kwargs):
        model, hook = self.model, self.hook
        if hook is None:  # kept from within a `with` that has ended
            return self.stock(*args, **kwargs)
        told = dict(zip(_names(self.stock), args)) | kwargs
        if hook.press is not None:
            _refuse_candidates(model, told)
        thread, chunks = threading.get_ident(), None
        if _setting(model, told, "prefill_chunk_size"):
            given = map(told.get, ("inputs", "input_ids", "inputs_embeds", "attention_mask"))
            length = max((x.shape[1] for x in given if x is not None), default=None)
            chunks = Chunks(hook.prompt_tokens or length, told.get("past_key_values"))
        outer = hook.generating.get(thread)  # where something within its generate() generates
        hook.generating[thread] = chunks
        try:
            return self.stock(*args, **kwargs)
        finally:
            hook.generating[thread] = outer
            if outer is None:
                del hook.generating[thread]


class Chunks:
    """A prompt that generate() feeds in chunks. given: the cache that it is to be in, or None."""

    def __init__(self, length, given):
        # 4.56 makes one of tuples
        self.length, self.cache = length, id(given) if hasattr(given, "layers") else None

    def are_in(self, cache):
        """The one given, or the first call's; others within it, such as of guidance, read prompts
        of their own."""
        self.cache = self.cache or id(cache)
        return self.cache == id(cache)


def _itself(x):
    return x


def _names(generate):
    """Of its positional arguments; behind `*args`, those of transformers' own."""
    names = []
    for name, parameter in inspect.signature(generate).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            stock = inspect.signature(GenerationMixin.generate).parameters
            return names + list(stock)[1 + len(names) :]
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names


def cache_wanted(model):
    """What generate() would make: static, quantized, ..., None for the default."""
    config = getattr(model, "generation_config", None)
    return getattr(config, "cache_implementation", None)


def _setting(model, told, name):
    """What generate() takes `name` to be: its own argument, or its configuration's, or the
    model's."""
    if name in told:
        return told[name]
    for config in (told.get("generation_config"), getattr(model, "generation_config", None)):
        if (value := getattr(config, name, None)) is not None:
            return value
    return None


def refuse_from_above(name, decoder):
    """Where a press is attached to a part of a model, that model's generate() is not wrapped: it
    shows as a caller of the forward."""
    frame = sys._getframe()
    while frame is not None:
        model = frame.f_locals.get("self") if frame.f_code.co_name == "generate" else None
        if isinstance(model, torch.nn.Module) and any(m is decoder for m in model.modules()):
            told = {n: frame.f_locals.get(n) for n in ("generation_config", "assistant_model")}
            _refuse_candidates(model, told)
            if _setting(model, told, "prefill_chunk_size"):
                above = type(model).__name__
                raise HookError(
                    f"`generate` of {above} with `prefill_chunk_size`, and a press attached to its "
                    f"{name}, which is not told where the prompt ends; remedy: attach the press to "
                    f"the {above}",
                    "hook-chunks",
                )
        frame = frame.f_back


def _refuse_candidates(model, told):
    names = ["assistant_model"] if told.get("assistant_model") is not None else []
    for name in names + [name for name in CANDIDATES if _setting(model, told, name)]:
        raise Unsupported(
            f"`generate` with `{name}` feeds candidates along with the prompt, and a press cannot "
            "tell them apart; remedy: generate without it inside the `with`",
            "hook-candidates",
        )
