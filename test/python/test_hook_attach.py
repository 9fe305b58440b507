"""Attaching and leaving: what is refused, what is left behind, threads, nesting, exceptions."""

import copy
import gc
import io
import threading
import weakref
from contextlib import suppress
from types import SimpleNamespace

import fake_presses
import pytest
import torch
import transformers
from model_oracle import close, oracle_logits
from press_oracle import OraclePress
from small_models import greedy, make, steps, text
from transformers import DynamicCache

import kvpc.hook
from kvpc.hook import CROP_REMOVES, UNTIL_FINISH, HookError, attach

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
    torch.save(model, io.BytesIO())
    del cache
    assert state(model) == before and model.get_decoder() not in kvpc.hook._hooks
    torch.save(model, io.BytesIO())


@torch.no_grad()
def test_leaving_amid_a_call():
    """A cache whose end comes while some module is called, here within the model that it is of:
    then the next call takes the hooks away."""
    model, ids = make(), text(30)
    before = state(model)
    with OraclePress("all")(model):
        caches = [model(ids).past_key_values for _ in range(2)]
    handle = model.model.layers[0].register_forward_pre_hook(lambda *args: caches.clear())
    model(ids, use_cache=False)
    handle.remove()
    assert hooks(model) == 2
    model(ids)
    assert state(model) == before


def raiser(error):
    def stop(*args, **kwargs):
        raise error

    return stop


# torch calls hooks for the first kind alone
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["press", "model", "generate"])
@torch.no_grad()
def test_an_exception_leaves_the_model_as_it_was(where, error):
    model, ids, press = make(), text(30), OraclePress()
    before, plain = state(model), model(ids).logits
    if where == "press":
        press.compress = raiser(error)
    else:
        handle = model.model.layers[2].mlp.register_forward_hook(raiser(error))
    with pytest.raises(error), press(model):
        greedy(model, ids) if where == "generate" else model(ids)
    assert model.config._attn_implementation == "sdpa" and not kvpc.hook._switched
    if where != "press":
        handle.remove()
    gc.collect()
    model(ids)
    assert state(model) == before
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_an_exception_amid_the_compression_breaks_the_cache_alone():
    """Ctrl-C after two of four layers: this cache is refused, another one served."""
    model, press, cache, ids = make(), OraclePress("all"), DynamicCache(), text(60)
    with press(model):
        handle = model.model.layers[2].register_forward_pre_hook(raiser(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, :40], past_key_values=cache)
        handle.remove()
        with pytest.raises(HookError, match="start again with a new cache"):
            model(ids[:, 40:41], past_key_values=cache)
        press.log.clear()
        cache = DynamicCache()
        got = [model(ids[:, :40], past_key_values=cache).logits, steps(model, cache, ids[:, 40:])]
    close(torch.cat(got, 1), oracle_logits(model, press.log, ids, 40))
    assert model.config._attn_implementation == "sdpa" and not kvpc.hook._switched


@pytest.mark.parametrize("told", [None, UNTIL_FINISH])
@torch.no_grad()
def test_copies_of_a_broken_cache_are_broken(told, tmp_path):
    model, press, cache, ids = make(), OraclePress("all"), DynamicCache(), text(41)
    compress, file = press.compress, io.BytesIO()
    press.compress = lambda *args, layer, **rest: (
        compress(*args, layer=layer, **rest) if layer < 2 else raiser(KeyboardInterrupt)()
    )
    with attach(model, press, prompt_tokens=told) as hook:
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, :40], past_key_values=cache)
            hook.finish(cache)
        torch.save(cache, file)
        file.seek(0)
        for twin in (copy.deepcopy(cache), torch.load(file, weights_only=False)):
            for one in (twin, copy.deepcopy(twin)):
                with pytest.raises(HookError, match="compressing this cache failed half way"):
                    model(ids[:, 40:], past_key_values=one)
        with pytest.raises(HookError, match="compressing this cache failed half way") as e:
            kvpc.save_cache(cache, tmp_path / "cache")
        assert e.value.code == "hook-cache-broken" and not list(tmp_path.iterdir())


@torch.no_grad()
def test_an_exception_after_the_with():
    """The next call puts right what Ctrl-C left; a model without the hook is refused its cache."""
    model, cache, ids = make(), DynamicCache(), text(40)
    before, plain = state(model), model(ids).logits
    with OraclePress("all")(model):
        model(ids, past_key_values=cache)
    handle = model.model.layers[2].register_forward_pre_hook(raiser(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(ids[:, :1], past_key_values=cache)
    handle.remove()
    assert torch.equal(model(ids).logits, plain)
    assert model.config._attn_implementation == "sdpa" and not kvpc.hook._switched
    with pytest.raises(HookError, match="a model without the hook"):
        make()(ids[:, :1], past_key_values=cache)
    del cache
    gc.collect()
    model(ids)
    assert state(model) == before


@torch.no_grad()
def test_an_exception_ends_one_thread():
    """Its forward is ended by who leaves the `with`; another model's, of one config object with it
    and under way, goes on."""
    models, press, ids = [make(seed=s) for s in (0, 1)], OraclePress("all"), text(60)
    models[1].model.config = models[0].config
    handle = models[0].model.layers[2].register_forward_pre_hook(raiser(SystemExit))
    amid, go, got = threading.Event(), threading.Event(), []

    def wait(*args):
        amid.set(), go.wait(30)

    models[1].model.layers[1].register_forward_pre_hook(wait)

    def run(model, cache):
        with torch.no_grad(), suppress(SystemExit):
            got.append(model(ids[:, :40], past_key_values=cache).logits)

    kept = DynamicCache()
    with press(models[1]):
        other = threading.Thread(target=run, args=(models[1], kept))
        other.start(), amid.wait(30)
        with OraclePress("all")(models[0]):
            one = threading.Thread(target=run, args=(models[0], DynamicCache()))
            one.start(), one.join()
        assert models[0].config._attn_implementation == "kvpc_sdpa"
        go.set(), other.join()
        assert models[0].config._attn_implementation == "sdpa" and not kvpc.hook._switched
        got.append(steps(models[1], kept, ids[:, 40:]))
    handle.remove()
    close(torch.cat(got, 1), oracle_logits(models[1], press.log, ids, 40))


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
    with OraclePress()(model):
        model.generate = other = lambda *args, **kwargs: "other"
    assert model.generate is other


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


@pytest.mark.parametrize("press", ["snapkv", fake_presses.module, 0.5, torch.zeros(3)])
def test_no_presses(press):
    """A name, a module whose `.press` was forgotten, a budget."""
    model = make(num_hidden_layers=1)
    before, have = state(model), "`press` is "
    if press is fake_presses.module:
        press, have = press(), r"`press` is a module; .*remedy: `.press\(...\)` of it"
    with pytest.raises(kvpc.ArgumentError, match=have) as e, attach(model, press):
        pass
    assert e.value.code == "hook-press" and state(model) == before


@pytest.mark.parametrize(
    "shape, ratios, why",
    [
        ((3, 2, 16), 0.5, "at layer 1, .* as 0 of 2: `filter` has 3 layers"),
        (
            (2, 3, 16),
            0.5,
            r"at layer 1, .* as 0 of 2: `filter` has shape \[3, 16\]; need .head 2, ",
        ),
        ((2, 2, 8), 0.5, r"at layer 1, .* as 0 of 2: `filter` has shape \[2, 8\]; need .head 2, "),
        ((2, 2, 16), [0.5] * 3, "at layer 1, .* as 0 of 2: `ratios` has 3 values"),
        ((2, 2, 16), [0.5] * 2, None),
    ],
)
@torch.no_grad()
def test_presses_of_another_model(shape, ratios, why):
    """Known at attach, of a model with two layers to compress."""
    model = make("Gemma3")
    before = state(model)
    press = fake_presses.module().press("weighted", filter=torch.zeros(shape), ratios=ratios)
    if why is None:
        with press(model):
            assert model(text(40)).past_key_values.layers[1].sealed == 40
        return
    with pytest.raises(HookError, match=f"cannot attach to Gemma3ForCausalLM: {why}") as e:
        with press(model):
            pass
    assert e.value.code == "hook-fit" and state(model) == before


def test_masks_prepared_above_the_decoder():
    """By Gemma 3 with pictures, whether there are any or not."""
    names = "Gemma3TextConfig", "SiglipVisionConfig", "Gemma3Config"
    text_config, picture, both = (getattr(transformers, name) for name in names)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 97}
    more["layer_types"] = ["full_attention"]
    config = both(
        text_config=text_config(**small, **more).to_dict(),
        vision_config=picture(**small, image_size=28, patch_size=14).to_dict(),
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    before = state(model)
    with pytest.raises(HookError, match="Gemma3Model prepares the attention masks of") as e:
        with OraclePress()(model):
            pass
    assert e.value.code == "hook-model" and state(model) == before


@torch.no_grad()
def test_calls_refused():
    model, ids = make(), text(40)
    with OraclePress()(model):
        with pytest.raises(ValueError, match="You must specify exactly one of input_ids or"):
            model()
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
        model.config._attn_implementation = "flex_attention"
        with pytest.raises(HookError, match="have flex_attention, need sdpa or eager; remedy"):
            model(ids)
        assert model.config._attn_implementation == "flex_attention"
        model.config._attn_implementation = "eager"  # which is served
        assert model(ids).past_key_values.layers[0].prefix is not None


@torch.no_grad()
def test_other_rows_refused():
    model, ids = make(), text(40, 2)
    with OraclePress("all")(model):
        cache = model(ids).past_key_values
    for rows in (ids[:1], ids[[0, 0, 1, 1]]):
        with pytest.raises(HookError, match=rf"the cache has 2 rows, the input {len(rows)}; need"):
            model(rows[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 40
    cache.batch_repeat_interleave(2)
    steps(model, cache, ids[[0, 0, 1, 1], :3])


@pytest.mark.parametrize("how", ["argument", "config", "model's config"])
@pytest.mark.parametrize(
    "name, value", [("prompt_lookup_num_tokens", 3), ("assistant_early_exit", 1), ("use_mtp", True)]
)
def test_candidates_refused(name, value, how):
    """With the first forward they would be taken for the prompt."""
    model, press, ids = make(), OraclePress(), text(40)
    options, before = {"max_new_tokens": 2}, None
    if how == "argument":
        options[name] = value
    else:
        config = copy.deepcopy(model.generation_config)
        setattr(config, name, value)
        if how == "config":
            options["generation_config"] = config
        else:
            model.generation_config = config
    before = state(model)
    with press(model):
        with pytest.raises(kvpc.Unsupported, match=f"`{name}` feeds candidates .*; remedy: ") as e:
            model.generate(ids, **options)
        assert e.value.code == "hook-candidates" and not press.calls
        assert model.generate(ids, max_new_tokens=2, **{name: None}).shape == (1, 42)
    assert press.calls == 4
    gc.collect()
    model(ids)
    assert state(model) == before


def test_assistants_refused():
    """Inside the `with`; after it, on the compressed cache, they change no token (5.23 reads the
    prompt once more into any cache that it is given, a whole one too)."""
    model, press, ids = make(), OraclePress("all"), text(10).repeat(1, 4)
    assistant = make(num_hidden_layers=1, seed=3)
    with press(model):
        for args in ((), (None, None, None, None, None, assistant)):
            options = {} if args else {"assistant_model": assistant}
            with pytest.raises(kvpc.Unsupported, match="`generate` with `assistant_model`"):
                model.generate(ids, *args, max_new_tokens=3, **options)
        assert not press.calls
        cache = greedy(model, ids, tokens=1).past_key_values
    more = {"eos_token_id": [96]}
    ids = torch.cat([ids, text(1, seed=7)], 1)
    want = greedy(model, ids, past_key_values=copy.deepcopy(cache), **more).sequences
    ways = {"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}
    for way in ways if not CROP_REMOVES else ():
        given = copy.deepcopy(cache)
        out = greedy(model, ids, past_key_values=given, **more, **way)
        assert torch.equal(out.sequences, want) and given.layers[0].sealed == 40


def test_generate_above_what_is_attached():
    """A press on the decoder: of a prompt in chunks, or with candidates, the model's generate()
    cannot tell it."""
    model, press, ids = make(), OraclePress(), text(40)
    with press(model.model):
        with pytest.raises(
            HookError, match="remedy: attach the press to the LlamaForCausalLM"
        ) as e:
            greedy(model, ids, prefill_chunk_size=13)
        assert e.value.code == "hook-chunks"
        with pytest.raises(kvpc.Unsupported, match="`prompt_lookup_num_tokens` feeds"):
            greedy(model, ids, prompt_lookup_num_tokens=3)
        with pytest.raises(kvpc.Unsupported, match="`assistant_model` feeds"):
            model.generate(ids, max_new_tokens=3, assistant_model=make(num_hidden_layers=1))
        assert not press.calls
        out = greedy(model, ids)
    want = oracle_logits(model, press.log, out.sequences[:, :-1], 40)[:, 39:]
    close(torch.stack(out.logits, 1), want)


@pytest.mark.parametrize("told", ["x", 2.5, True, False, 0, -1, float("nan"), [40]])
def test_prompt_tokens_refused(told):
    model = make()
    before = state(model)
    with pytest.raises(kvpc.ArgumentError, match=r"`prompt_tokens` is .*; need a positive") as e:
        with attach(model, OraclePress(), prompt_tokens=told):
            pass
    assert e.value.code == "hook-prompt-tokens" and state(model) == before


@torch.no_grad()
def test_a_prompt_shorter_than_told_stays_whole():
    model, press, ids = make(), OraclePress(), text(40)
    with attach(model, press, prompt_tokens=torch.tensor(100)):
        cache = model(ids).past_key_values
    assert not press.log and cache.layers[0].keys.shape[2] == 40
    close(steps(model, cache, ids[:, :2]), model(torch.cat([ids, ids[:, :2]], 1)).logits[:, 40:])


@torch.no_grad()
def test_finish_refused():
    model, press, ids, caches = make(), OraclePress("all"), text(40), []
    with attach(model, press, prompt_tokens=UNTIL_FINISH) as hook:
        plain = DynamicCache()
        with pytest.raises(HookError, match="holds nothing that LlamaForCausalLM read") as e:
            hook.finish(plain)
        assert e.value.code == "hook-finish"
        make()(ids, past_key_values=plain)  # read without the hook
        with pytest.raises(HookError, match="holds nothing that"):
            hook.finish(plain)
        with pytest.raises(HookError, match="cannot compress a NoneType: need a DynamicCache"):
            hook.finish(None)
        caches = [model(ids).past_key_values for _ in range(3)]
        for mask in (torch.ones(1, 39, dtype=int), torch.ones(2, 40, dtype=int)):
            with pytest.raises(
                HookError, match=r"mask has shape .*; need .1, 40., rows and tokens"
            ):
                hook.finish(caches[0], mask)
        with pytest.raises(HookError, match="need a 2D attention mask"):
            hook.finish(caches[0], "left")
        hook.finish(caches[0], torch.ones(1, 40, dtype=int))
        hook.finish(caches[0])  # is finished
        assert caches[0].layers[0].sealed == 40 and press.calls == 4
        compress, press.compress = press.compress, raiser(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            hook.finish(caches[1])
        press.compress = compress
        hook.finish(caches[1])  # nothing had been done
        assert caches[1].layers[0].sealed == 40
    with pytest.raises(HookError, match="no press is attached: the `with` has ended") as e:
        hook.finish(caches[2])
    assert e.value.code == "hook-finish" and caches[2].layers[0].prefix is None
    with attach(make(), press) as other, pytest.raises(HookError, match="holds nothing that"):
        other.finish(caches[2])


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
    if not CROP_REMOVES:  # 5.23 does not know it
        model.generation_config.cache_implementation = "dynamic_full"
        with OraclePress()(model):
            model.generate(text(20), max_new_tokens=2)
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


@pytest.mark.parametrize(
    "name, why",
    [
        ("Cohere", "the rotary embedding of layer 0 pairs other channels than those of two halves"),
        ("Glm", "the rotary embedding of layer 0 pairs other channels than those of two halves"),
        ("SmolLM3", "layer 3 has no rotary embedding"),
        ("HunYuanDenseV1", "layer 0 pairs other channels"),
    ],
)
@torch.no_grad()
def test_rotary_layouts_refused(name, why):
    """Where a press turns queries or keys back, and only there. HunYuan has norms after it: they
    may weigh channels that pair differently."""
    model, press, cache, ids = make(name), OraclePress("all"), DynamicCache(), text(50)
    if name.startswith("Hun"):
        for layer in model.model.layers:
            layer.self_attn.query_layernorm.weight.uniform_(0.5, 2)
    before = state(model)
    for asks in ({"unrotated": True}, {"rope": True}):
        with pytest.raises(HookError, match=why) as e, OraclePress(**asks)(model):
            pass
        assert e.value.code == "hook-input" and state(model) == before
    with press(model):
        got = [model(ids[:, :40], past_key_values=cache).logits, steps(model, cache, ids[:, 40:])]
    close(torch.cat(got, 1), oracle_logits(model, press.log, ids, 40))


class Weighing(OraclePress):
    """Asks for the projection behind attention."""

    def __init__(self):
        super().__init__()
        self.inputs, self.weights = self.inputs | {"output_weight": True}, []

    def compress(self, *args, output_weight, **rest):
        self.weights.append(output_weight)
        return super().compress(*args, **rest)


@torch.no_grad()
def test_projections_refused():
    """The one behind attention is found by what it is given, whatever its name; or there is none."""
    for name, projection in (("Llama", "o_proj"), ("Phi", "dense"), ("Persimmon", "dense")):
        model, press = make(name, num_hidden_layers=2), Weighing()
        handle = model.model.layers[0].self_attn.register_forward_hook(raiser(AssertionError))
        with press(model):  # which calls no module of the model
            handle.remove()
            model(text(40))
        for layer, weight in zip(model.model.layers, press.weights, strict=True):
            assert weight.data_ptr() == getattr(layer.self_attn, projection).weight.data_ptr()
    model = make("BitNet", num_hidden_layers=2)  # a norm lies between
    with pytest.raises(
        HookError, match=r"the press needs `output_weight`, .*: no projection of lay"
    ):
        with Weighing()(model):
            pass
    with OraclePress()(model):
        assert model(text(40)).past_key_values.layers[0].prefix is not None


def test_leaving_a_compiled_model():
    model, press, ids = make(), OraclePress("all"), text(40)
    compiled = torch.compile(model, backend="eager")
    before = state(model)
    for _ in range(2):
        with press(compiled):
            pass
        assert state(model) == before
    with press(compiled):
        with pytest.raises(kvpc.Unsupported, match="feeds candidates"):
            compiled.generate(ids, max_new_tokens=2, prompt_lookup_num_tokens=2)
        out = greedy(compiled, ids)
    want = oracle_logits(model, press.log, out.sequences[:, :-1], 40)[:, 39:]
    close(torch.stack(out.logits, 1), want)
    del out
    gc.collect()
    model(ids)
    assert state(model) == before


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@torch.no_grad()
def test_leaving_a_copy_behind(how):
    """A copy of the model taken within the `with`, or while a cache lives, is a model without a
    press, and its own."""

    def twin_of(model):
        if how == "deepcopy":
            return copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    model, ids, press = make(), text(40), OraclePress("all", unrotated=True)
    plain = state(model)
    with press(model):
        within = twin_of(model)
        kept, generate = model(ids).past_key_values, model.generate
        assert press.calls == 4
    after, shallow = twin_of(model), copy.copy(model)
    shallow.generate = generate  # as a shallow copy from within the `with` has it
    for twin in (within, after):
        assert twin.generate.__self__ is twin
        for weight in twin.parameters():
            weight.zero_()
        assert (greedy(twin, ids, tokens=3).sequences[:, 40:] == 0).all()
        assert not hasattr(twin(ids).past_key_values.layers[0], "prefix") and hooks(twin) == 0
        with pytest.raises(HookError, match="a model without the hook"):
            twin(ids[:, :1], past_key_values=copy.deepcopy(kept))
        other, cache = OraclePress("all"), DynamicCache()
        with other(twin):
            twin(ids, past_key_values=cache)
        steps(twin, cache, ids[:, :2])
    assert press.calls == 4
    options = {"max_new_tokens": 2, "prompt_lookup_num_tokens": 2, "eos_token_id": 96}
    if not CROP_REMOVES:
        assert shallow.generate(ids, **options).shape[0] == 1
    del kept
    gc.collect()
    model(ids)
    assert state(model) == plain


@torch.no_grad()
def test_a_copy_keeps_the_hooks_of_others():
    """Whatever their ids, which each process counts anew."""
    model, ids, seen, file = make(), text(40), [], io.BytesIO()
    with OraclePress("all", unrotated=True)(model):
        torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    for layer in twin.model.layers:
        ours = next(iter(layer.self_attn._forward_pre_hooks))
        for part in (layer, layer.mlp):
            for own in (part._forward_hooks, part._forward_pre_hooks):
                own[ours] = lambda *args: seen.append(1)
    twin(ids)
    assert len(seen) == hooks(twin) == 4 * 4


@torch.no_grad()
def test_a_model_that_changed_since():
    """While a compressed cache of it lives: other attention modules, another dtype, fewer layers."""
    model, ids, press = make(), text(40), Weighing()
    with press(model):
        cache = model(ids).past_key_values
    for layer, new in zip(model.model.layers, make(seed=5).model.layers, strict=True):
        layer.self_attn = new.self_attn
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:2], 2
    press.weights.clear()
    with press(model):
        assert model(ids).past_key_values.layers[1].sealed == 40
    for layer, weight in zip(model.model.layers, press.weights, strict=True):
        assert weight.data_ptr() == layer.self_attn.o_proj.weight.data_ptr()
    last = fake_presses.module().press("last")
    with pytest.raises(HookError, match="it is in float64") as e, last(model.double()):
        pass
    assert e.value.code == "hook-dtype" and cache.get_seq_length() == 40


@torch.no_grad()
def test_whole_caches_keep_nothing():
    """Neither hooks on the model nor what was captured of a prompt that never ended: of a cache
    that was whole before, of one whose call was refused, of a prompt in pieces and its copy."""
    model, ids = make(), text(40)
    before, whole, refused = state(model), model(ids).past_key_values, DynamicCache()
    hole = torch.ones_like(ids)
    hole[:, 20:25] = 0
    with attach(model, OraclePress("all", unrotated=True, hidden=True), prompt_tokens=40):
        model(ids[:, :1], past_key_values=whole)
        with pytest.raises(HookError, match="one side of the prompt"):
            model(ids, attention_mask=hole, past_key_values=refused)
        pieces = model(ids[:, :20], attention_mask=hole[:, :20]).past_key_values
        twin = copy.deepcopy(pieces)
        assert twin.layers[0].window and twin.layers[0].told
    assert state(model) == before
    for cache in (pieces, twin):
        assert not any(layer.window or layer.told for layer in cache.layers)
        close(steps(model, cache, ids[:, 20:22]), model(ids[:, :22]).logits[:, 20:])
    model(ids[:, :1], past_key_values=whole)
    model(ids, past_key_values=refused)
    assert state(model) == before


@torch.no_grad()
def test_a_cache_does_not_keep_its_model():
    model, press = make(), Weighing()
    with press(model):
        cache = model(text(40)).past_key_values
    weights = [weakref.ref(x) for x in model.parameters()]
    press.weights.clear()
    del model
    gc.collect()
    assert not any(x() is not None for x in weights) and cache.get_seq_length() == 40


@torch.no_grad()
def test_attention_weights_refused():
    """Of the prompt there are those of the model; of what follows none, and nothing is done."""
    model, press, ids = make(impl="eager"), OraclePress("all"), text(45)
    with press(model):
        out = model(ids[:, :40], output_attentions=True)
        assert [x.shape for x in out.attentions] == [(1, 4, 40, 40)] * 4
        options = {"past_key_values": out.past_key_values}
        with pytest.raises(kvpc.Unsupported, match=r"no attention weights: .*; remedy: ") as e:
            model(ids[:, 40:41], output_attentions=True, **options)
        assert e.value.code == "hook-attentions" and out.past_key_values.get_seq_length() == 40
        model.config.output_attentions = True
        with pytest.raises(kvpc.Unsupported, match="no attention weights"):
            model(ids[:, 40:41], **options)
        model.config.output_attentions = False
        got = steps(model, out.past_key_values, ids[:, 40:])
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])


def test_gradient_checkpointing_refused():
    """In training it takes the cache away."""
    model, press, ids = make().train(), OraclePress(), text(40)
    model.gradient_checkpointing_enable()
    before = state(model)
    with press(model):
        with pytest.raises(HookError, match=r"training with gradient checkpointing, .*remedy") as e:
            model(ids)
        assert e.value.code == "hook-model" and not press.calls
        model(ids, use_cache=False).logits.sum().backward()
        model.eval()(ids)
        assert press.calls == 4
    gc.collect()
    assert state(model) == before


@torch.no_grad()
def test_models_that_pass_nothing_on(monkeypatch):
    """What the hook gives with a call must come to the attention: known at attach where a forward
    takes no such arguments further, else when the prompt ends."""
    model, press, ids = make(), OraclePress(), text(40)
    kind, before = type(model.model.layers[0]), state(model)

    def alone(self, x, attention_mask=None, position_embeddings=None, past_key_values=None, **rest):
        return stock(
            self,
            x,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
        )

    stock = kind.forward
    monkeypatch.setattr(kind, "forward", alone)
    with pytest.raises(HookError, match="LlamaDecoderLayer does not pass keyword arguments on"):
        with press(model):
            pass
    assert state(model) == before

    def lossy(self, *args, kvpc=None, **rest):
        return stock(self, *args, **rest)

    monkeypatch.setattr(kind, "forward", lossy)
    for told in (None, 30, UNTIL_FINISH):
        cache = DynamicCache()
        with (
            attach(model, press, prompt_tokens=told),
            pytest.raises(HookError, match="the press was not called: LlamaForCausalLM did") as e,
        ):
            model(ids, past_key_values=cache)
        assert e.value.code == "hook-model" and not press.calls
    monkeypatch.setattr(kind, "forward", stock)
    want = model(torch.cat([ids, ids[:, :2]], 1)).logits[:, 40:]
    close(steps(model, cache, ids[:, :2]), want)  # whole, as it would be without a press
    del cache, e  # whose frames hold the caches
    gc.collect()
    assert state(model) == before


@torch.no_grad()
def test_layers_with_two_attentions(monkeypatch):
    """As those of DiffLlama, each over a half of the values."""
    model, press, ids = make(), OraclePress(), text(40)
    kind = type(model.model.layers[0].self_attn)

    def forward(self, *args, past_key_values, **kwargs):
        layer = past_key_values.layers[self.layer_idx]
        first = stock(self, *args, past_key_values=past_key_values, **kwargs)
        held = SimpleNamespace(update=lambda *args: (layer.keys, layer.values))
        return first[0] + stock(self, *args, past_key_values=held, **kwargs)[0], None

    stock = kind.forward
    for told in (None, UNTIL_FINISH):
        monkeypatch.setattr(kind, "forward", forward)
        with attach(model, press, prompt_tokens=told):
            with pytest.raises(HookError, match="calls attention more than once"):
                model(ids)
        monkeypatch.setattr(kind, "forward", stock)


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_integer_projections_refused():
    """Of a model that torch quantized: other presses are served."""
    quantized = torch.ao.quantization.quantize_dynamic(make(), {torch.nn.Linear}, torch.qint8)
    with pytest.raises(
        HookError, match=r"needs `output_weight`, .*: the projection behind .* no plain"
    ):
        with Weighing()(quantized):
            pass
    press = OraclePress("all")
    with torch.no_grad(), press(quantized):
        cache = quantized(text(40)).past_key_values
        steps(quantized, cache, text(2))
    assert press.calls == 4 and cache.layers[0].sealed == 40


@torch.no_grad()
def test_autocast_refused():
    """Keys and values of two dtypes; before anything is done to the cache. Where the model has the
    dtype of autocast, all is one."""
    model, press, cache, ids = make(), OraclePress("all"), DynamicCache(), text(50)
    with press(model) as hook:
        with torch.autocast("cpu", torch.bfloat16):
            for given in (cache, None):
                with pytest.raises(
                    HookError, match=r"autocast to bfloat16, with a model in float32: .*; remedy: "
                ) as e:
                    model(ids[:, :40], past_key_values=given)
                assert e.value.code == "hook-dtype" and not press.calls
            hook.inputs.dtype = None  # as of a quantized model: told when they are there
            with pytest.raises(
                HookError, match=r"layer 0 are float32, its values bfloat16; .*reme"
            ):
                model(ids)
        got = [model(ids[:, :40], past_key_values=cache).logits, steps(model, cache, ids[:, 40:])]
    close(torch.cat(got, 1), oracle_logits(model, press.log, ids, 40))
    model, press = make().bfloat16(), OraclePress()
    with press(model), torch.autocast("cpu", torch.bfloat16):
        cache = model(ids).past_key_values
        assert press.calls == 4 and cache.layers[0].prefix.keys.dtype == torch.bfloat16


def test_dtypes_refused():
    model, press = make().double(), fake_presses.module().press("last")
    before = state(model)
    with pytest.raises(
        HookError, match=r"it is in float64, and the press has code for .*; rem"
    ) as e:
        with press(model):
            pass
    assert e.value.code == "hook-dtype" and state(model) == before
