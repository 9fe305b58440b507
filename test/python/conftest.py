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


# A file is one worker's, and the longest begin: the last to be done should be a short one.
LONGEST = (
    "test_random_programs", "test_matrix", "test_benchmark_memory", "test_hook_versions",
    "test_benchmark_quality", "test_benchmark", "test_model", "test_docs", "test_api_module",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    names = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(item.path.stem, len(names)))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in f32, and its tokenizer."""
    spec = importlib.util.spec_from_file_location("smollm2", ROOT / "scripts/smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()
