"""Caches with sliding layers beside those that are compressed: what is refused changes neither."""

import copy
import io

import pytest
import torch
from model_oracle import close, oracle_logits
from press_oracle import OraclePress
from small_models import GEMMA3, make, steps, text
from transformers import DynamicCache

import kvpc
from kvpc.hook import CROP_REMOVES, HookError, attach

torch.set_num_threads(1)
FIRST = {"layer_types": ["full_attention", "sliding_attention"] * 2}


def crop(cache, count):
    cache.crop(-count if CROP_REMOVES else cache.get_seq_length() - count)


def lengths(cache):
    return [layer.get_seq_length() for layer in cache.layers]


def filled(model, press, ids, given):
    with torch.no_grad(), press(model):
        return model(ids, past_key_values=DynamicCache() if given else None).past_key_values


def saved(cache, folder):
    kvpc.save_cache(cache, folder / "cache")
    return kvpc.load_cache(folder / "cache")


def pickled(cache, folder):
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


HOW = {"live": lambda cache, _: cache, "copy": lambda cache, _: copy.deepcopy(cache)}
HOW |= {"saved": saved, "pickled": pickled}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("how", HOW)
def test_crop_refused(given, how, tmp_path):
    """By the sliding layers already, which come first, however often it is tried."""
    model, press, ids = make("Gemma3", sliding_window=64), OraclePress("all"), text(60)
    cache = filled(model, press, ids[:, :40], given)
    steps(model, cache, ids[:, 40:48])
    cache = HOW[how](cache, tmp_path)
    for _ in range(2):
        with pytest.raises(HookError, match="cannot crop to 38 tokens: the first 40 are") as e:
            crop(cache, 10)
        assert e.value.code == "hook-crop" and lengths(cache) == [48] * 4
    crop(cache, 3)
    assert lengths(cache) == [45] * 4
    with attach(model):
        got = steps(model, cache, ids[:, 45:])
    close(got, oracle_logits(model, press.log, ids, 40)[:, 45:])


@torch.no_grad()
def test_crop_of_what_slid_away_refused():
    """By the full layers already, where these come first; a whole cache, too."""
    model, ids = make("Gemma3", sliding_window=44, **FIRST), text(60)
    for begin in (0, 1):
        press, cache = OraclePress("all"), DynamicCache(config=model.config)
        model(ids[:, :begin], past_key_values=cache) if begin else None
        with press(model):
            model(ids[:, begin:40], past_key_values=cache)
            steps(model, cache, ids[:, 40:45])
        with pytest.raises(HookError, match=r"sliding layers, .* last 43 tokens of 45") as e:
            crop(cache, 2)
        assert e.value.code == "hook-crop" and lengths(cache) == [45] * 4
        got, log = steps(model, cache, ids[:, 45:]), press.log
        close(got, oracle_logits(model, log, ids, 40)[:, 45:])
        cache = DynamicCache(config=model.config)
        with press(model):
            model(ids[:, :40], past_key_values=cache)
            steps(model, cache, ids[:, 40:43])
            crop(cache, 2)
        assert lengths(cache) == [41] * 4


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("how", HOW)
@torch.no_grad()
def test_models_without_the_hook_refused(given, how, tmp_path):
    """And as the remedy says, the same cache is of use within `attach`."""
    model, press, ids = make("Gemma3"), OraclePress("all"), text(60)
    cache = HOW[how](filled(model, press, ids[:, :40], given), tmp_path)
    other = make("Gemma3")
    for _ in range(2):
        with pytest.raises(HookError, match="compressed; have: a model without the hook") as e:
            other(ids[:, 40:41], past_key_values=cache)
        assert e.value.code == "hook-cache-compressed" and lengths(cache) == [40] * 4
    with attach(other):
        got = steps(other, cache, ids[:, 40:50])
    got = torch.cat([got, steps(other, cache, ids[:, 50:])], 1)
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    "change, why",
    [
        (
            {"dtype": torch.bfloat16},
            "2 heads of 16 channels in float32 on cpu; this model has .* b",
        ),
        ({"head_dim": 8}, "this model has 2 heads of 8 channels"),
        ({"num_key_value_heads": 4}, "this model has 4 heads of 16 channels"),
        ({"sliding_window": 16}, "its layer 0 slides over 8 tokens; that of .* over 16"),
        (FIRST, "its layer 0 is of sliding attention|its layer 1 is of full attention"),
    ],
)
@torch.no_grad()
def test_caches_of_other_models_refused(tmp_path, change, why, given):
    """Before anything is added, and of use to the right model."""
    if given and "sliding_window" in change:
        return  # whole: the mask alone does the sliding
    model, press, ids = make("Gemma3"), OraclePress("all"), text(50)
    cache = saved(filled(model, press, ids[:, :40], given), tmp_path)
    change = dict(change)
    other = make("Gemma3", **{"dtype": torch.float32} | change).to(change.pop("dtype", None))
    with attach(other):
        for _ in range(2):
            with pytest.raises(HookError, match=f"of another model: .*({why}).*; remedy: ") as e:
                other(ids[:, 40:41], past_key_values=cache)
            assert e.value.code == "hook-cache-other" and lengths(cache) == [40] * 4
    with attach(model):
        got = steps(model, cache, ids[:, 40:])
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])


@torch.no_grad()
def test_a_layer_that_does_not_fit(tmp_path):
    """Found after others took their tokens: then these are as they were."""
    model, press, ids = make("Gemma3"), OraclePress("all"), text(50)
    for given in (True, False):
        cache = saved(filled(model, press, ids[:, :40], given), tmp_path)
        other = make("Gemma3")
        for layer in (2, 3):
            attention = other.model.layers[layer].self_attn
            part = attention.k_proj.register_forward_hook(lambda m, x, out: out[..., :16])
            with attach(other), pytest.raises(HookError, match=r"of another .* has 1 heads of 16"):
                other(ids[:, 40:41], past_key_values=cache)
            part.remove()
            assert lengths(cache) == [40] * 4
        with attach(model):
            got = steps(model, cache, ids[:, 40:])
        close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])
        press.log.clear()


@pytest.mark.parametrize("given", [True, False])
@torch.no_grad()
def test_reset(given):
    """To an empty cache: another prompt, compressed within a `with`, whole outside."""
    model, press, ids = make("Gemma3"), OraclePress("all"), text(60)
    cache = filled(model, OraclePress("all"), text(30, seed=5), given)
    cache.reset()
    assert lengths(cache) == [0] * 4
    close(model(ids, past_key_values=cache).logits, model(ids).logits)
    cache.reset()
    with press(model):
        model(ids[:, :40], past_key_values=cache)
    close(steps(model, cache, ids[:, 40:]), oracle_logits(model, press.log, ids, 40)[:, 40:])
    assert [GEMMA3[i] for i, x in enumerate(cache.layers) if hasattr(x, "prefix")] == [
        "full_attention"
    ] * 2


@pytest.mark.parametrize("when", ["before", "between", "after"])
@torch.no_grad()
def test_crop_of_what_records_its_past(when):
    """From 5.23 on sliding layers can hold what has left the window, from when they are told to; a
    reset does not end it."""
    model, press, ids = make("Gemma3", sliding_window=24), OraclePress("all"), text(60)
    cache = DynamicCache(config=model.config)
    if not hasattr(cache, "activate_past_recording"):
        return
    for _ in range(2):
        press.log.clear()
        if when == "before":
            cache.activate_past_recording()
        with press(model, prompt_tokens=40):
            model(ids[:, :20], past_key_values=cache)
            if when == "between":
                cache.activate_past_recording()
            model(ids[:, 20:40], past_key_values=cache)
        if when == "after":
            cache.activate_past_recording()
        steps(model, cache, text(8, seed=5))
        crop(cache, 8)
        got = steps(model, cache, ids[:, 40:])
        close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])
        cache.reset()
        when = "never again"


@torch.no_grad()
def test_recorded_past_is_not_saved(tmp_path):
    """A loaded cache does not record, and holds no more than its window."""
    model, press, ids = make("Gemma3", sliding_window=16), OraclePress("all"), text(60)
    with press(model):
        cache = model(ids[:, :40]).past_key_values
    if not hasattr(cache, "activate_past_recording"):
        return
    cache.activate_past_recording()
    steps(model, cache, ids[:, 40:50])
    loaded, want = saved(cache, tmp_path), oracle_logits(model, press.log, ids, 40)[:, 50:]
    assert loaded.layers[0].keys.shape[2] == 15
    with attach(model):
        close(steps(model, loaded, ids[:, 50:]), want)
    close(steps(model, cache, ids[:, 50:]), want)
