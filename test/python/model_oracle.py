"""The oracle for models: no compression, one forward over the whole text, its own attention.

Dropped tokens are masked and pruned channels zeroed for every query after the prompt. It shares no
code with the hook: neither cache, masks nor attention.
"""

import torch
from press_oracle import Row
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from kvpc.hook import attach


def _attention(module, query, key, value, attention_mask, scaling=None, oracle=None, **kwargs):
    if oracle is None or module.layer_idx not in oracle["log"]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    prompt, padding = oracle["prompt"], oracle["padding"]
    b, hq, t, d = query.shape
    g = hq // key.shape[1]
    late_key, dropped = key.clone(), torch.zeros(b, key.shape[1], t, dtype=torch.bool)
    for i, row in enumerate(oracle["log"][module.layer_idx]):
        dropped[i, :, :prompt] = True
        for j in range(key.shape[1]):
            dropped[i, j, row.start + row.tokens[j]] = False
            if row.channels is not None:
                gone = torch.ones(d, dtype=torch.bool)
                gone[row.channels[j]] = False
                late_key[i, j, :prompt, gone] = 0
    late = torch.arange(t) >= prompt  # queries after the prompt see the compressed prompt
    logits = torch.where(
        late[:, None],
        query @ late_key.repeat_interleave(g, 1).transpose(2, 3),
        query @ key.repeat_interleave(g, 1).transpose(2, 3),
    )
    bad = dropped.repeat_interleave(g, 1)[:, :, None] & late[:, None]
    bad = bad | ~padding.bool()[:, None, None, :t] | ~torch.ones(t, t, dtype=torch.bool).tril()
    weights = (logits * scaling).masked_fill(bad, -1e30).softmax(-1)
    return (weights @ value.repeat_interleave(g, 1)).transpose(1, 2), None


AttentionInterface.register("oracle", _attention)
AttentionMaskInterface.register("oracle", sdpa_mask)


def compressed(model):
    """Layers that a press sees: those without a sliding window."""
    types = getattr(model.config, "layer_types", None) or [""] * model.config.num_hidden_layers
    return [i for i, kind in enumerate(types) if kind != "sliding_attention"]


@torch.no_grad()
def oracle_logits(model, log, ids, prompt, padding=None):
    """log: layer, counted among the compressed ones -> one entry per batch row with `tokens` (per
    head, from the row's `start`) and `channels`."""
    log = {layer: log[number] for number, layer in enumerate(compressed(model)) if number in log}
    padding = torch.ones_like(ids) if padding is None else padding
    before, model.config._attn_implementation = model.config._attn_implementation, "oracle"
    try:
        return model(
            ids,
            attention_mask=padding,
            position_ids=(padding.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            oracle={"log": log, "prompt": prompt, "padding": padding},
        ).logits
    finally:
        model.config._attn_implementation = before


class Recorded:
    """A press, with a log of what it kept as `oracle_logits` takes it."""

    def __init__(self, press):
        self.press, self.inputs, self.inputs_at, self.log = press, press.inputs, press.inputs_at, {}

    def __call__(self, model, **options):
        return attach(model, self, **options)

    def compress(self, keys, values, *, layer, **rest):
        out = self.press.compress(keys, values, layer=layer, **rest)
        for b in range(keys.shape[0]):
            tokens = [t[t >= 0] for t in out.tokens[b]]
            channels = None if out.channels is None else out.channels[b]
            self.log.setdefault(layer, []).append(Row(tokens, channels, 0, None))
        return out


def close(a, b, bound=2e-4):
    assert a.shape == b.shape and (a - b).abs().max() < bound, (a - b).abs().max()
