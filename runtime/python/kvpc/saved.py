"""A compressed cache as a safetensors file.

Its tensors are named by layer: `3.keys`, `3.values` and `3.tokens` of what the press kept (tokens:
positions in the prompt), `3.offsets` where heads keep different counts, `3.channels` where channels
were dropped, `3.tail_keys` and `3.tail_values` of what came later. The metadata entry `kvpc_cache`
says the rest as JSON. Nothing of the model goes along.
"""

import json

from .errors import Error

VERSION = 1


class SavedCacheError(Error):
    """A file that holds no cache which this version can read, or a cache that cannot be saved."""


def save_cache(cache, path):
    """Writes a compressed cache, with its logical positions."""
    from safetensors.torch import save_file
    from transformers import DynamicCache

    from .refusals import whole_cache

    if type(cache) is not DynamicCache:
        raise SavedCacheError(
            f"cannot save a {type(cache).__name__}; need a DynamicCache, such as a model returns as "
            "`past_key_values`",
            "cache-type",
        )
    if not cache.layers:
        raise SavedCacheError("the cache is empty; need one that a model has filled", "cache-empty")
    for layer in cache.layers:
        if hasattr(layer, "link"):
            whole_cache(layer.link)
    tensors, layers = {}, []
    for number, layer in enumerate(cache.layers):
        parts, said = _parts(number, layer)
        layers.append(said)
        tensors |= {f"{number}.{name}": x.detach().contiguous() for name, x in parts.items()}
    said = {"version": VERSION, "layers": layers}
    try:
        save_file(tensors, path, metadata={"kvpc_cache": json.dumps(said)})
    except Exception as error:  # safetensors has its own for what is an OSError elsewhere
        raise SavedCacheError(f"cannot write `{path}`: {error}", "cache-file") from None


def load_cache(path, device="cpu"):
    """The cache of a file, to be read by the model that filled it, or another instance of it:

    with kvpc.hook.attach(model):
        model(ids, past_key_values=kvpc.load_cache(path))
    """
    from safetensors import safe_open
    from transformers import DynamicCache

    from .layers import Link, unlinked_layer

    try:
        with safe_open(path, "pt", device=str(device)) as file:
            said = json.loads((file.metadata() or {}).get("kvpc_cache", "{}"))
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise SavedCacheError(
            f"cannot read `{path}`: there is no such file", "cache-file"
        ) from None
    except Exception as error:
        message = f"cannot read `{path}` as safetensors: {error}"
        raise SavedCacheError(message, "cache-file") from None
    version = said.get("version") if isinstance(said, dict) else None
    if version != VERSION:
        have = "no saved cache" if version is None else f"a cache of version {version}"
        raise SavedCacheError(
            f"`{path}` holds {have}; need version {VERSION}, as kvpc.save_cache writes it",
            "cache-file",
        )
    cache = DynamicCache()
    cache.layers, link = [], Link()
    try:
        for number, layer in enumerate(said["layers"]):
            start = f"{number}."
            parts = {n.removeprefix(start): x for n, x in tensors.items() if n.startswith(start)}
            cache.layers.append(unlinked_layer(layer, parts, link))
    except Exception as error:  # whatever is amiss in it
        message = f"`{path}` is damaged: {type(error).__name__}: {error}; need it saved again"
        raise SavedCacheError(message, "cache-file") from None
    return cache


def _parts(number, layer):
    """The tensors of a layer, and what must be said beside."""
    prefix = getattr(layer, "prefix", None)
    if prefix is None:
        if layer.keys is None:
            raise SavedCacheError(f"layer {number} of the cache is empty", "cache-empty")
        said = {"kind": "whole"}
        if getattr(layer, "sliding_window", None):
            seen = int(layer.cumulative_length)
            said = {"kind": "sliding", "window": layer.sliding_window, "seen": seen}
            # one that records its past holds more, and a loaded one does not record
            past = max(0, layer.keys.shape[2] - layer.sliding_window + 1)
            parts = {"tail_keys": layer.keys[:, :, past:], "tail_values": layer.values[:, :, past:]}
            return parts, said
        return {"tail_keys": layer.keys, "tail_values": layer.values}, said
    parts = {"keys": prefix.keys, "values": prefix.values, "tokens": prefix.tokens}
    if prefix.offsets is None and prefix.tokens.stride(1) == 0:
        parts["tokens"] = prefix.tokens[:, :1]  # the same of all heads
    for name in ("offsets", "channels"):
        if getattr(prefix, name) is not None:
            parts[name] = getattr(prefix, name)
    said = {"kind": "compressed", "sealed": layer.sealed, "heads": prefix.heads}
    said["rows"] = prefix.rows
    return parts | {"tail_keys": layer.keys, "tail_values": layer.values}, said
