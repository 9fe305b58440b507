"""kvpc.plot: what the picture says is what was kept."""

import xml.etree.ElementTree as ET

import pytest
import torch
from press_oracle import OraclePress
from small_models import make, text

import kvpc
from kvpc.picture import FILL, LEFT, SHADES

SVG = "{http://www.w3.org/2000/svg}"


def bands(svg):
    """For each layer: what its title says, its lines (y -> [(begin, end, shade)]), its bars."""
    for group in ET.fromstring(svg).iter(SVG + "g"):
        lines, bars = {}, {}
        for rect in group.iter(SVG + "rect"):
            x, y, width = (float(rect.get(name)) for name in ("x", "y", "width"))
            if x > 570:
                bars[rect.get("fill")] = width
            else:
                shade = SHADES.index(rect.get("fill"))
                lines.setdefault(y, []).append((x - LEFT, x - LEFT + width, shade))
        yield group.find(SVG + "title").text, list(lines.values()), bars


def output(tokens, channels=None):
    batch, heads, kept = tokens.shape
    keys = torch.zeros(batch, heads, kept, 16 if channels is None else channels.shape[-1])
    values = torch.zeros(batch, heads, kept, 16)
    return kvpc.Output(keys, values, tokens, channels, (tokens >= 0).sum(-1))


def test_which_tokens():
    one = torch.tensor([[[0, 1, 2, 3], [0, 9, -1, -1]]])
    (title, (first, second), bars), *rest = bands(kvpc.plot(output(one), tokens=10))
    assert title == "layer 0: 2 to 4 of 10 tokens a head, 768 B" and not rest
    step = first[-1][1] / 10
    full = len(SHADES) - 1
    assert [(round(a / step), round(b / step), s) for a, b, s in first] == [
        (0, 4, full),
        (4, 10, 0),
    ]
    assert [(round(a / step), round(b / step), s) for a, b, s in second] == [
        (0, 1, full),
        (1, 9, 0),
        (9, 10, full),
    ]
    assert bars[FILL] / bars[SHADES[0]] == pytest.approx(6 / 20, rel=0.01)


def test_many_tokens_share_a_column():
    half = torch.arange(0, 4000, 2)[None, None]
    ((_, (line,), _),) = bands(kvpc.plot(output(half), tokens=4000))
    assert [shade for *_, shade in line] == [round(0.5 * (len(SHADES) - 1))]
    few = torch.tensor([[[7]]])  # one of ten still shows
    ((_, (line,), _),) = bands(kvpc.plot(output(few), tokens=4000))
    assert [shade for *_, shade in line] == [1, 0]


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
            step = line[-1][1] / 100
            shown = {t for a, b, s in line if s for t in range(round(a / step), round(b / step))}
            assert shown == set(tokens.tolist())
        share = sum(len(t) for t in row.tokens) * (10 + 16) / (200 * 32)
        assert bars[FILL] / bars[SHADES[0]] == pytest.approx(share, rel=0.02)


def test_several_outputs_and_nothing():
    outputs = [output(torch.arange(n).expand(1, 2, n)) for n in (5, 3)]
    assert [title for title, *_ in bands(kvpc.plot(outputs))] == [
        "layer 0: 5 of 5 tokens a head, 1.2 KiB",
        "layer 1: 3 of 5 tokens a head, 768 B",
    ]
    with pytest.raises(kvpc.Error, match="nothing here was compressed"):
        kvpc.plot([])
