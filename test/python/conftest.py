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
    """SmolLM2-135M-Instruct in f32, and its tokenizer."""
    spec = importlib.util.spec_from_file_location("smollm2", ROOT / "scripts/smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()
