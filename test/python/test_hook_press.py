"""The hook with presses of real modules (written by hand in C, so without the compiler)."""

import fake_presses
import pytest
import torch
from model_oracle import Recorded, close, oracle_logits
from small_models import greedy, make, text

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
