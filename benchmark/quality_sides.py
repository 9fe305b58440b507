"""The two sides of benchmark/quality, each in a process of its own: kvpc reads each prompt once and
captures what every layer gives a press; then both sides compress copies of that cache, and the model
goes on from what is left.
"""

import copy
import ctypes
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import footprint
import quality_prompts
import smollm2
import torch
from pairs import PAIRS, Given
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, DynamicCache
from transformers.utils import logging

import kvpc
from kvpc.hook import UNTIL_FINISH, attach

WINDOW = 64  # queries of which snapkv's scores are calibrated
CALIBRATION = 512  # tokens of the story's opening
OPENING = 4  # of them, whose queries kvpress leaves out of statistics

# What any press asks of a layer beside its keys and values. Each takes the last ones that it needs;
# weights and rotary embedding are the model's.
CAPTURED = {"queries": "all", "unrotated_queries": "all", "hidden": "all"}


class Capture:
    """A press that keeps all, and what it was given: layer → name → tensor."""

    def __init__(self, **inputs):
        self.inputs, self.layers = inputs, []

    def inputs_at(self, layer):
        return dict(self.inputs)

    def compress(self, keys, values, *, layer, layers, lengths, padding, state, scale, **inputs):
        self.layers.append({"keys": keys, "values": values, **inputs})
        tokens = torch.arange(keys.shape[2]).expand(keys.shape[:3])
        return kvpc.Output(keys, values, tokens, None, torch.tensor([keys.shape[2]]))


class Side:
    """What both sides do alike. A subclass has `compressed`, a cache of what a press left of captured
    layers, and `branch`, `logits` on such a cache that is as before afterwards.

    calibrated: (drop → threshold, filters, statistics)
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.layers = model.config.num_hidden_layers
        self.calibrated = None

    def capture(self, context, **inputs):
        press = Capture(**inputs)
        with attach(self.model, press), torch.no_grad():
            self.model(torch.tensor([context]), past_key_values=DynamicCache(), logits_to_keep=1)
        return press.layers

    def captured(self, context, path):
        """Reads a prompt, and leaves what presses need of it in a file."""
        layers = self.capture(context, **CAPTURED)
        named = {f"{i}.{name}": x for i, one in enumerate(layers) for name, x in one.items()}
        save_file({name: x.contiguous() for name, x in named.items()}, path)

    def calibrate(self, context, drops):
        """(drop → threshold of snapkv's scores times tokens, below which that share of entries lies;
        filters of qfilter: the main direction of each head's queries, away from where they are, for
        its score is the projection's negative; means and covariances of queries before their
        rotation)"""
        layers = self.capture(context, queries="all", unrotated_queries="all")
        press = PAIRS["snapkv"].ours(Given(0.5, self.layers, len(context)), "f32", self.channels)
        scores, filters = [], []
        for one in layers:
            queries = one["queries"]
            found, protected = press.scores(
                one["keys"], one["values"], queries=queries[:, :, -WINDOW:]
            )
            scores.append(found[~protected])
            heads = queries.unflatten(1, (one["keys"].shape[1], -1)).flatten(2, 3)[0]
            direction = torch.linalg.svd(heads, full_matrices=False).Vh[:, 0]
            towards = (heads @ direction[..., None]).mean((1, 2)).sign()
            filters.append(-direction * towards[:, None])
        scores = torch.cat(scores) * len(context)
        thresholds = {drop: scores.quantile(drop).item() for drop in drops}
        return thresholds, torch.stack(filters), self.statistics(layers)

    def statistics(self, layers):
        plain = torch.cat([one["unrotated_queries"] for one in layers])[:, :, OPENING:]
        plain = plain.unflatten(1, (self.heads, -1))
        mean = plain.mean(3)
        centred = plain - mean[:, :, :, None]
        return mean, centred.mT @ centred / plain.shape[3]

    @property
    def channels(self):
        return self.model.config.head_dim

    @property
    def heads(self):
        return self.model.config.num_key_value_heads

    def given(self, drop, tokens):
        thresholds, filters, statistics = self.calibrated

        def threshold(drop, tokens):
            return thresholds[drop] / tokens

        return Given(
            drop,
            self.layers,
            tokens,
            threshold=threshold,
            filters=filters,
            statistics=statistics,
            heads=self.heads,
        )

    def logits(self, ids, last, cache, tokens):
        """Of the last of `ids`, which come after `tokens`."""
        position = torch.arange(tokens, tokens + len(ids))[None]
        ids = torch.tensor([ids])
        more = {"past_key_values": cache, "position_ids": position, "logits_to_keep": last}
        return self.model(ids, **more).logits[0]

    @torch.no_grad()
    def results(self, path, prompt, wanted):
        """What each press leaves of the model's answers: a list of dicts, without a press first.

        wanted  (name, drop) of presses

        logp   of the needle's number, nats a token; exact: whether greedy decoding says it
        nll    of the story's next tokens, nats a token
        kl     from the uncompressed model's next-token distribution there, nats
        bytes  of the cache, over distinct storages
        """
        layers = [{} for _ in range(self.layers)]
        for name, tensor in load_file(path).items():
            number, _, key = name.partition(".")
            layers[int(number)][key] = tensor
        plain = DynamicCache()
        for i, one in enumerate(layers):
            plain.update(one["keys"], one["values"], i)
        tokens, found = len(prompt.context), []
        reference = self.score(plain, prompt, tokens, None)
        expected = reference.pop("after")
        found.append({"press": "none", "drop": 0.0, **reference})
        for name, drop in wanted:
            one = {"press": name, "drop": drop}
            try:
                cache = self.compressed(layers, PAIRS[name], self.given(drop, tokens))
                scored = self.score(cache, prompt, tokens, expected)
                scored.pop("after")
                found.append({**one, **scored})
            except Exception as error:
                found.append({**one, "failed": f"{type(error).__name__}: {error}"})
        return found

    def score(self, cache, prompt, tokens, expected):
        """What `results` says of one cache, and the log-probabilities `after` the prompt.

        expected: those of the uncompressed model
        """
        held = footprint.cache_bytes(cache, self.modules)
        asked = prompt.question + prompt.answer[:-1]
        answer = torch.tensor(prompt.answer)
        logp = self.branch(asked, len(answer), cache, tokens).log_softmax(-1)
        told = logp.gather(1, answer[:, None]).mean().item()
        following = torch.tensor(prompt.after[1:])[:, None]
        after = self.branch(prompt.after[:-1], len(following), cache, tokens).log_softmax(-1)
        kl = 0.0
        if expected is not None:
            kl = (expected.exp() * (expected - after)).sum(-1).mean().item()
        return {
            "logp": told,
            "exact": torch.equal(logp.argmax(-1), answer),
            "nll": -after.gather(1, following).mean().item(),
            "kl": kl,
            "bytes": held,
            "after": after,
        }

    @property
    def modules(self):
        return [layer.self_attn for layer in self.model.model.layers]


class Ours(Side):
    """Compresses with the hook's own code, as at the end of a prompt that came in chunks."""

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        self.presses = {}

    def press(self, pair, given):
        key = pair.name, given.drop, given.tokens
        if key not in self.presses:
            self.presses[key] = pair.ours(given, "f32", self.channels)
        return self.presses[key]

    def compressed(self, layers, pair, given):
        press, cache = self.press(pair, given), DynamicCache(config=self.model.config)
        with attach(self.model, press, prompt_tokens=UNTIL_FINISH) as hook:
            hook.adopt(cache)
            for number, (layer, one) in enumerate(zip(cache.layers, layers)):
                layer.update(one["keys"], one["values"])
                asked = press.inputs_at(number)
                layer.window = {name: one[name] for name in asked if name in one}
            hook.finish(cache)
        return cache

    def branch(self, ids, last, cache, tokens):
        return self.logits(ids, last, copy.deepcopy(cache), tokens)


class Kvpress(Side):
    """Compresses with kvpress' own hooks.

    What they leave is read by plain attention that makes each layer's own mask: transformers gives
    all layers the mask of the first, which is wrong where layers keep different counts, and entries
    that kvpress masks are hidden here, where it searches keys that no query of a call meets.
    """

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        import kvpress

        self.kvpress = kvpress
        AttentionInterface.register("own_masks", attention_with_own_masks)
        self.model.config._attn_implementation = "own_masks"
        for module in self.modules:
            module.rotary_emb = model.model.rotary_emb  # as `with press(model)` does

    def compressed(self, layers, pair, given):
        press, cache = pair.peer(self.kvpress, given), DynamicCache()
        positions = torch.arange(given.tokens)
        embeddings = self.model.model.rotary_emb(layers[0]["hidden"], positions[None])
        for module, one in zip(self.modules, layers):
            module.masked_key_indices = None  # as its attention does at a prompt
            cache.update(one["keys"].clone(), one["values"].clone(), module.layer_idx)
            rest = {
                "hidden_states": one["hidden"],
                "past_key_values": cache,
                "cache_position": positions,
                "position_embeddings": embeddings,
            }
            weights = attention_weights(module, one) if "attention" in pair.needs else None
            press.forward_hook(module, [], rest, [None, weights])
        return cache

    def results(self, path, prompt, wanted):
        for module in self.modules:
            module.masked_key_indices = None
        return super().results(path, prompt, wanted)

    def branch(self, ids, last, cache, tokens):
        held = [(layer.keys, layer.values) for layer in cache.layers]
        out = self.logits(ids, last, cache, tokens)
        for layer, (keys, values) in zip(cache.layers, held):
            layer.keys, layer.values = keys, values
        return out


def attention_weights(module, layer):
    """What eager attention holds [1, query head, query, token]; head by head, for memory."""
    queries, keys = layer["queries"][0], layer["keys"][0]
    count, tokens = queries.shape[:2]
    groups, future = count // len(keys), torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = torch.empty(1, count, tokens, tokens)
    for head, one in enumerate(queries):
        logits = one @ keys[head // groups].T * module.scaling
        out[0, head] = logits.masked_fill_(future, -torch.inf).softmax(-1)
    return out


def attention_with_own_masks(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Causal over the newest keys, all of the older ones; masked entries hidden."""
    count, total = query.shape[2], key.shape[2]
    seen = torch.ones(count, total, dtype=torch.bool).tril(total - count)
    seen = seen.expand(query.shape[0], key.shape[1], count, total)
    if getattr(module, "masked_key_indices", None) is not None:
        seen = seen.clone()
        row, head, token = module.masked_key_indices
        seen[row, head, :, token] = False
    groups = query.shape[1] // key.shape[1]
    key, value, seen = (x.repeat_interleave(groups, 1) for x in (key, value, seen))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


# A worker's side; functions that a pool can call.
_side = None


def start(kind, threads):
    global _side
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, of Linux: ends with its parent
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _side = {"kvpc": Ours, "kvpress": Kvpress}[kind](*smollm2.load())


def prompts(lengths, depths, after):
    return quality_prompts.make(_side.tokenizer, lengths, depths, after)


def calibrate(drops):
    opening = [token for part in quality_prompts.story(_side.tokenizer) for token in part]
    return _side.calibrate(opening[:CALIBRATION], drops)


def prepare(calibrated):
    _side.calibrated = calibrated


def captured(context, path):
    _side.captured(context, path)


def results(path, prompt, wanted):
    return _side.results(path, prompt, wanted)
