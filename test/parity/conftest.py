"""Parity with kvpress, in a process of its own: kvpress patches attention functions when imported."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("kvpc") is None:
    sys.path.insert(0, str(ROOT / "runtime/python"))
