"""kvpc.load and kvpc.inspect: what a module says of itself, and which files are refused."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fake_presses as fake
import pytest
import torch

import kvpc


def test_presses_are_described():
    module = fake.module()
    assert list(module.presses) == [
        "last", "window", "positive", "thin", "shared", "weighted", "everything",
    ]  # fmt: skip
    window = module.presses["window"]
    gain = window.parameters["gain"]
    assert (gain.type, gain.default, gain.min, gain.max) == ("float", 1.0, 0, 10)
    size = window.parameters["size"]
    assert size.static and size.value == 4
    assert window.parameters["budget"].default == kvpc.drop(0.5)
    assert window.inputs == {"queries": 4} and window.locations == {"queries": "window.kv:3:13"}
    assert module.presses["everything"].inputs == {
        "unrotated_queries": 2, "hidden": "all", "output_weight": True, "rope": True,
    }  # fmt: skip
    assert module.presses["positive"].score_axes is None
    assert module.presses["weighted"].parameters["filter"].axes == ("layer", "head", "channel")
    assert module.target == "x86-64-v3" and "last" in repr(module)


def test_inspect_loads_no_code():
    assert kvpc.inspect(fake.path()) == fake.module().header
    # Not even of a module that no machine could load.
    other = fake.build("sparc", fake.maker().header(targets=["sparc"]))
    assert kvpc.inspect(other)["targets"] == ["sparc"]


def test_digest_is_pinned():
    digest = hashlib.sha256(fake.path().read_bytes()).hexdigest()
    assert kvpc.load(fake.path(), digest=digest).digest == digest
    with pytest.raises(kvpc.ModuleError, match="another module than the one you pinned"):
        kvpc.load(fake.path(), digest="0" * 64)
    with pytest.raises(kvpc.ModuleError, match="64 hexadecimal digits"):
        kvpc.load(fake.path(), digest="1234")


def test_arguments_of_wrong_kinds():
    for call in (kvpc.load, kvpc.inspect):
        for wrong in (None, 3, "a\0b"):
            with pytest.raises(kvpc.ArgumentError, match=r"`path` is .*need the path of a module"):
                call(wrong)
        with pytest.raises(kvpc.ModuleError, match="/nope"):
            call(b"/nope")
    with pytest.raises(kvpc.ArgumentError, match="`digest` is a int; need the file's SHA-256"):
        kvpc.load(fake.path(), digest=3)
    for wrong in (3, ["last"]):
        with pytest.raises(kvpc.ArgumentError, match=r"has presses `last`.*name the one to use"):
            fake.module().press(wrong)


def test_other_content_at_the_same_path(tmp_path):
    place = tmp_path / "m.kvm"
    shutil.copy(fake.path(), place)
    assert "last" in kvpc.load(place).presses
    header = fake.maker().header(presses=[fake.maker().press("thin", [], drops_channels=True)])
    os.replace(fake.build("thin", header), place)
    assert list(kvpc.load(place).presses) == ["thin"]


def refused(path, code, *words):
    with pytest.raises(kvpc.ModuleError) as caught:
        kvpc.load(path)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in str(caught.value)


def test_operators_are_loaded_once(monkeypatch):
    """By whichever thread comes first: torch takes a second registration for an error."""
    library = kvpc.library
    library.ops()
    monkeypatch.setattr(library, "_ops", None)
    registered = []

    def register():
        time.sleep(0.05)
        registered.append(threading.get_ident())

    monkeypatch.setattr("kvpc.ops.register", register)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: id(library.ops()), range(4)))) == 1
    assert len(registered) == 1


def test_files_that_are_no_modules(tmp_path):
    refused(tmp_path / "none.kvm", "kvm-file", "No such file")
    refused(tmp_path, "kvm-file")
    text = tmp_path / "text.kvm"
    text.write_text("press knorm() = ...")
    refused(text, "kvm-not-a-module", "not an ELF file", "kvpc compile")
    text.write_bytes(b"")
    refused(text, "kvm-not-a-module", "the file is empty")
    refused(torch._C.__file__, "kvm-not-a-module", "no section `.kvpc`")
    refused(fake.build("other-name", name=".other"), "kvm-not-a-module", "no section `.kvpc`")


def test_damaged_files(tmp_path):
    whole = fake.path().read_bytes()
    for size in (70, 1000, len(whole) - 1):
        cut = tmp_path / "cut.kvm"
        cut.write_bytes(whole[:size])
        refused(cut, "kvm-truncated", "the file is incomplete")
    changed = bytearray(whole)
    changed[whole.index(b"the press last")] ^= 1
    (tmp_path / "changed.kvm").write_bytes(changed)
    refused(tmp_path / "changed.kvm", "kvm-damaged", "does not have the digest it states")
    lies = fake.maker().section(fake.maker().header(), digest=b"\1" * 32)
    refused(fake.build("digest", lies), "kvm-damaged", "digest")


def test_flipped_bits_of_the_tables(tmp_path):
    """What the loader acts on without a digest: it is refused, or loads, and never crashes."""
    whole = fake.path().read_bytes()
    headers, count = int.from_bytes(whole[32:40], "little"), whole[56]
    outcomes = set()
    for at in range(headers, headers + 56 * count):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        place = tmp_path / f"{at}.kvm"
        place.write_bytes(changed)
        child = os.fork()
        if not child:
            try:
                kvpc.load(place)
            except kvpc.ModuleError:
                os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        outcomes.add(os.waitpid(child, 0)[1])
    assert outcomes <= {0, 256} and 256 in outcomes


def test_other_versions():
    make = fake.maker()
    refused(
        fake.build("format2", make.section(make.header(), major=2)),
        "kvm-format", "has format 2.0", "reads format 1", "update the runtime",
    )  # fmt: skip
    refused(
        fake.build("format0", make.section(make.header(), major=0)),
        "kvm-format", "compile the press again",
    )  # fmt: skip
    refused(fake.build("abi9", make.header(abi=9)), "kvm-format", "binary interface 9")
    kvpc.load(fake.build("minor", make.section(make.header(later=1), minor=7)))


def test_other_machines(tmp_path):
    make = fake.maker()
    refused(
        fake.build("sm90", make.header(targets=["sm_90"])),
        "kvm-target", "has code for `sm_90`", "this machine runs", "compile the press",
    )  # fmt: skip
    elf = bytearray(fake.path().read_bytes())
    elf[18] = 183  # e_machine: AArch64
    (tmp_path / "arm.kvm").write_bytes(elf)
    refused(tmp_path / "arm.kvm", "kvm-target", "ELF machine 183")


def test_headers_that_do_not_fit_the_code():
    make = fake.maker()
    missing = make.press("last", [make.budget()])
    missing["variants"][0]["run"] = "run_nothing"
    refused(
        fake.build("symbol", make.header(presses=[missing])),
        "kvm-damaged", "names `run_nothing`, which it does not hold",
    )  # fmt: skip
    refused(
        fake.build("list", make.header(presses=3)), "kvm-damaged", "`presses`, which must be a list"
    )


def test_files_that_would_run_code_or_need_libraries(tmp_path):
    refused(
        fake.build("needs", flags=["-Wl,--no-as-needed", "-lm"]),
        "kvm-not-a-module",
        "needs a shared library",
    )
    source = fake.maker().HERE / "fake.c"
    eager = tmp_path / "eager.c"
    eager.write_text(
        f'#include "{source}"\nstatic volatile int x;\n'
        "__attribute__((constructor)) static void start(void) { x = 1; }\n"
    )
    refused(fake.build("eager", source=eager), "kvm-not-a-module", "runs code when it is loaded")


def test_lower_target(tmp_path):
    """The environment variable is read at load, so another process tries it."""

    def run(value):
        code = f"import kvpc; print(kvpc.load({str(fake.path())!r}).target)"
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False,
            env={**os.environ, "KVPC_TARGET": value, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    assert run("x86-64-v3").stdout.strip() == "x86-64-v3"
    wrong = run("pentium")
    assert wrong.returncode and "KVPC_TARGET is `pentium`" in wrong.stderr


def test_press_by_name():
    module = fake.module()
    with pytest.raises(kvpc.ArgumentError, match=r"has presses `last`, `window`.*name the one"):
        module.press()
    with pytest.raises(kvpc.ArgumentError, match="did you mean `window`"):
        module.press("windwo")
    one = kvpc.load(fake.build("one", fake.maker().header(presses=fake.maker().presses()[:1])))
    assert one.press().name == "last"
