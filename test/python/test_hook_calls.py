"""What else is called beside a prompt and its decoding: the trial at attach, hooks of others, other
prompts within a call, gradients afterwards; and settings of torch and of the model that it meets."""

import copy
import gc

import fake_presses
import pytest
import torch
import transformers
from model_oracle import close, oracle_logits
from press_oracle import OraclePress
from small_models import greedy, make, steps, text
from transformers import DynamicCache

from kvpc.hook import HookError, attach

torch.set_num_threads(1)


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


class Weighing(OraclePress):
    """Asks for the projection behind attention, and for what turns keys back."""

    def __init__(self, **asks):
        super().__init__(**asks)
        self.inputs, self.weights = self.inputs | {"output_weight": True}, []

    def compress(self, *args, output_weight, **rest):
        self.weights.append(output_weight)
        return super().compress(*args, **rest)


@pytest.fixture(params=["bfloat16", "float64", "meta"])
def default(request):
    """Of dtype, or of device; meta stands for a GPU."""
    if request.param == "meta":
        with torch.device("meta"):
            yield
    else:
        torch.set_default_dtype(getattr(torch, request.param))
        yield
        torch.set_default_dtype(torch.float32)


MADE = {rope: make(rope=rope) for rope in (None, "yarn", "dynamic")} | {"Gemma3": make("Gemma3")}
TEXT = text(60)


@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_defaults_of_torch(default, name):
    """The trial at attach does not depend on them, nor what a press is made for."""
    model, press, cache = MADE[name], Weighing(unrotated=True, rope=True), DynamicCache()
    with press(model):
        pass
    filter = torch.zeros(9, 2, 16, dtype=torch.float32, device="cpu")
    other = fake_presses.module().press("weighted", filter=filter, ratios=0.5)
    with pytest.raises(HookError, match="`filter` has 9 layers") as e, other(model):
        pass
    assert e.value.code == "hook-fit"
    if torch.get_default_device().type == "cpu":
        with press(model):
            model(TEXT[:, :40], past_key_values=cache)
        got = steps(model, cache, TEXT[:, 40:])
        torch.set_default_dtype(torch.float32)
        close(got, oracle_logits(model, press.log, TEXT, 40)[:, 40:])


def test_hooks_for_all_modules_stay_out_of_the_trial():
    model, seen, module = make(), [], torch.nn.modules.module
    handles = [
        module.register_module_forward_hook(lambda m, x, out: seen.append(m)),
        module.register_module_forward_pre_hook(lambda m, x: seen.append(m)),
    ]
    try:
        with Weighing(unrotated=True)(model):
            assert not seen
            model(TEXT)
            assert seen
    finally:
        [handle.remove() for handle in handles]


@pytest.mark.parametrize("meta", [False, True])
@torch.no_grad()
def test_classes_that_keep_a_register(meta):
    """Of their subclasses: the trial adds none."""
    model, seen = make(), []

    class Registering(type):
        def __init__(cls, *args, **given):
            super().__init__(*args)
            seen.append(cls)

    class Mine(type(model.model.layers[0].self_attn), metaclass=Registering if meta else type):
        def __init_subclass__(cls, *, tag):
            seen.append(cls)

    before = len(seen)
    for layer in model.model.layers:
        layer.self_attn.__class__ = Mine
    press = Weighing(unrotated=True)
    with press(model):
        model(TEXT)
    assert press.calls == 4 and len(seen) == before


class Adapter(torch.nn.Module):
    """As PEFT's: beside the layer that it wraps, whose weight it shows as its own."""

    def __init__(self, base, shows):
        super().__init__()
        self.base_layer = base
        self.a = torch.nn.Linear(base.in_features, 4, bias=False)
        self.b = torch.nn.Linear(4, base.out_features, bias=False)
        if shows:
            self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.b(self.a(x))


class Scaled(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched(base):
    stock = base.forward
    base.forward = lambda x: 2 * stock(x)
    return base


@pytest.mark.parametrize(
    "wrap, why",
    [
        (
            lambda base: Adapter(base, True),
            "is of the class Adapter, which may do more .*; an adapter, such as",
        ),
        (lambda base: Adapter(base, False), "no projection of layer 2 takes"),
        (Scaled, "behind the attention of layer 2 is not the last to change"),
        (lambda base: Doubled(64, 64, bias=False), "is of the class Doubled, which may do more"),
        (patched, "is of the class Linear with a forward of its own, which may do more"),
    ],
)
@torch.no_grad()
def test_wrapped_projections_refused(wrap, why):
    """By presses that weigh by them; served to others, with what the adapter adds."""
    model, press, cache = make(), OraclePress("all"), DynamicCache()
    for layer in model.model.layers[2:]:
        layer.self_attn.o_proj = wrap(layer.self_attn.o_proj)
    with pytest.raises(HookError, match=f"needs `output_weight`, .*: .*{why}.*; remedy") as e:
        with Weighing()(model):
            pass
    assert e.value.code == "hook-input" and hooks(model) == 0
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj, True)
    with press(model):
        got = [model(TEXT[:, :40], past_key_values=cache).logits]
    got.append(steps(model, cache, TEXT[:, 40:]))
    close(torch.cat(got, 1), oracle_logits(model, press.log, TEXT, 40))


class Sizes(OraclePress):
    def compress(self, keys, values, *, layer, **rest):
        if layer == 0:
            self.states.append(keys.shape[2])
        return super().compress(keys, values, layer=layer, **rest)


def test_other_prompts_within_chunked_generate():
    """That of guidance, and what a logits processor reads or generates, are not measured by the
    prompt that comes in chunks."""
    model, ids, negative, out = make(), TEXT[:, :40], text(30, seed=9), []
    model.generation_config.eos_token_id = None

    def processor(ids, scores):
        if ids.shape[1] == 42:
            model(negative[:, :20])
            model.generate(negative[:, :25], max_new_tokens=2, prefill_chunk_size=7)
            model.generate(negative[:, :26], max_new_tokens=2)
        return scores

    for chunk in (None, 13):
        press = Sizes("snapkv")
        press.states = sizes = []
        with press(model) as hook:
            out.append(
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=15,
                    do_sample=False,
                    guidance_scale=1.5,
                    negative_prompt_ids=negative,
                    prefill_chunk_size=chunk,
                    logits_processor=[processor],
                )
            )
            assert not hook.generating
        assert [x for x in sizes if isinstance(x, int)] == [40, 30, 20, 25, 26]
    assert torch.equal(*out)


@pytest.mark.parametrize("form", ["keywords", "few", "all"])
def test_a_generate_of_the_models_own(form):
    """Gets what it was given, by position or by name."""
    model, ids = make(), TEXT[:, :40]
    model.generation_config.eos_token_id = None
    base, settings = type(model), {"max_new_tokens": 3, "do_sample": False}

    class Keywords(base):  # as of older PEFT
        def generate(self, **given):
            return super().generate(**given)

    class Few(base):
        def generate(self, input_ids, max_new_tokens=4):
            return super().generate(input_ids, max_new_tokens=max_new_tokens, do_sample=False)

    class All(base):
        def generate(self, *args, **given):
            return super().generate(*args, **given)

    model.__class__ = {"keywords": Keywords, "few": Few, "all": All}[form]
    config = copy.deepcopy(model.generation_config)
    config.update(**settings, prefill_chunk_size=13)
    calls = {
        "keywords": [((), {"inputs": ids} | settings), ((), {"input_ids": ids} | settings)],
        "few": [((ids,), {}), ((), {"input_ids": ids}), ((ids, 2), {})],
        "all": [((ids,), settings), ((ids, config), {})],
    }[form]
    for args, given in calls:
        press = Sizes("snapkv", keep=1.0)
        with press(model):
            got = model.generate(*args, **given)
        assert got.shape == model.generate(*args, **given).shape
        assert [x for x in press.states if isinstance(x, int)] == [40]


def test_cache_not_wanted():
    """By the model's configuration, as training has it: no press, as with the argument; which
    counts more."""
    model, press = make(), OraclePress("all")
    model.config.use_cache = False
    with torch.no_grad(), press(model):
        for wants in ({}, {"use_cache": None}, {"use_cache": False}):
            assert model(TEXT, **wants).past_key_values is None and not press.calls
        assert model(TEXT, use_cache=True).past_key_values.layers[0].sealed == 60
    model.train()
    model.gradient_checkpointing_enable()
    before = hooks(model)
    with press(model):
        model(TEXT).logits.sum().backward()
    gc.collect()
    model(TEXT)
    assert press.calls == 4 and hooks(model) == before


@pytest.mark.parametrize("kind", ["snapkv", "ragged", "all"])
def test_gradients_after_inference_mode(kind):
    """Rows picked in inference mode as well."""
    model, press, cache = make(), OraclePress(kind), DynamicCache()
    ids = TEXT.expand(2, -1)
    with torch.inference_mode(), press(model):
        model(ids[:, :40], past_key_values=cache)
        steps(model, cache, ids[:, 40:43])
        cache.batch_select_indices(torch.tensor([1, 0, 0]))
    with torch.no_grad():
        want = oracle_logits(model, press.log, ids, 40)[:1, 43:]
    for i in (43, 44):
        logits = model(ids[[0] * 3, i : i + 1], past_key_values=cache).logits
        close(logits[:1], want[:, i - 43 : i - 42])
    logits.sum().backward()  # through both steps
    with torch.inference_mode():
        got = model(ids[[0] * 3, 45:46], past_key_values=cache).logits
    close(got[:1], want[:, 2:3])


@pytest.mark.parametrize("inner", [None, "itself", KeyboardInterrupt])
@torch.no_grad()
def test_a_call_within_the_forward(inner):
    """Of the model itself, on another prompt: each is compressed on its own. One that Ctrl-C stops
    leaves the outer one as it is."""
    model, press, mine, ids, caches = make(), OraclePress("all"), OraclePress("all"), TEXT, []
    other = text(50, seed=4)
    with mine(model):
        alone = model(other[:, :30]).past_key_values

    def call(*args):
        handle.remove()
        try:
            caches.append(model(other[:, :30]).past_key_values)
        except KeyboardInterrupt:
            stopping.remove()

    def stop(*args):
        raise KeyboardInterrupt

    layers = model.model.layers
    with press(model) as hook:
        if inner:
            handle = layers[2].register_forward_pre_hook(call)
        if inner is KeyboardInterrupt:
            stopping = layers[1].register_forward_pre_hook(
                lambda m, args: stop() if args[0].shape[1] == 30 else None
            )
        cache = model(ids[:, :40]).past_key_values
        assert not hook.under_way and [layer.sealed for layer in cache.layers] == [40] * 4
        got = steps(model, cache, ids[:, 40:])
        for layer in press.log if inner == "itself" else ():
            rows = press.log[layer]
            press.log[layer] = [row for row in rows if row.length == 40]
            assert len(rows) == 2
        if inner is KeyboardInterrupt:
            press.log[0] = press.log[0][:1]
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])
    for cache in caches:
        close(steps(model, cache, other[:, 30:]), steps(model, alone, other[:, 30:]))
    assert len(caches) == (inner == "itself")
    caches.clear()
    del cache, alone
    gc.collect()
    model(ids)
    assert hooks(model) == 0 and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("error", [IndexError, KeyboardInterrupt])
@torch.no_grad()
def test_a_prompt_that_failed_keeps_nothing(error):
    """Before its first layer, though its cache lives; nor does a cache that was reset."""
    model, cache, bad = make(), DynamicCache(), TEXT.clone()
    handle = None
    if error is IndexError:
        bad[0, 3] = 1000
    else:

        def stop(*args):
            raise error

        handle = model.model.rotary_emb.register_forward_pre_hook(stop)
    with OraclePress("all")(model):
        with pytest.raises(error):
            model(bad, past_key_values=cache)
        if handle:
            handle.remove()
    assert hooks(model) == 0 and model.config._attn_implementation == "sdpa"
    want = model(TEXT).logits
    assert torch.equal(model(TEXT, past_key_values=cache).logits, want)
    for name in ("Llama", "Gemma3"):
        model = make(name)
        with OraclePress("all")(model):
            cache = model(TEXT).past_key_values
        assert hooks(model) == 2
        cache.reset()
        assert hooks(model) == 0
        assert torch.equal(model(TEXT, past_key_values=cache).logits, model(TEXT).logits)


def test_nested_with_and_without_a_press():
    model, press = make(), OraclePress()
    for outer, inner, why in (
        (None, press, r"within `attach\(model\)` already, .*; remedy: one `with` with the press"),
        (None, None, r"within `attach\(model\)` already, .*; remedy: leave out the inner"),
        (press, None, "a press attached already, and reads .*; remedy: leave out the inner"),
        (press, press, "a press attached already; remedy: compose"),
    ):
        with attach(model, outer), pytest.raises(HookError, match=why) as e:
            with attach(model, inner):
                pass
        assert e.value.code == "hook-nested" and hooks(model) == 0


@torch.no_grad()
def test_entered_again():
    """What `press(model)` gives: one after the other, not within itself; and around a function."""
    model, press = make(), OraclePress()
    attached = press(model)
    for _ in range(2):
        with attached, pytest.raises(HookError, match="compose"), attached:
            pass
        with attached as hook:
            assert model(TEXT).past_key_values.layers[0].sealed == 60 and hook.entered
        model(TEXT)
        assert hooks(model) == 0
    assert attached(lambda: model(TEXT))().past_key_values.layers[0].sealed == 60
    attached.__enter__()
    del attached
    gc.collect()
    model(TEXT)
    assert hooks(model) == 0


@pytest.mark.parametrize("length, sealed", [(20, 20), (60, 60), (40, 49)])
def test_phi_past_its_original_length(length, sealed):
    """As docs/Models.md says it: a text that stays within, one that begins past it, and one that
    grows past it, of which transformers drops the cache (and 5.2 the prompt)."""
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    if transformers.__version__ < "5":
        rope = {"rope_scaling": rope}
    else:
        rope = rope | {"rope_type": "longrope", "rope_theta": 10000.0}
        rope = {"rope_parameters": rope | {"partial_rotary_factor": 0.5}}
    model, press = make("Phi3", original_max_position_embeddings=48, **rope), OraclePress("all")
    ids = TEXT[:, :length]
    with press(model):
        out = greedy(model, ids)
    if length == 40:
        dropped = transformers.__version__.startswith("5.2.")
        assert out.past_key_values.layers[0].sealed == (1 if dropped else sealed)
        assert press.calls == 8
    else:
        assert out.past_key_values.layers[0].sealed == sealed and press.calls == 4
        want = oracle_logits(model, press.log, out.sequences[:, :-1], length)[:, length - 1 :]
        close(torch.stack(out.logits, 1), want)
