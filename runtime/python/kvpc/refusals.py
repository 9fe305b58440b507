"""What the hook refuses, of models and of calls, before it does anything to them."""

import dis
import inspect

import torch
from transformers import DynamicCache

from .errors import ArgumentError, HookError, Unsupported
from .generate import cache_wanted
from .module import Module
from .prompt import dtype_name

# Kinds of layers that transformers' configs name: compressed, and left alone.
KINDS = {"full_attention", "sliding_attention"}


def check_press(press):
    if press is None or all(hasattr(press, name) for name in ("inputs", "inputs_at", "compress")):
        return
    if isinstance(press, Module):
        have, remedy = "a module", "`.press(...)` of it"
    else:
        have, remedy = repr(press)[:80], '`kvpc.press("snapkv", drop=0.5)`, say'
    raise ArgumentError(f"`press` is {have}; need a press; remedy: {remedy}", "hook-press")


def not_nested(outer, inner):
    if outer is not None and inner is not None:
        why = "this model has a press attached already; remedy: compose the two presses into one"
    elif outer is not None:
        why = (
            "this model has a press attached already, and reads compressed caches with it; remedy: "
            "leave out the inner `attach`"
        )
    else:
        remedy = "leave out the inner `attach`"
        if inner is not None:
            remedy = "one `with` with the press, which reads compressed caches as well"
        why = f"this model is within `attach(model)` already, without a press; remedy: {remedy}"
    return HookError(why, "hook-nested")


def check_model(model, hook, bases, allowed):
    """bases: attention implementations that it is set to; allowed: those that it may be."""
    config = hook.decoder().config
    if not getattr(model, "_supports_attention_backend", False):
        why = "its attention does not go through transformers' AttentionInterface"
    elif not hook.attention:
        why = "no attention modules found"
    elif name := next((type(m).__name__ for m in _passing(hook) if not _passes_on(m)), None):
        why = f"{name} does not pass keyword arguments on to attention"
    elif all(hook.sliding):
        why = "every layer has a sliding window: nothing to compress"
    elif not bases <= allowed:
        why = f"attention implementation: have {', '.join(sorted(bases))}, need sdpa or eager"
    elif getattr(config, "attn_logit_softcapping", None):
        why = "it caps attention logits"
    elif any(hasattr(m, "sinks") for m in hook.attention):
        why = "it has attention sinks"
    elif other := sorted(set(getattr(config, "layer_types", None) or ()) - KINDS):
        why = f"it has layers of the kind {', '.join(other)}; need full or sliding attention"
    elif name := next((type(m).__name__ for m in hook.above if _prepares_masks(m)), None):
        why = (
            f"{name} prepares the attention masks of its decoder, where the hook needs the 2D mask; "
            "remedy: its text model alone, such as Gemma3ForCausalLM of a Gemma 3"
        )
    elif getattr(config, "num_kv_shared_layers", None):
        why = "layers share keys and values with others"
    elif (cache := cache_wanted(model)) not in (None, "dynamic", "dynamic_full"):
        why = f"its generation_config asks for a {cache} cache; need a dynamic one"
    else:
        return
    raise HookError(f"cannot attach to {hook.model}: {why}", "hook-model")


def _passing(hook):
    """The modules by which keyword arguments come to attention functions."""
    layers = hook.decoder().layers
    return [m for m in layers if set(m.modules()) & set(hook.attention)] + hook.attention


def check_wishes(name, module, ours, kwargs):
    """What a call wants beside. name: of the model; ours: the cache's layers."""
    attentions = kwargs.get("output_attentions")
    if attentions is None:
        attentions = getattr(module.config, "output_attentions", False)
    if attentions and any(layer.prefix is not None for layer in ours):
        raise Unsupported(
            "a compressed cache gives no attention weights: heads and layers keep different "
            "tokens; remedy: call the model without `output_attentions`",
            "hook-attentions",
        )
    for layer in module.layers:  # which then get no cache
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            raise HookError(
                f"{name} is in training with gradient checkpointing, and so without a "
                "cache; remedy: `model.eval()`, or `use_cache=False` for a call without the press",
                "hook-model",
            )


def plain_cache(cache):
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        raise HookError(
            f"cannot compress a {type(cache).__name__}: need a DynamicCache, not offloaded",
            "hook-cache",
        )


def plain_mask(mask):
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        raise HookError(
            "need a 2D attention mask (1 for real tokens), have a prepared one", "hook-mask"
        )


def not_again(position, past):
    """generate() of 4.56 and 5.2 does not look for what a cache holds if it reads in chunks."""
    if torch.compiler.is_compiling() or past == 0 or position.shape[0] == 1:
        return  # a decoding step: nothing to wait for the device for
    if (begin := int(position[0])) < past:
        raise HookError(
            f"the cache holds {past} tokens, and these are to begin at {begin}, as `generate` with "
            "`prefill_chunk_size` has it, which reads them all once more; remedy: `generate` without "
            "it, or transformers 5.23",
            "hook-chunks",
        )


def _prepares_masks(module):
    """Whether its forward makes masks by transformers' functions, whose names begin so."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    names = code.co_names if code else ()
    return any(x.startswith("create_") and "mask" in x for x in names)


def _passes_on(module):
    """Whether its forward calls anything with keyword arguments that it does not name."""
    if type(module).__module__.startswith("torch."):  # a wrapper: torch.compile(layer)
        return True
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is None or any(
        one.opname == "CALL_FUNCTION_EX" for one in dis.get_instructions(code)
    )


def whole_cache(link):
    if link.broken:
        raise HookError(
            "compressing this cache failed half way; remedy: start again with a new cache",
            "hook-cache-broken",
        )


def shape_of(keys, values):
    width = f"{keys.shape[3]}"
    if values.shape[3] != keys.shape[3]:
        width += f" and {values.shape[3]}"
    where = dtype_name(keys.dtype), keys.device
    return "{} heads of {} channels in {} on {}".format(keys.shape[1], width, *where)


def other_model(why):
    return HookError(
        f"this compressed cache is of another model: {why}; remedy: call the model that filled it, or "
        "another instance of it in the same dtype and place",
        "hook-cache-other",
    )
