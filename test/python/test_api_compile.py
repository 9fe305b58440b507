"""kvpc.compile and kvpc.press: what they ask of the compiler, their cache, their errors."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import fake_presses as fake
import numpy
import pytest
import torch
from checks import best_target

import kvpc

HERE = Path(__file__).parent
HERE_ONLY = [f"--target={best_target()}", "-O2"]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The stand-in of fake_compiler.py; calling it gives what it was asked."""
    program = tmp_path / "kvpc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_compiler.py"} "$@"\n')
    program.chmod(0o755)
    log = tmp_path / "log"
    monkeypatch.setenv("KVPC_COMPILER", str(program))
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_KVPC_LOG", str(log))
    monkeypatch.setenv("FAKE_KVPC_MODULE", str(fake.path()))

    def asked():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return asked


def test_command_line(compiler, tmp_path, monkeypatch):
    module = kvpc.compile(
        "snapkv",
        defines={"window": 32, "snapkv.eps": 0.5, "on": True, "inner": "tova()", "b": kvpc.drop(0.25)},
        dtypes=(torch.float32, "bf16"), channels=(64, 0), press=("last", "thin"),
        optimization="O0", targets="x86-64-v3", workspace=0.25, without=["tiles", "fusion"],
        include=[tmp_path],
    )  # fmt: skip
    assert "last" in module.presses
    [asked] = compiler()
    assert asked["arguments"][0] == "snapkv" and asked["arguments"][1] == "-o"
    assert asked["arguments"][3:] == [
        "-Db=drop(0.25)", "-Dinner=tova()", "-Don=true", "-Dsnapkv.eps=0.5", "-Dwindow=32",
        f"-I{tmp_path}", "--dtype=f32,bf16", "--channels=64,0", "--target=x86-64-v3", "--press=last", "--press=thin",
        "--workspace=0.25", "--without=tiles,fusion", "-O0",
    ]  # fmt: skip
    monkeypatch.delenv("KVPC_TARGET", raising=False)
    kvpc.compile("snapkv")
    assert compiler()[1]["arguments"][3:] == HERE_ONLY
    # The module is for this process, and so for the code that it runs.
    monkeypatch.setenv("KVPC_TARGET", "x86-64-v3")
    kvpc.compile("snapkv", channels=64)
    assert compiler()[2]["arguments"][3:] == ["--channels=64", "--target=x86-64-v3", "-O2"]
    monkeypatch.setenv("KVPC_TARGET", "sse2")
    with pytest.raises(kvpc.ModuleError, match="KVPC_TARGET is `sse2`"):
        kvpc.compile("snapkv")
    monkeypatch.delenv("KVPC_TARGET")
    with pytest.raises(kvpc.ArgumentError, match="the define `x` is a list"):
        kvpc.compile("snapkv", defines={"x": [1]})
    with pytest.raises(kvpc.ArgumentError, match="`optimization`"):
        kvpc.compile("snapkv", optimization="O9")


def test_cache(compiler, tmp_path):
    first = kvpc.compile("snapkv", defines={"window": 32})
    assert first.path.parent == tmp_path / "cache" and first.path.name.startswith("snapkv-")
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert kvpc.compile("snapkv", defines={"window": 32}).path == first.path
    assert len(compiler()) == 1
    assert kvpc.compile("snapkv", defines={"window": 33}).path != first.path
    assert kvpc.compile("snapkv", defines={"window": 32}, channels=64).path != first.path
    assert len(compiler()) == 3
    # Another compiler makes another module.
    program = Path(os.environ["KVPC_COMPILER"])
    program.write_text(program.read_text() + "#\n")
    assert kvpc.compile("snapkv", defines={"window": 32}).path != first.path
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".kvm"] * 4


def test_sources(compiler, tmp_path):
    text = "score mine() = -keys.norm(channel)\n"
    a = kvpc.compile(text)
    assert compiler()[-1]["text"] == text and compiler()[-1]["arguments"][0] == "source.kv"
    assert kvpc.compile(text).path == a.path and kvpc.compile(text + " ").path != a.path

    (tmp_path / "lib").mkdir()
    (tmp_path / "part.kv").write_text("# 1")
    (tmp_path / "lib/far.kv").write_text("# 1")
    file = tmp_path / "mine.kv"
    file.write_text(text + "fn f() = 1 import part import # why\n  far\n")
    one = kvpc.compile(file, include=[tmp_path / "lib"])
    assert compiler()[-1]["arguments"][0] == str(file)
    assert kvpc.compile(str(file), include=[tmp_path / "lib"]).path == one.path
    # What is imported belongs to the source.
    (tmp_path / "part.kv").write_text("# 2")
    two = kvpc.compile(file, include=[tmp_path / "lib"])
    (tmp_path / "lib/far.kv").write_text("# 2")
    three = kvpc.compile(file, include=[tmp_path / "lib"])
    assert len({one.path, two.path, three.path}) == 3
    # A file's own imports are beside it, whatever else has their name.
    (tmp_path / "lib/far.kv").write_text("import part")
    (tmp_path / "lib/part.kv").write_text("# 1")
    one = kvpc.compile(file, include=[tmp_path / "lib"])
    (tmp_path / "lib/part.kv").write_text("# 2")
    assert kvpc.compile(file, include=[tmp_path / "lib"]).path != one.path
    with pytest.raises(kvpc.CompileError, match="cannot read"):
        kvpc.compile("nowhere.kv")
    with pytest.raises(kvpc.ArgumentError, match="the program is a int"):
        kvpc.compile(3)
    # What is no text is the compiler's to judge, byte for byte.
    file.write_bytes(b"score s() = \xff\x00\n")
    kvpc.compile(file)
    kvpc.compile("score s() = \udcff\n")
    assert compiler()[-1]["text"] == "score s() = \udcff\n"


def test_diagnostics(compiler, tmp_path):
    with pytest.raises(kvpc.CompileError) as caught:
        kvpc.compile("score wrong() = keys.norm(chanel)\n")
    error = caught.value
    assert error.code == "kv-axis-unknown" and "did you mean `channel`" in str(error)
    first, second = error.diagnostics
    assert (first.file, first.line, first.column, first.severity) == ("source.kv", 1, 20, "error")
    assert first.message == "unknown axis `chanel`; `keys` has `head`, `token`, `channel`"
    assert [note.message for note in first.notes] == ["did you mean `channel`"]
    assert str(second) == "source.kv:2:1: warning: `b` is not used [kv-unused]"
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(kvpc.CompileError, match="failed with exit code 70"):
        kvpc.compile("score crash() = 1\n")


def test_cache_of_others_is_refused(compiler, tmp_path, monkeypatch):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv("KVPC_CACHE", str(open_to_all))
    with pytest.raises(kvpc.Error, match="is not this user's alone"):
        kvpc.compile("snapkv")


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("KVPC_COMPILER", str(tmp_path / "none"))
    with pytest.raises(kvpc.CompilerNotFound, match="set KVPC_COMPILER"):
        kvpc.compile("snapkv")


def test_compiler_that_does_not_start(compiler, monkeypatch):
    """For a moment, or at all."""
    real, failures, tried = subprocess.run, [], []

    def run(command, **options):
        tried.append(command)
        if failures:
            raise OSError(failures.pop(), "Bad Address", str(command[0]))
        return real(command, **options)

    monkeypatch.setattr("kvpc.library.subprocess.run", run)
    monkeypatch.setattr("kvpc.library.time.sleep", lambda seconds: None)
    failures += [errno.EFAULT, errno.ENOMEM]
    kvpc.compile("snapkv")
    failures += [errno.EFAULT] * 3
    with pytest.raises(kvpc.Error, match=r"cannot start `.*`: bad address"):
        kvpc.compile("snapkv", channels=64)
    failures.append(errno.EACCES)
    tried.clear()
    with pytest.raises(kvpc.Error, match="cannot start"):
        kvpc.compile("snapkv", channels=64)
    assert len(tried) == 1


def test_numbers_of_numpy(compiler):
    kvpc.compile("window", defines={"size": numpy.int64(8), "gain": torch.tensor(2)})
    assert compiler()[-1]["arguments"][3:5] == ["-Dgain=2", "-Dsize=8"]
    kvpc.press("window", size=numpy.int64(8))
    assert compiler()[-1]["arguments"][3] == "-Dsize=8"


def test_arguments_of_wrong_kinds(compiler, tmp_path):
    wrong = {
        "channels": ["64", 64.0, (64.0,), True],
        "dtypes": [numpy.float32, 3, (numpy.float32,)],
        "targets": [5, (5,)],
        "press": [3, (3,)],
        "defines": [["a"], 3, {1: 2}, {"window": None}],
        "include": [3, (3,)],
        "workspace": ["x", True],
        "without": [3, (3,)],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(kvpc.ArgumentError, match=name.rstrip("s")):
                kvpc.compile("snapkv", **{name: value})
    assert not compiler()
    with pytest.raises(kvpc.ArgumentError, match="`defines`"):
        kvpc.press("snapkv", defines=["a"])
    # One stands for a list of one, and numbers of NumPy are numbers.
    kvpc.compile("snapkv", channels=numpy.int64(64), include=str(tmp_path), press="last")
    assert {"--channels=64", f"-I{tmp_path}", "--press=last"} <= set(compiler()[-1]["arguments"])


def test_an_error_is_told_once(compiler):
    with pytest.raises(kvpc.CompileError) as caught:
        kvpc.press("score wrong() = keys.norm(chanel)\n", window=3)
    assert caught.value.__context__ is None and caught.value.__cause__ is None


QUICK = ["--dtype=f32", "--channels=0", "--target=x86-64-v3", "-O0"]


def test_press(compiler):
    def asked():
        return [entry["arguments"][3:] for entry in compiler()]

    assert repr(kvpc.press("thin")) == "thin()" and repr(kvpc.press("last", keep=3))
    assert asked() == [HERE_ONLY, HERE_ONLY]
    press = kvpc.press("window", drop=0.25, gain=2)
    assert repr(press) == "window(budget=drop(0.25), gain=2, share=0.25, seed=0, size=4)"
    # The quickest module tells that `gain` is an argument of the call, and `size` is not.
    assert asked()[2:] == [QUICK, HERE_ONLY]
    kvpc.press("window", size=4, keep=3)  # what the module has
    assert len(asked()) == 4
    kvpc.press("window", size=8, keep=3)
    assert asked()[4:] == [["-Dsize=8", *HERE_ONLY]]
    kvpc.press("window", inner="tova()", keep=3)
    assert asked()[5:] == [["-Dinner=tova()", *HERE_ONLY]]
    with pytest.raises(kvpc.ArgumentError, match="no parameter `gian`"):
        kvpc.press("window", gian=1)
    with pytest.raises(kvpc.ArgumentError, match="name the one to use"):
        kvpc.press("press a() = keys\n")


def test_press_whose_static_parameter_has_no_default(compiler, monkeypatch):
    from fake_compiler import DIAGNOSTICS

    real, seen = kvpc.compiler.compile, []

    def compile(program, **options):
        seen.append(options["defines"])
        if "size" not in options["defines"]:
            raise kvpc.CompileError(DIAGNOSTICS)
        return real(program, **options)

    monkeypatch.setattr("kvpc.compiler.compile", compile)
    kvpc.press("window", size=8, gain=2)
    assert seen == [{}, {"size": 8, "gain": 2}, {"size": 8}]
