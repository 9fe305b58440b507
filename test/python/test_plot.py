"""kvpc.plot: what the picture says is what was kept."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from press_oracle import OraclePress
from small_models import make, text

import kvpc
from kvpc.picture import FILL, LEFT, SHADES

SVG = "{http://www.w3.org/2000/svg}"


def bands(svg):
    """For each layer: what its title says, its lines, each a list of (begin, end, shade) in parts
    of the whole width, and its bars."""
    for group in ET.fromstring(svg).iter(SVG + "g"):
        back, *bars = group.iter(SVG + "rect")
        whole, lines = float(back.get("width")), {}
        for path in group.iter(SVG + "path"):
            shade = SHADES.index(path.get("fill"))
            for x, y, width in re.findall(r"M([\d.]+) (\d+)h([\d.]+)v\d+h-\3z", path.get("d")):
                begin = (float(x) - LEFT) / whole
                lines.setdefault(int(y), []).append((begin, begin + float(width) / whole, shade))
        lines = [sorted(lines[y]) for y in sorted(lines)]
        widths = {rect.get("fill"): float(rect.get("width")) for rect in bars}
        yield group.find(SVG + "title").text, lines, widths


def output(tokens, channels=None):
    batch, heads, kept = tokens.shape
    keys = torch.zeros(batch, heads, kept, 16 if channels is None else channels.shape[-1])
    values = torch.zeros(batch, heads, kept, 16)
    return kvpc.Output(keys, values, tokens, channels, (tokens >= 0).sum(-1))


def test_which_tokens():
    one = torch.tensor([[[0, 1, 2, 3], [0, 9, -1, -1]]])
    (title, (first, second), bars), *rest = bands(kvpc.plot(output(one), tokens=10))
    assert title == "layer 0: 2 to 4 of 10 tokens a head, 768 B" and not rest
    full = len(SHADES) - 1
    assert [(round(10 * a), round(10 * b), s) for a, b, s in first] == [(0, 4, full)]
    want = [(0, 1, full), (9, 10, full)]
    assert [(round(10 * a), round(10 * b), s) for a, b, s in second] == want
    assert bars[FILL] / bars[SHADES[0]] == pytest.approx(6 / 20, rel=0.01)


def test_many_tokens_share_a_column():
    half = torch.arange(0, 4000, 2)[None, None]
    ((_, (line,), _),) = bands(kvpc.plot(output(half), tokens=4000))
    assert [shade for *_, shade in line] == [round(0.5 * (len(SHADES) - 1))]
    few = torch.tensor([[[7]]])  # one of ten still shows
    ((_, (line,), _),) = bands(kvpc.plot(output(few), tokens=4000))
    assert [shade for *_, shade in line] == [1] and line[0][0] == 0


@torch.no_grad()
def test_cache_of_a_model(tmp_path):
    model, press, file = make("Gemma3"), OraclePress("all"), tmp_path / "kept.svg"
    with press(model):
        cache = model(text(100)).past_key_values
    svg = kvpc.plot(cache, file, title="a < b")
    assert file.read_text() == svg and "a &lt; b" in svg
    drawn = list(bands(svg))
    assert [title.split(":")[0] for title, *_ in drawn] == ["layer 1", "layer 3"]
    for (_, lines, bars), (row,) in zip(drawn, press.log.values()):
        assert len(lines) == len(row.tokens) == 2
        for line, tokens in zip(lines, row.tokens):
            shown = {t for a, b, _ in line for t in range(round(100 * a), round(100 * b))}
            assert shown == set(tokens.tolist())
        share = sum(len(t) for t in row.tokens) * (10 + 16) / (200 * 32)
        assert bars[FILL] / bars[SHADES[0]] == pytest.approx(share, rel=0.02)


@torch.no_grad()
def test_arguments_refused(tmp_path):
    out, model = output(torch.tensor([[[0, 1, 6]]]), None), make(num_hidden_layers=2)
    with OraclePress("ragged")(model):
        cache = model(text(20, 2)).past_key_values
    for given, options, why, code in (
        (out, {"row": 1}, "`row` is 1; need a whole number from 0 to 0", "plot-row"),
        (cache, {"row": 2}, "`row` is 2; need a whole number from 0 to 1", "plot-row"),
        (cache, {"row": -1}, "`row` is -1; need", "plot-row"),
        (cache, {"row": "x"}, "`row` is 'x'; need", "plot-row"),
        (out, {"tokens": 6}, "`tokens` is 6; need a whole number of at least 7", "plot-tokens"),
        (out, {"tokens": 0}, "`tokens` is 0; need", "plot-tokens"),
        (cache, {"tokens": 3}, "`tokens` is 3; need", "plot-tokens"),
        (out, {"tokens": 7.5}, "`tokens` is 7.5; need", "plot-tokens"),
        (None, {}, "cannot draw a NoneType; need what `press.compress` returned", "plot-input"),
        ([out, 3], {}, "cannot draw a int; need", "plot-input"),
        (out, {"title": 3}, "`title` is 3; need text", "plot-title"),
        (out, {"path": tmp_path / "no/x.svg"}, "cannot write `.*x.svg`: ", "plot-file"),
        (cache, {"path": tmp_path}, "cannot write `.*`: ", "plot-file"),
    ):
        with pytest.raises(kvpc.Error, match=why) as error:
            kvpc.plot(given, **options)
        assert error.value.code == code and isinstance(
            error.value, kvpc.ArgumentError if code != "plot-file" else kvpc.Error
        )
    assert kvpc.plot(out, tokens=7) and kvpc.plot(cache, row=1, tokens=25)


def test_several_outputs_and_nothing():
    outputs = [output(torch.arange(n).expand(1, 2, n)) for n in (5, 3)]
    assert [title for title, *_ in bands(kvpc.plot(outputs))] == [
        "layer 0: 5 of 5 tokens a head, 1.2 KiB",
        "layer 1: 3 of 5 tokens a head, 768 B",
    ]
    with pytest.raises(kvpc.Error, match="nothing here was compressed"):
        kvpc.plot([])
