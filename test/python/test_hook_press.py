"""The hook with presses of real modules (written by hand in C, so without the compiler)."""

import fake_presses
import pytest
import torch
from model_oracle import Recorded, close, oracle_logits
from small_models import greedy, make, text

from kvpc.cache import storage_bytes
from kvpc.hook import attach

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["last", "window", "positive", "thin", "shared", "everything"])
@pytest.mark.parametrize("padded", [False, True])
def test_generate(name, padded):
    """Between them: dropped tokens, heads with different counts, dropped channels, a choice that
    layers share, every input there is."""
    press = Recorded(fake_presses.module().press(name))
    model, ids = make(), text(40, 2)
    mask = torch.ones_like(ids)
    mask[0, : 9 * padded] = 0
    with press(model):
        out = greedy(model, ids, mask)
    full = torch.cat([mask, torch.ones(2, 19, dtype=int)], 1)
    want = oracle_logits(model, press.log, out.sequences[:, :-1], 40, full)
    close(torch.stack(out.logits, 1), want[:, 39:])


@torch.no_grad()
def test_memory_of_what_is_left_as_it_is():
    """Phi-3's values are a part of the projection that gives queries and keys as well. It must not
    stay for them: of a prompt that loses channels alone, of one that stays whole, of a second."""
    model, ids, press = make("Phi3"), text(100), fake_presses.module().press("thin")
    one = 4 * 2 * 16 * 4  # keys, or values, of a token: layers, heads, channels
    with press(model):
        cache = model(ids[:, :60]).past_key_values
        prefixes = [layer.prefix for layer in cache.layers]
        width = prefixes[0].keys.shape[-1]
        want = 60 * (one * width // 16 + one) + 4 * 60 * 4  # and where they were, once a layer
        want += sum(p.channels.numel() * 8 for p in prefixes)
        assert width < 16 and storage_bytes(cache) == want
        model(ids[:, 60:], past_key_values=cache)
        assert storage_bytes(cache) == want + 40 * 2 * one
    with attach(model, press, prompt_tokens=1000):
        assert storage_bytes(model(ids).past_key_values) == 100 * 2 * one
