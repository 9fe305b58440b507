"""One case of benchmark/memory, in a process of its own: its argument and what it prints are JSON.

A case loads a model, runs everything once on a short prompt, and counts from there. Phases:
`prompt`, until the cache is compressed, and `decoding` on it.
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import footprint
import torch
from pairs import PAIRS, Given
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

WARM = 96  # tokens; kvpress' windows want more than 64
TEXT = Path(__file__).resolve().parents[1] / "scripts/demo.txt"

# A layer of Llama-3-8B; the vocabulary is small, for it is no part of a layer.
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
}
SMALL = LLAMA | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMOLLM2 = LLAMA | {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
RANDOM = {
    "llama": (LLAMA, torch.bfloat16),
    "smollm2-shape": (SMOLLM2, torch.float32),
    "small": (SMALL, torch.float32),
}

# Thresholds of dms times the tokens of the prompt, at which it drops about half. Random keys draw
# even attention.
THRESHOLDS = {"smollm2": 0.15, "smollm2-shape": 1.0, "llama": 1.0, "small": 1.0}


def random_llama(shape, dtype):
    """Weights are one random block, repeated: drawing each would take minutes."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape))
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            count = -(-empty.numel() // block.numel())
            weights = block.repeat(count)[: empty.numel()].view(empty.shape).clone()
            weights = torch.ones_like(weights) if empty.dim() == 1 else weights  # of a norm
            module._parameters[name] = torch.nn.Parameter(weights, requires_grad=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def load(name, tokens):
    """The model, and ids [1, tokens]: for SmolLM2 a story, again and again; else random ones."""
    if name in RANDOM:
        model = random_llama(*RANDOM[name])
        ids = torch.randint(1024, (1, tokens), generator=torch.Generator().manual_seed(1))
    else:
        import smollm2

        model, tokenizer = smollm2.load()
        story = tokenizer(TEXT.read_text(), return_tensors="pt").input_ids
        ids = story.repeat(1, -(-tokens // story.shape[1]))[:, :tokens]
    model.generation_config.eos_token_id = None  # as many tokens are decoded as are asked for
    return model, ids


def heads_of(model):
    """KV heads, channels."""
    config = model.config
    width = getattr(config, "head_dim", None)
    return config.num_key_value_heads, width or config.hidden_size // config.num_attention_heads


def entries(model, tokens):
    """Random keys and values of a layer."""
    heads, channels = heads_of(model)
    return tuple(torch.randn(1, heads, tokens, channels, dtype=model.dtype) for _ in range(2))


class Ours:
    """kvpc, or no press at all: `with press(model): model.generate(...)`."""

    def __init__(self, model, press):
        self.model, self.press = model, press

    def prefill(self, ids):
        with self.press(self.model) if self.press else nullcontext():
            return self._generate(ids, None, 1).past_key_values

    def build(self, given):
        """The cache of given keys and values, the same for all layers, copied in and compressed
        layer by layer: what the hook does as a prefill passes."""
        from kvpc.hook import Rows, Step, attach

        cache = DynamicCache(config=self.model.config)
        if self.press is None:
            for layer in range(self.model.config.num_hidden_layers):
                cache.update(*given, layer)  # which copies
            return cache
        rows = Rows({}, 1, given[0].shape[2])
        with attach(self.model, self.press) as hook:
            step = Step(hook, cache, hook.adopt(cache), self.press, rows)
            step.link.reading = True  # as in a call of the model
            for module in hook.attention:
                layer = cache.layers[module.layer_idx]
                layer.update(*(x.clone() for x in given))
                captured = self._captured(hook.order[module.layer_idx], given[0].shape[2])
                hook.inputs.compress(step, module, layer, captured)
            step.link.pending, step.link.reading = None, False
            step.link.hold()
        return cache

    def _captured(self, layer, tokens):
        """Random queries, as many as the press asks; what is the model's own the hook gives."""
        config, channels = self.model.config, heads_of(self.model)[1]
        asked = self.press.inputs_at(layer)
        if "hidden" in asked:
            raise SystemExit(f"a built cache has no hidden states; {self.press.name} needs them")
        return {
            name: torch.randn(
                1,
                config.num_attention_heads,
                tokens if count == "all" else count,
                channels,
                dtype=self.model.dtype,
            )
            for name, count in asked.items()
            if name in ("queries", "unrotated_queries")
        }

    def decode(self, ids, cache, count):
        # One token more than the cache has seen: the one that the prompt's end would yield.
        self._generate(torch.cat([ids, ids[:, :1]], 1), cache, count)

    def _generate(self, ids, cache, count):
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=count,
            do_sample=False,
            return_dict_in_generate=True,
        )


class Kvpress:
    """kvpress as its own pipeline runs it: the model without its head reads the prompt under the
    press, then `generate_answer`."""

    def __init__(self, model, press):
        self.model, self.press = model, press
        self.modules = [layer.self_attn for layer in model.model.layers]
        self.hidden = None

    def prefill(self, ids):
        cache = DynamicCache()
        with self.press(self.model), torch.no_grad():
            self.model.model(input_ids=ids, past_key_values=cache)
        return cache

    def build(self, given):
        """As Ours.build; hidden states, of which it takes queries, are there beforehand."""
        tokens = given[0].shape[2]
        cache, hidden = DynamicCache(), self.hidden[:, -tokens:]
        positions = torch.arange(tokens)
        rest = {
            "hidden_states": hidden,
            "past_key_values": cache,
            "cache_position": positions,
            "position_embeddings": self.model.model.rotary_emb(hidden, positions[None]),
        }
        with torch.no_grad():
            for module in self.modules:
                module.masked_key_indices = None  # as its attention does at a prompt
                module.rotary_emb = self.model.model.rotary_emb  # as `with press(model)` does
                cache.update(*given, module.layer_idx)  # which copies
                self.press.forward_hook(module, [], rest, [None, None])
        return cache

    def decode(self, ids, cache, count):
        from kvpress.pipeline import KVPressTextGenerationPipeline

        pipeline = SimpleNamespace(
            model=self.model, tokenizer=SimpleNamespace(decode=lambda *_, **__: "")
        )
        with torch.no_grad():
            KVPressTextGenerationPipeline.generate_answer(
                pipeline, ids[:, :1], cache, ids.shape[1], count
            )


def side_of(case, model):
    pair = PAIRS.get(case["press"])
    share = THRESHOLDS[case["model"]]
    given = Given(
        case["drop"],
        model.config.num_hidden_layers,
        case["tokens"],
        threshold=lambda drop, tokens: share / tokens,
        heads=heads_of(model)[0],
    )
    if case["side"] == "kvpress":
        import kvpress

        side = Kvpress(model, pair.peer(kvpress, given))
        if case["built"]:
            side.hidden = torch.randn(1, case["tokens"], model.config.hidden_size).to(model.dtype)
        return side
    dtype = {torch.float32: "f32", torch.bfloat16: "bf16"}[model.dtype]
    return Ours(model, pair and pair.ours(given, dtype, heads_of(model)[1]))


def measure(case):
    torch.manual_seed(0)
    model, ids = load(case["model"], case["tokens"])
    side = side_of(case, model)

    given = entries(model, case["tokens"]) if case["built"] else ()

    def fill(tokens):
        if case["built"]:
            return side.build([x[:, :, :tokens] for x in given])
        return side.prefill(ids[:, :tokens])

    side.decode(ids[:, :WARM], fill(WARM), 2)
    phases = footprint.Phases()
    start = time.perf_counter()
    cache = fill(case["tokens"])
    seconds = time.perf_counter() - start
    phases.end("prompt")
    modules = [layer.self_attn for layer in model.model.layers]
    after_prompt = footprint.cache_bytes(cache, modules)
    side.decode(ids, cache, case["decoded"])
    phases.end("decoding")
    return {
        **case,
        "seconds": seconds,
        "base_rss": phases.base,
        "cache": {
            "prompt": after_prompt,
            "decoding": footprint.cache_bytes(cache, modules),
        },
        "peak": phases.peaks,
        "resident": phases.residents,
    }


def time_chunk(case):
    """Seconds of a prefill of `chunk` tokens on an empty cache, the better of two."""
    model, ids = load(case["model"], case["chunk"])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad():
            model(ids, logits_to_keep=1)
        seconds.append(time.perf_counter() - start)
    return {**case, "seconds": min(seconds)}


def main():
    logging.set_verbosity_error()
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    print(json.dumps(time_chunk(case) if "chunk" in case else measure(case)))


if __name__ == "__main__":
    main()
