"""Modules written by hand in C (test/runtime/module), for tests of the runtime that need no
compiler."""

import atexit
import functools
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import kvpc

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def maker():
    """test/runtime/module/make_module.py"""
    path = ROOT / "test/runtime/module/make_module.py"
    spec = importlib.util.spec_from_file_location("make_module", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_module"] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def folder():
    made = tempfile.mkdtemp(prefix="kvpc-fake-")
    atexit.register(shutil.rmtree, made, True)
    return Path(made)


@functools.cache
def path():
    return maker().build(folder() / "fake.kvm")


@functools.cache
def module():
    return kvpc.load(path())


def build(file, content=None, **options):
    """Another module, e.g. one that must be refused."""
    return maker().build(folder() / f"{file}.kvm", content, **options)


def cache(batch=2, heads=2, tokens=12, channels=4, dtype=torch.float32, seed=0):
    """Keys and values of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, channels)
    keys = torch.randn(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    return keys.to(dtype), values.to(dtype)
