"""A compressed cache as a thing of its own: cropped, reordered, copied, saved, measured, compiled
against."""

import copy
import io

import pytest
import torch
import transformers
from model_oracle import close, oracle_logits
from press_oracle import OraclePress
from small_models import greedy, make, steps, text
from transformers import DynamicCache

import kvpc
from kvpc.cache import storage_bytes
from kvpc.hook import CROP_REMOVES, HookError, attach

torch.set_num_threads(1)
KINDS = ["snapkv", "ragged", "chunk", "all"]


@pytest.mark.parametrize("kind", KINDS)
def test_beam(kind):
    model, press, ids = make(), OraclePress(kind), text(40, 2)
    with press(model):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            num_beams=3,
            do_sample=False,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    log = {layer: rows[::3] for layer, rows in press.log.items()}
    logp = oracle_logits(model, log, out.sequences[:, :-1], 40)[:, 39:].log_softmax(-1)
    close(logp.gather(-1, out.sequences[:, 40:, None])[..., 0].sum(-1), out.sequences_scores, 2e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_crop_reorder_copy(kind):
    model, press, cache, ids = make(), OraclePress(kind), DynamicCache(), text(60, 3)
    with press(model):
        model(ids[:, :40], past_key_values=cache)
        steps(model, cache, text(9, 3, seed=5))
        cache.crop(-9 if CROP_REMOVES else 40)
        saved = copy.deepcopy(cache)
        got = steps(model, cache, ids[:, 40:])
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])
    with pytest.raises(HookError, match="compressed"):
        cache.crop(-30)
    assert saved.get_seq_length() == 40
    for order in ([1, 0, 2], [0, 0, 2, 2], [2, 2, 0], [1]):
        other = copy.deepcopy(saved)
        other.reorder_cache(torch.tensor(order))
        assert other.layers[0].prefix.count() == len(set(order))  # nothing twice
        close(steps(model, other, ids[order, 40:50]), got[order, :10])
        back = [len(order) - 1, 0]
        other.batch_select_indices(torch.tensor(back))
        again = [order[i] for i in back]
        close(steps(model, other, ids[again, 50:]), got[again, 10:])
    saved.batch_repeat_interleave(2)
    assert saved.layers[0].prefix.count() == 3
    twice = [0, 0, 1, 1, 2, 2]
    close(steps(model, saved, ids[twice, 40:]), got[twice])


@torch.no_grad()
def test_crop_of_all_and_more():
    """As transformers does it, which differs by version; also of one that was reset."""
    model, plain, cache, ids = make(), DynamicCache(), DynamicCache(), text(50)
    model(ids[:, :40], past_key_values=plain)
    with OraclePress("all")(model, prompt_tokens=70):
        model(ids[:, :40], past_key_values=cache)
        plain.crop(-60), cache.crop(-60)
        assert cache.get_seq_length() == plain.get_seq_length()
        cache.crop(-100)
    for name in ("Llama", "Gemma3"):
        model = make(name)
        with OraclePress("all")(model):
            cache = model(ids).past_key_values
        cache.reset()
        cache.crop(-1)
        assert torch.equal(model(ids, past_key_values=cache).logits, model(ids).logits)


@torch.no_grad()
def test_tokens_are_positions_of_the_prompt():
    model, press, cache, ids = make(), OraclePress("ragged"), DynamicCache(), text(40, 2)
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    with press(model):
        model(ids, attention_mask=mask, past_key_values=cache)
    for i, layer in enumerate(cache.layers):
        for b, row in enumerate(press.log[i]):
            for h, tokens in enumerate(row.tokens):
                keys, values, got = layer.prefix.head(b, h)
                assert got.tolist() == (tokens + row.start).tolist()
                assert keys.shape[0] == values.shape[0] == len(tokens)
        assert layer.prefix.lengths.tolist() == [
            [len(t) for t in row.tokens] for row in press.log[i]
        ]


@pytest.mark.parametrize("name", ["Phi3", "Llama"])
@pytest.mark.parametrize("kind", ["snapkv", "ragged", "pyramid", "chunk", "think", "all"])
@torch.no_grad()
def test_memory_is_freed(name, kind):
    """To the byte, over distinct storages, what was kept and where it was: nothing for heads or
    layers that keep fewer, though Phi-3's keys and values are views of one projection."""
    model, press, ids = make(name), OraclePress(kind, keep=0.25), text(400)
    with press(model):
        cache = model(ids).past_key_values
    want, ragged = 0, []
    for rows in press.log.values():
        assert len(rows) == 1
        counts = [len(t) for t in rows[0].tokens]
        width = 16 if rows[0].channels is None else rows[0].channels.shape[1]
        want += sum(counts) * 4 * (width + 16)
        # where: kept once where all heads agree; where each head begins; which channels
        agree = all(torch.equal(t, rows[0].tokens[0]) for t in rows[0].tokens)
        want += 4 * (counts[0] if agree else sum(counts))
        want += 8 * 3 if len(set(counts)) > 1 else 0
        want += 0 if rows[0].channels is None else 8 * rows[0].channels.numel()
        ragged.append(len(set(counts)) > 1)
    assert storage_bytes(cache) == want and any(ragged) == (kind in ("ragged", "all"))
    whole = 4 * 2 * 400 * 16 * 2 * 4
    assert want < whole * (0.9 if kind == "think" else 0.6 if kind in ("pyramid", "all") else 0.3)


@torch.no_grad()
def test_foreign_model_and_pickle():
    model, press, ids = make(), OraclePress("all"), text(60)
    with press(model):
        cache = model(ids[:, :40]).past_key_values
    other = make()  # the same weights, without a hook
    with pytest.raises(HookError, match="this cache is compressed; have: a model without the hook"):
        other(ids[:, 40:41], past_key_values=copy.deepcopy(cache))
    file = io.BytesIO()
    torch.save(cache, file)
    assert len(file.getvalue()) < sum(
        p.numel() * 4 for p in model.parameters()
    )  # the model stays behind
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    want = oracle_logits(model, press.log, ids, 40)[:, 40:]
    with attach(other):
        close(steps(other, loaded, ids[:, 40:50]), want[:, :10])
        live = copy.deepcopy(cache)
        close(steps(other, live, ids[:, 40:]), want)
    close(steps(other, loaded, ids[:, 50:]), want[:, 10:])
    close(steps(model, cache, ids[:, 40:]), want)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    "name, kind", [("Llama", "snapkv"), ("Llama", "think"), ("Llama", "all"), ("Gemma3", "all")]
)
@torch.no_grad()
def test_saved_and_loaded(tmp_path, name, kind, given):
    """Into another instance of the model, with the positions of what was kept; Gemma's sliding
    layers go along, in a cache of its own making or a plain one."""
    model, press, ids = make(name), OraclePress(kind), text(64, 2)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def run(model, cache, begin, end):
        options = {"attention_mask": mask[:, :end], "position_ids": positions[:, begin:end]}
        return model(ids[:, begin:end], past_key_values=cache, **options)

    file, cache = tmp_path / "cache.safetensors", DynamicCache() if given else None
    with press(model):
        cache = run(model, cache, 0, 40).past_key_values
        run(model, cache, 40, 45)
    kvpc.save_cache(cache, file)
    assert file.stat().st_size < storage_bytes(cache) + 10_000
    loaded, other = kvpc.load_cache(file), make(name)
    assert loaded.get_seq_length() == 45
    for a, b in zip(cache.layers, loaded.layers):
        if hasattr(a, "prefix"):
            assert a.sealed == b.sealed == 40 and torch.equal(a.prefix.lengths, b.prefix.lengths)
            for row, head in ((0, 0), (1, 1)):
                kept = zip(a.prefix.head(row, head), b.prefix.head(row, head))
                assert all(torch.equal(x, y) for x, y in kept)
    with pytest.raises(HookError, match="this cache is compressed; have: a model without the hook"):
        run(other, kvpc.load_cache(file), 45, 46)
    with attach(other):
        got = [run(other, loaded, 45, 60).logits]
    got += [run(other, loaded, i, i + 1).logits for i in range(60, 64)]
    close(torch.cat(got, 1), oracle_logits(model, press.log, ids, 40, mask)[:, 45:])
    kvpc.save_cache(loaded, file)  # and again
    with attach(make(name)) as hook:
        assert hook.press is None and kvpc.load_cache(file).get_seq_length() == 64


@pytest.mark.parametrize(
    "change, why",
    [
        (
            {"dtype": torch.bfloat16},
            "2 heads of 16 channels in float32 on cpu; this model has .* bfl",
        ),
        ({"dtype": torch.float64}, "this model has 2 heads of 16 channels in float64"),
        ({"head_dim": 8}, "this model has 2 heads of 8 channels"),
        ({"num_key_value_heads": 4}, "this model has 4 heads of 16 channels"),
        ({"num_hidden_layers": 2}, "it has 4 layers; LlamaForCausalLM has 2"),
        ({"num_hidden_layers": 6}, "it has 4 layers; LlamaForCausalLM has 6"),
        ({"name": "Gemma3"}, "its layer 0 is of full attention; that of Gemma3For.* of sliding"),
        ({"from": "Gemma3"}, "its layer 0 is of sliding attention; that of LlamaFor.* of full"),
    ],
)
@torch.no_grad()
def test_caches_of_other_models_refused(tmp_path, change, why):
    """Loaded ones; refused before anything is added, and of use to the right model."""
    file, kind = tmp_path / "cache.safetensors", change.pop("from", "Llama")
    model, press, ids = make(kind), OraclePress("all"), text(45)
    with press(model):
        kvpc.save_cache(model(ids[:, :40]).past_key_values, file)
    cache, dtype = kvpc.load_cache(file), change.pop("dtype", torch.float32)
    with attach(make(**change).to(dtype)) as hook:
        other = hook.decoder()
        for _ in range(2):
            with pytest.raises(HookError, match=f"of another model: .*{why}.*; remedy: ") as e:
                other(ids[:, 40:41], past_key_values=cache)
            assert e.value.code == "hook-cache-other" and cache.get_seq_length() == 40
    twin = make(kind)
    with attach(twin):
        got = steps(twin, cache, ids[:, 40:])
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])


def test_other_files_are_no_caches(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(kvpc.Error, match="holds no saved cache; need version 1"):
        kvpc.load_cache(file)
    save_file({"a": torch.zeros(2)}, file, metadata={"kvpc_cache": '{"version": 2}'})
    with pytest.raises(kvpc.Error, match="holds a cache of version 2; need version 1"):
        kvpc.load_cache(file)
    file.write_text("nothing")
    with pytest.raises(kvpc.Error, match="as safetensors"):
        kvpc.load_cache(file)
    for said in ('{"version": 1}', '{"version": 1, "layers": [{"kind": "whole"}]}', "[1]"):
        save_file({"a": torch.zeros(2)}, file, metadata={"kvpc_cache": said})
        with pytest.raises(kvpc.Error, match=r"is damaged: KeyError|holds no saved cache"):
            kvpc.load_cache(file)
    with pytest.raises(kvpc.Error, match=r"cannot read `.*none`: there is no such file") as error:
        kvpc.load_cache(tmp_path / "none")
    assert error.value.code == "cache-file"


@torch.no_grad()
def test_what_cannot_be_saved(tmp_path):
    model, file = make(num_hidden_layers=2), tmp_path / "x.safetensors"
    with OraclePress()(model):
        cache = model(text(20)).past_key_values
    static = transformers.StaticCache(config=model.config, max_cache_len=8)
    for given, why, code in (
        (None, "cannot save a NoneType; need a DynamicCache", "cache-type"),
        (static, "cannot save a StaticCache; need a DynamicCache", "cache-type"),
        (DynamicCache(), "the cache is empty", "cache-empty"),
        (DynamicCache(config=model.config), "layer 0 of the cache is empty", "cache-empty"),
    ):
        with pytest.raises(kvpc.Error, match=why) as error:
            kvpc.save_cache(given, file)
        assert error.value.code == code and not file.exists()
    with pytest.raises(kvpc.Error, match=r"cannot write `.*x/y`: ") as error:
        kvpc.save_cache(cache, tmp_path / "x/y")
    assert error.value.code == "cache-file"


@torch.no_grad()
def test_a_filled_cache_is_not_compressed():
    model, ids, cache, press = make(), text(40), DynamicCache(), OraclePress()
    model(ids[:, :20], past_key_values=cache)
    with press(model):
        got = model(ids[:, 20:], past_key_values=cache).logits
    close(got, model(ids, use_cache=False).logits[:, 20:])
    assert not press.log


@torch.no_grad()
def test_a_failed_compression_breaks_its_cache():
    class Failing(OraclePress):
        def compress(self, *args, layer=0, **kwargs):
            if layer == 2:
                raise ZeroDivisionError
            return super().compress(*args, layer=layer, **kwargs)

    model, ids, cache = make(), text(40), DynamicCache()
    with Failing()(model):
        with pytest.raises(ZeroDivisionError):
            model(ids, past_key_values=cache)
        with pytest.raises(HookError, match="start again with a new cache"):
            model(ids[:, :1], past_key_values=cache)


@torch.no_grad()
def test_compiled_decode():
    torch._dynamo.reset(), torch._dynamo.utils.counters.clear()
    model, press, cache, ids = (
        make(num_hidden_layers=2),
        OraclePress("all"),
        DynamicCache(),
        text(60),
    )
    with press(model):
        model(ids[:, :40], past_key_values=cache)
        compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
        got = steps(compiled, cache, ids[:, 40:])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3  # a tail of 0, of 1, of n
    close(got, oracle_logits(model, press.log, ids, 40)[:, 40:])


@torch.no_grad()
def test_compiled_decode_of_a_loaded_cache(tmp_path):
    """Its first call as docs/Models.md says; the others as one graph."""
    torch._dynamo.reset()
    model, press, ids = make(num_hidden_layers=2), OraclePress("all"), text(45)
    with press(model):
        kvpc.save_cache(model(ids[:, :40]).past_key_values, tmp_path / "cache")
    cache, other = kvpc.load_cache(tmp_path / "cache"), make(num_hidden_layers=2)
    with attach(other):
        got = [steps(other, cache, ids[:, 40:41])]
        compiled = torch.compile(other, dynamic=True, fullgraph=True, backend="eager")
        got.append(steps(compiled, cache, ids[:, 41:]))
    close(torch.cat(got, 1), oracle_logits(model, press.log, ids, 40)[:, 40:])


def test_generate_with_a_config_of_its_own():
    model, press, ids = make(), OraclePress(), text(40)
    with press(model):
        a = greedy(model, ids, tokens=4).sequences
        b = model.generate(
            ids, copy.deepcopy(model.generation_config), max_new_tokens=4, do_sample=False
        )
    assert torch.equal(a, b)
