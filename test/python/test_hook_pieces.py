"""Prompts that come in pieces, and what happens to cache, positions and masks between them."""

import copy
import threading

import fake_presses
import pytest
import torch
from model_oracle import close, oracle_logits
from press_oracle import OraclePress
from small_models import greedy, make, steps, text
from transformers import DynamicCache

from kvpc.hook import CROP_REMOVES, UNTIL_FINISH, HookError, attach

torch.set_num_threads(1)


def asking():
    """A press that asks for all that is captured."""
    return OraclePress("all", unrotated=True, hidden=True, rope=True)


def same(a, b):
    """Two presses saw the same, and kept the same."""
    assert a.calls == b.calls > 0
    for (_, q, u), (_, x, y) in zip(a.seen, b.seen):
        close(q, x), close(u, y)
    for x, y in zip(a.hidden, b.hidden):
        close(x, y)
    for layer, rows in a.log.items():
        for one, other in zip(rows, b.log[layer], strict=True):
            assert all(map(torch.equal, one.tokens, other.tokens))


def crop(cache, count):
    cache.crop(-count if CROP_REMOVES else cache.get_seq_length() - count)


CHANGES = {
    "crop": (lambda cache: crop(cache, 9), [0, 1, 2]),
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "copy": (lambda cache: copy.deepcopy(cache), [0, 1, 2]),
}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_cache_changed_between_pieces(change, told):
    """What was captured follows its rows and tokens, and so do the masks; afterwards as well."""
    model, a, b, ids = make(), asking(), asking(), text(50, 3)
    mask = torch.ones_like(ids)
    mask[0, :9], mask[2, :3] = 0, 0
    act, order = CHANGES[change]
    after = ids.clone()
    if change == "crop":
        ids[:, 20:29] = text(9, 3, seed=5)
    with attach(model, a, prompt_tokens=40 if told else UNTIL_FINISH) as hook:
        cache = DynamicCache()
        options = {"past_key_values": cache, "attention_mask": mask[:, :29]}
        model(ids[:, :29], **options, position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, :29])
        options["past_key_values"] = cache = act(cache) or cache
        past = cache.get_seq_length()
        assert past == (20 if change == "crop" else 29)
        options["attention_mask"] = mask[order][:, :40]
        positions = (mask[order].cumsum(1) - 1).clamp(min=0)
        model(after[order][:, past:40], **options, position_ids=positions[:, past:40])
        if not told:
            hook.finish(cache)
        assert cache.layers[0].sealed == 40
    with b(model):
        whole = DynamicCache()
        options = {"attention_mask": mask[order][:, :40], "position_ids": positions[:, :40]}
        model(after[order][:, :40], past_key_values=whole, **options)
    same(a, b)
    for x in (cache, whole):
        x.batch_select_indices(torch.tensor([1, 0]))
        x.batch_repeat_interleave(2)
    options = {"attention_mask": mask[order][[1, 1, 0, 0]][:, :41]}
    one = model(text(4, 1).T, past_key_values=cache, **options).logits
    close(one, model(text(4, 1).T, past_key_values=whole, **options).logits)


@torch.no_grad()
def test_too_much_cropped():
    """The press wants 8 queries. After 40 tokens less 12, of the last 8 none is left: a piece of
    fewer than 8 cannot end the prompt, before which nothing is done to the cache."""
    model, press, ids = make(), asking(), text(50)
    for finish in (False, True):
        press.log.clear()
        with attach(model, press, prompt_tokens=UNTIL_FINISH if finish else 41) as hook:
            cache = DynamicCache()
            model(torch.cat([ids[:, :20], text(20, seed=5)], 1), past_key_values=cache)
            crop(cache, 12)
            hook.prompt_tokens = UNTIL_FINISH if finish else 30
            with pytest.raises(HookError, match=r"last 8 tokens, and has .*cropped; remedy") as e:
                if finish:
                    hook.finish(cache)
                else:
                    model(ids[:, 28:31], past_key_values=cache)
            assert e.value.code == "hook-crop" and cache.get_seq_length() == 28
            crop(cache, 8)
            got = model(ids[:, 20:30], past_key_values=cache).logits
            if finish:
                hook.finish(cache)
            got = torch.cat([got, steps(model, cache, ids[:, 30:])], 1)
        close(got, oracle_logits(model, press.log, ids, 30)[:, 20:])


@pytest.mark.parametrize("last", [True, False])
@torch.no_grad()
def test_masks_of_the_pieces_are_known(last):
    """To `finish`, and where a later call has none."""
    model, a, b, ids = make(), asking(), asking(), text(40, 2)
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with attach(model, a, prompt_tokens=UNTIL_FINISH) as hook:
        cache = DynamicCache()
        for begin, end in ((0, 11), (11, 32), (32, 40)):
            given = mask[:, :end] if last or end < 40 else None
            options = {"attention_mask": given, "position_ids": positions[:, begin:end]}
            model(ids[:, begin:end], past_key_values=cache, **options)
        hook.finish(cache)
    with attach(model, b, prompt_tokens=UNTIL_FINISH) as hook:
        again = copy.deepcopy(DynamicCache())
        for begin, end in ((0, 11), (11, 32), (32, 40)):
            given = mask[:, :end] if last or end < 40 else None
            options = {"attention_mask": given, "position_ids": positions[:, begin:end]}
            model(ids[:, begin:end], past_key_values=again, **options)
        hook.finish(again, mask)
    same(a, b)
    assert all(rows[0].start == 13 for rows in a.log.values())


@torch.no_grad()
def test_masks_and_positions_written_over():
    """Callers may advance in place what they gave with a piece."""
    model, a, b, ids = make(), asking(), asking(), text(40, 2)
    plain = torch.ones_like(ids, dtype=torch.bool)
    plain[0, :9] = False
    for press, kept in ((a, False), (b, True)):
        mask, positions = plain.clone(), torch.arange(20)[None]
        with attach(model, press, prompt_tokens=UNTIL_FINISH) as hook:
            cache = DynamicCache()
            for begin, end in ((0, 20), (20, 40)):
                given = (x.clone() if kept else x for x in (mask[:, :end], positions))
                options = dict(zip(("attention_mask", "position_ids"), given))
                model(ids[:, begin:end], past_key_values=cache, **options)
                positions += 20
            mask.fill_(True)
            hook.finish(cache)
    same(a, b)
    assert a.log[0][0].start == 9


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_a_piece_that_failed_was_not_said(masked):
    """Before the first layer, for a token that there is not: the prompt goes on, or ends, without
    it, also where it was to end with this piece."""
    model, a, b, ids = make(), asking(), asking(), text(40, 2)
    mask = torch.ones_like(ids)
    mask[0, : 9 * masked] = 0
    bad = ids[:, 20:25].clone()
    bad[0, 0] = 1000

    def options(end):
        return {"past_key_values": cache} | ({"attention_mask": mask[:, :end]} if masked else {})

    for told in (UNTIL_FINISH, 25, 30):
        with attach(model, a, prompt_tokens=told) as hook:
            cache = DynamicCache()
            model(ids[:, :20], **options(20))
            with pytest.raises(IndexError):
                model(bad, **options(25))
            if told == UNTIL_FINISH:
                hook.finish(cache, mask[:, :20] if masked else None)
            else:
                model(ids[:, 20:30], **options(30))
        sealed = cache.layers[0].sealed
        assert sealed == (20 if told == UNTIL_FINISH else 30)
        with b(model):
            cache = DynamicCache()
            model(ids[:, :sealed], **options(sealed))
        same(a, b)


@torch.no_grad()
def test_cropped_to_nothing():
    """Then another prompt begins, that a `dynamic` embedding may read with other frequencies."""
    model, a, b = make(rope="dynamic", max_position_embeddings=32), asking(), asking()
    ids = text(40)
    with attach(model, a, prompt_tokens=40):
        cache = model(text(20, seed=5)).past_key_values
        crop(cache, 20)
        model(ids, past_key_values=cache)
    with b(model):
        model(ids)
    same(a, b)


@pytest.mark.parametrize("second", ["last", "window", "everything"])
@torch.no_grad()
def test_a_prompt_ends_with_its_with(second):
    """If it has not ended, it stays whole in another `with`, whatever press that has; its cache is
    none that this one's `finish` knows."""
    model, ids, presses = make(), text(60), fake_presses.module().press
    want = model(ids).logits
    with attach(model, presses("window"), prompt_tokens=100):
        cache = model(ids[:, :30]).past_key_values
        twin = copy.deepcopy(cache)
        model(ids[:, 30:31], past_key_values=cache)
    got = [steps(model, cache, ids[:, 31:33])]
    with presses(second)(model):
        got += [model(ids[:, 33:50], past_key_values=cache).logits]
        got += [steps(model, cache, ids[:, 50:])]
        model(ids[:, 30:31], past_key_values=twin)
    close(torch.cat(got, 1), want[:, 31:])
    assert cache.layers[0].sealed == twin.layers[0].sealed == 0 and not cache.layers[0].window
    with attach(model, presses(second), prompt_tokens=UNTIL_FINISH) as hook:
        with pytest.raises(HookError, match=r"nothing that LlamaForCausalLM read inside this") as e:
            hook.finish(twin)
        assert e.value.code == "hook-finish"
        cache.reset()  # empty: another prompt's
        model(ids[:, :40], past_key_values=cache)
        hook.finish(cache)
        assert cache.layers[0].sealed == 40


def products(press, starts):
    """Of queries that a press saw unrotated, and keys that it turns back, counting each row's
    positions from where it starts."""
    out = []
    for (_, _, queries), (keys, rope) in zip(press.seen, press.ropes, strict=True):
        angles = torch.arange(keys.shape[2]) - starts
        angles = angles[..., None] * rope["inverse_frequencies"].repeat(2)
        cos, sin = (f(angles)[:, None] for f in (torch.cos, torch.sin))
        x, y = keys[..., : rope["width"]].chunk(2, -1)
        back = keys[..., : rope["width"]] * cos + torch.cat([y, -x], -1) * sin
        back = torch.cat([back, keys[..., rope["width"] :]], -1).repeat_interleave(2, 1)
        out.append(queries @ back.transpose(2, 3))
    return out


@pytest.mark.parametrize("impl", ["whole", "pieces"])
@torch.no_grad()
def test_positions_by_hand(impl):
    """They may begin anywhere: queries that the press gets unrotated and keys that it turns back
    are turned by as much, and what it makes of both is that of a prompt from 0."""
    model, ids = make("Phi3"), text(40, 2)
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    plain, begins = (mask.cumsum(1) - 1).clamp(min=0), torch.tensor([[7], [300]])
    a, b = asking(), asking()
    for press, positions in ((a, plain), (b, plain + begins)):
        with attach(model, press, prompt_tokens=None if impl == "whole" else 40):
            cache = DynamicCache()
            for begin, end in ((0, 40),) if impl == "whole" else ((0, 23), (23, 40)):
                options = {"attention_mask": mask[:, :end]}
                options["position_ids"] = positions[:, begin:end]
                model(ids[:, begin:end], past_key_values=cache, **options)
    starts = torch.tensor([[13], [0]])
    for one, other in zip(products(a, starts), products(b, starts), strict=True):
        close(one[..., 13:], other[..., 13:], 1e-2)
        assert one.std() > 1
    assert (a.seen[0][1] - b.seen[0][1]).abs().max() > 1  # rotated, where the model was told
    for layer, rows in a.log.items():
        for one, other in zip(rows, b.log[layer], strict=True):
            assert all(map(torch.equal, one.tokens, other.tokens))


@torch.no_grad()
def test_left_padding_without_positions():
    """transformers counts the padding then, and the hook does not tell it otherwise."""
    model, press, ids = make(), asking(), text(40)
    padded = torch.cat([ids.new_zeros(1, 11), ids], 1)
    mask = (torch.arange(51) >= 11).long()[None]
    with press(model):
        got = model(padded, attention_mask=mask).logits[:, 11:]
        close(got, model(ids).logits)
    one, alone = (products(press, torch.tensor([[start]])) for start in (11, 0))
    for x, y in zip(one[:4], alone[4:], strict=True):
        close(x[..., 11:], y, 1e-2)


@torch.no_grad()
def test_positions_refused():
    model, ids, plain = make(), text(40), OraclePress("all")
    jump = torch.arange(40)[None] + (torch.arange(40) > 20) * 5
    for press in (OraclePress(unrotated=True), OraclePress(rope=True)):
        with attach(model, press, prompt_tokens=40):
            cache = DynamicCache()
            with pytest.raises(
                HookError, match=r"must each be one more than that before; rem"
            ) as e:
                model(ids, position_ids=jump, past_key_values=cache)
            assert e.value.code == "hook-positions" and not press.calls
            model(ids[:, :20], past_key_values=cache)
            with pytest.raises(HookError, match="must each be one more than that before"):
                model(ids[:, 20:], position_ids=jump[:, 20:], past_key_values=cache)
            assert cache.get_seq_length() == 20
            model(ids[:, 20:], past_key_values=cache)
            assert cache.layers[0].sealed == 40 and press.calls == 4
            with pytest.raises(HookError, match="have 3 axes, need two: row and token"):
                model(ids, position_ids=jump[None].expand(3, -1, -1))
    with plain(model):
        model(ids, position_ids=jump)
    assert plain.calls == 4


@torch.no_grad()
def test_frequencies_that_change_are_refused():
    """Of a `dynamic` embedding, past the length that the model was made for. In one call all keys
    have the new ones."""
    model, ids = make(rope="dynamic", max_position_embeddings=32), text(40)
    press, plain = OraclePress("all", rope=True), OraclePress("all")
    with attach(model, press, prompt_tokens=40):
        cache = model(ids[:, :20]).past_key_values
        with pytest.raises(HookError, match="changed its rotary frequencies between the pieces"):
            model(ids[:, 20:], past_key_values=cache)
        model(ids)
    assert press.calls == 4
    with attach(model, plain, prompt_tokens=40):
        cache = model(ids[:, :20]).past_key_values
        model(ids[:, 20:], past_key_values=cache)
    assert plain.calls == 4


@torch.no_grad()
def test_padding_on_the_right_refused():
    """Of a prompt in pieces, before anything is done to the cache."""
    model, press, ids = make(), asking(), text(40, 2)
    mask = torch.ones_like(ids)
    mask[1, 33:] = 0
    with attach(model, press, prompt_tokens=40):
        cache = DynamicCache()
        model(ids[:, :20], past_key_values=cache)
        with pytest.raises(HookError, match="must be padded on the left") as e:
            model(ids[:, 20:], attention_mask=mask, past_key_values=cache)
        assert e.value.code == "hook-padding" and cache.get_seq_length() == 20
        model(ids[:, 20:], past_key_values=cache)
    assert press.calls == 4


@pytest.mark.parametrize("within", [True, False])
def test_second_prompt_in_chunks(within):
    """4.56 and 5.2 read the first once more, into any cache."""
    model, press, ids = make(), OraclePress("all"), text(70)
    options = {"tokens": 5, "prefill_chunk_size": 7}

    def second(cache):
        if CROP_REMOVES:
            out = greedy(model, ids, past_key_values=cache, **options)
            want = oracle_logits(model, press.log, out.sequences[:, :-1], 40)[:, 69:]
            close(torch.stack(out.logits, 1), want)
            return
        with pytest.raises(HookError, match=r"holds 44 tokens, and these are to begin at 0") as e:
            greedy(model, ids, past_key_values=cache, **options)
        assert e.value.code == "hook-chunks" and cache.get_seq_length() == 44
        greedy(model, ids, tokens=2, past_key_values=cache)

    with press(model):
        one = greedy(model, ids[:, :40], **options)
        ids = torch.cat([one.sequences, ids[:, 45:]], 1)
        if within:
            second(one.past_key_values)
    if not within:
        second(one.past_key_values)


def test_chunks_of_one_thread():
    """The length of a prompt that generate() feeds in chunks is its own thread's matter."""
    model, press, ids = make(), OraclePress(), text(60)
    amid, go, done = threading.Event(), threading.Event(), []

    def wait(module, args):
        if threading.current_thread() is one:
            amid.set(), go.wait(30)

    def run():
        done.append(greedy(model, ids, tokens=2, prefill_chunk_size=7).past_key_values)

    handle = model.model.layers[1].register_forward_pre_hook(wait)
    with press(model):
        one = threading.Thread(target=run)
        one.start(), amid.wait(30)
        other = greedy(model, ids[:, :30], tokens=2).past_key_values
        go.set(), one.join()
    handle.remove()
    assert other.layers[0].sealed == 30 and done[0].layers[0].sealed == 60
