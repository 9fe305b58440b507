"""What ours is compared with: kvpress as it is, and torch.compile of the same formulas.

kvpress patches transformers when it is imported, and is no part of kvpc: it is imported here alone.
"""

import logging
import warnings
from dataclasses import replace
from types import SimpleNamespace

import torch
from formulas import compress, weights
from formulas import rotary as rotary_tables

torch._logging.set_logs(all=logging.ERROR)  # a count that depends on data is no news


def attention_module(given, queries="window"):
    """What a press of kvpress asks of the model's attention, and its arguments.

    Its queries are the ones given: the projection passes them through, and so does a rotation by
    nothing.
    """
    channels = given.keys.shape[3]
    module = SimpleNamespace(
        config=SimpleNamespace(
            num_attention_heads=given.queries.shape[1],
            num_key_value_heads=given.keys.shape[1],
            num_hidden_layers=given.layers,
        ),
        head_dim=channels,
        layer_idx=given.layer,
        q_proj=lambda hidden: hidden,
        rotary_emb=rotary_tables,
    )
    flat = given.queries.transpose(1, 2).flatten(2)
    hidden = flat
    if queries == "window":  # it wants more
        hidden = torch.cat([torch.zeros_like(flat[:, :1]), flat], 1)
    elif queries == "counted":
        hidden = flat.new_zeros(1, given.keys.shape[2], channels)
    rotary = (torch.ones_like(hidden[..., :channels]), torch.zeros_like(hidden[..., :channels]))
    return module, hidden, {"position_embeddings": rotary, "hidden_states": hidden}


def eager_weights(given, keys):
    """What eager attention holds of a layer: [1, query head, query, token]."""
    n, groups = keys.shape[2], given.queries.shape[1] // keys.shape[1]
    out = keys.new_empty(keys.shape[1], groups, n, n)
    for head in range(keys.shape[1]):
        out[head] = weights(given, keys, slice(head, head + 1))[0]
    return out.flatten(0, 1)[None]


def kvpress_call(presses, given, queries="window", weighed=False):
    """A function of (keys, values) that runs these presses, one on what the other left; with
    `weighed` it makes the weights of all queries first."""
    module, hidden, rest = attention_module(given, queries)

    def call(keys, values):
        with torch.no_grad():
            paid = eager_weights(given, keys) if weighed else None
            for press in presses:
                keys, values = press.compress(module, hidden, keys, values, paid, rest)
        return keys, values

    return call


def compiled_calls(stages, given):
    """name → torch.compile of the formulas, for these shapes and this number of threads.

    Where the machine has no bf16 products, PyTorch's take tens of times as long as f32 ones: then
    the formulas multiply in f32 alone, else both ways are measured.
    """
    torch._dynamo.reset()
    narrow = given.keys.dtype != torch.float32
    calls = {}
    if not narrow or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        calls["torch.compile"] = _compiled(stages, given)
    if narrow:
        calls["torch.compile wide"] = _compiled(stages, replace(given, wide=True))
    return calls


def _compiled(stages, given):
    def formulas(keys, values, queries, filters):
        at = replace(given, keys=keys, values=values, queries=queries, filters=filters)
        return compress(stages, at)

    function = torch.compile(formulas, dynamic=False)

    def call(keys, values):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(keys, values, given.queries, given.filters)

    return call
