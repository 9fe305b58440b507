"""Attaching and leaving: what is refused, what is left behind, threads, nesting, exceptions."""

import gc
import threading

import pytest
import torch
import transformers
from model_oracle import close, oracle_logits
from press_oracle import OraclePress
from small_models import make, steps, text
from transformers import DynamicCache

import kvpc.hook
from kvpc.hook import HookError, attach

torch.set_num_threads(1)


def state(model):
    """All of a model that a hook could leave traces in."""
    modules = [
        (name, len(m._forward_pre_hooks), len(m._forward_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    ]
    return [*modules, model.config._attn_implementation, model.config.to_dict()]


@torch.no_grad()
def test_leaving_restores_the_model():
    model, ids = make(), text(30)
    before, plain = state(model), model(ids).logits
    with OraclePress("all", unrotated=True)(model):
        assert model.config._attn_implementation == "sdpa"  # switched during forwards only
        cache = model(ids).past_key_values
    assert torch.equal(model(ids).logits, plain)
    steps(model, cache, ids[:, :3])
    assert state(model) != before  # the cache lives: an idle pair of hooks on the decoder
    del cache
    gc.collect()
    model(ids)  # takes the hooks of dead caches away
    assert state(model) == before and model.get_decoder() not in kvpc.hook._hooks


@pytest.mark.parametrize("where", ["press", "model"])
@torch.no_grad()
def test_an_exception_leaves_the_model_as_it_was(where):
    model, ids, press = make(), text(30), OraclePress()
    before, plain = state(model), model(ids).logits
    if where == "press":
        press.compress = lambda *args, **kwargs: 1 / 0
    else:
        handle = model.model.layers[2].mlp.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError), press(model):
        model(ids)
    if where == "model":
        handle.remove()
    gc.collect()
    model(ids)
    assert state(model) == before and not kvpc.hook._switched
    assert torch.equal(model(ids).logits, plain)


def test_nesting_is_an_error():
    model, ids, press = make(), text(30), OraclePress()
    with press(model):
        with (
            pytest.raises(
                HookError, match="a press attached already; remedy: compose the two presses"
            ),
            OraclePress()(model),
        ):
            pass
        model(ids)
    assert press.calls == 4  # the outer one went on working
    with press(model):  # and may be used again
        model(ids)
    assert press.calls == 8


def test_own_generate_is_kept():
    model = make()
    model.generate = mine = lambda *args, **kwargs: "mine"
    with OraclePress()(model):
        assert model.generate() == "mine"
    assert model.generate is mine


@torch.no_grad()
def test_threads():
    models, out = [make(seed=s) for s in (0, 1)], {}
    models[1].model.config = models[0].config  # even with one config object between them

    def run(i):
        for _ in range(3):
            press, cache, ids = OraclePress("all"), DynamicCache(), text(60, seed=i)
            with torch.no_grad(), press(models[i]):
                first = models[i](ids[:, :40], past_key_values=cache).logits
                out[i] = torch.cat([first, steps(models[i], cache, ids[:, 40:])], 1), press.log, ids

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    [t.start() for t in threads], [t.join() for t in threads]
    for i in (0, 1):
        close(out[i][0], oracle_logits(models[i], out[i][1], out[i][2], 40))


@torch.no_grad()
def test_calls_refused():
    model, ids = make(), text(40)
    with OraclePress()(model):
        with pytest.raises(HookError, match="need a 2D attention mask"):
            model(ids, attention_mask=torch.ones(1, 1, 40, 40, dtype=torch.bool))
        with pytest.raises(HookError, match="cannot compress a StaticCache: need a DynamicCache"):
            model(
                ids, past_key_values=transformers.StaticCache(config=model.config, max_cache_len=64)
            )
        hole, both = torch.ones(2, 40, dtype=int), torch.ones(2, 40, dtype=int)
        hole[0, 5:9] = 0
        both[0, :3], both[1, 30:] = 0, 0
        with pytest.raises(HookError, match="one side of the prompt"):
            model(text(40, 2), attention_mask=hole)
        with pytest.raises(HookError, match="the same side in every row"):
            model(text(40, 2), attention_mask=both)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"_attn_implementation": "flex_attention"}, "have flex_attention, need sdpa or eager"),
        ({"_attn_implementation": "flash_attention_2"}, "have flash_attention_2, need sdpa or"),
        ({"attn_logit_softcapping": 30.0}, "caps attention logits"),
        ({"num_kv_shared_layers": 2}, "share keys and values"),
        ({"layer_types": ["full_attention", "linear_attention"] * 2}, "the kind linear_attention"),
    ],
)
def test_models_refused(change, why):
    model = make()
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(HookError, match="cannot attach to LlamaForCausalLM: .*" + why):
        with OraclePress()(model):
            pass


@pytest.mark.parametrize(
    "name, why", [("Gemma2", "caps attention logits"), ("GptOss", "has attention sinks")]
)
def test_real_models_refused(name, why):
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 2}
    model = make(name, impl="eager", **sizes)
    with pytest.raises(HookError, match="cannot attach to .*: .*" + why), OraclePress()(model):
        pass


@pytest.mark.parametrize("kind", ["static", "quantized"])
def test_caches_of_generate_refused(kind):
    """At attach where the model's own configuration says so, else as the call comes."""
    model, ids = make(), text(40)
    model.generation_config.cache_implementation = kind
    with pytest.raises(HookError, match=f"asks for a {kind} cache; need a dynamic one"):
        with OraclePress()(model):
            pass
    model.generation_config.cache_implementation = None
    if kind == "static":
        with pytest.raises(HookError, match="cannot compress a StaticCache"), OraclePress()(model):
            model.generate(ids, max_new_tokens=3, cache_implementation="static")


def test_other_things_refused():
    sliding = make("Gemma3", layer_types=["sliding_attention"] * 4)
    with (
        pytest.raises(HookError, match="every layer has a sliding window"),
        attach(sliding, OraclePress()),
    ):
        pass
    with pytest.raises(HookError, match="cannot attach to Linear: it has no decoder layers"):
        with attach(torch.nn.Linear(2, 2), OraclePress()):
            pass
    press = OraclePress()
    press.inputs = {"attentions": "all"}
    with (
        pytest.raises(
            HookError, match="the press needs `attentions`, which LlamaForCausalLM does not supply"
        ),
        press(make()),
    ):
        pass
