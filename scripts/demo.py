"""What scripts/demo runs once all is built: one question about a long text, with and without presses.

The prompt, question included, is read and compressed; the few tokens that open the answer then go
through the compressed cache, so that already the answer's first token depends on what was kept.
"""

import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import smollm2
import torch
from transformers import DynamicCache
from transformers.utils import logging

import kvpc
from kvpc.cache import storage_bytes
from kvpc.hook import KVLayer, attach

QUESTION = "What is the name of Mr. Wilson's assistant?"
START = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - START:5.1f} s] {text}", flush=True)


class Timed:
    """A press that notes how long each layer's compression takes."""

    def __init__(self, press):
        self.press, self.inputs, self.inputs_at = press, press.inputs, press.inputs_at
        self.seconds = []

    def compress(self, *args, **kwargs):
        start = time.perf_counter()
        out = self.press.compress(*args, **kwargs)
        self.seconds.append(time.perf_counter() - start)
        return out


def ask(model, tokenizer, prompt, opening, press=None):
    """Reads `prompt`, compresses its cache, and answers from there."""
    cache = DynamicCache(config=model.config)
    timed = Timed(press) if press else None
    if press:
        with attach(model, timed), torch.no_grad():
            model(prompt, past_key_values=cache, logits_to_keep=1)
    else:
        with torch.no_grad():
            model(prompt, past_key_values=cache, logits_to_keep=1)
    held = storage_bytes(cache)
    ids = torch.cat([prompt, opening], 1)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=32,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    prefixes = [layer.prefix for layer in cache.layers if isinstance(layer, KVLayer)]
    counts = torch.stack([p.lengths for p in prefixes]) if press else torch.tensor(prompt.shape[1])
    width = {p.keys.shape[-1] for p in prefixes} or {model.config.head_dim}
    return {
        "tokens": span(int(counts.min()), int(counts.max())),
        "channels": span(min(width), max(width)),
        "bytes": held,
        "ms": 1e3 * statistics.median(timed.seconds) if press else None,
        "logp": out.logits[0][0].double().log_softmax(-1),
        "answer": " ".join(answer.split()),
    }


def span(low, high):
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def main():
    logging.set_verbosity_error()
    say("compiling presses: chunkkv, chunk_snap_think")
    only = {"dtypes": "f32", "channels": 64}  # of this model: a second instead of ten
    chunks = kvpc.compile("chunkkv", **only)
    both = kvpc.compile("chunk_snap_think", **only)
    presses = {
        "no press": None,
        "chunkkv(snapkv), drop=0.5": chunks.press(drop=0.5),
        "chunkkv(snapkv), keep=1024": chunks.press(keep=1024),
        "chunk_snap_think, drop=0.5, thin=0.25": both.press(drop=0.5, thin=0.25),
    }
    say("loading SmolLM2-135M-Instruct")
    model, tokenizer = smollm2.load()
    source, _, text = Path(__file__).with_name("demo.txt").read_text().partition("\n---\n")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{text}\n\n{QUESTION}"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    cut = chat.rindex("<|im_end|>")
    prompt, opening = (
        tokenizer(part, add_special_tokens=False, return_tensors="pt").input_ids
        for part in (chat[:cut], chat[cut:])
    )

    results = {}
    for name, press in presses.items():
        say(f"{name}: reading {prompt.shape[1]:,} tokens, answering")
        results[name] = ask(model, tokenizer, prompt, opening, press)
    say("done")

    plain = results["no press"]
    whole = plain["bytes"]
    rows = [("", "tokens kept", "channels", "cache before", "after", "", "ms/layer", "KL")]
    for name, r in results.items():
        kl = (plain["logp"].exp() * (plain["logp"] - r["logp"])).sum().item()
        rows.append(
            (
                name,
                r["tokens"],
                r["channels"],
                f"{whole / 1e6:.1f} MB",
                f"{r['bytes'] / 1e6:.1f} MB",
                f"{100 * r['bytes'] / whole:.0f} %",
                "" if r["ms"] is None else f"{r['ms']:.2f}",
                f"{abs(kl):.4f}",
            )
        )
    print()
    table(rows)
    print(
        f"""
tokens, channels: kept per layer and head, of {prompt.shape[1]:,} and {model.config.head_dim} (keys)
cache: bytes of {model.config.num_hidden_layers} layers in f32 after the prompt, over distinct \
storages, positions of kept tokens included
ms/layer: the compression step, median over layers; {torch.get_num_threads()} threads
KL: of the answer's first token, in nats, from the distribution without a press

{source}

Question: {QUESTION}"""
    )
    for name, r in results.items():
        print(f"{name}: {r['answer']}")


if __name__ == "__main__":
    main()
