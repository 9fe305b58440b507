"""Writing a program otherwise costs nothing: the same passes, the same buffers, the same bytes.

Each pair says one thing in two ways: other names, functions called or written out, operands in
another order, factors of one, lets in another order. What a plan costs is read from `kvpc compile
--emit=plan`: its operations, its passes with what they stream, load and store, its buffers.
"""

import re
from collections import Counter

import pytest

from kvpc import library

SNAP = """
score snap(window: int = 64 in 1.., kernel: int = 5 in 1..) =
  attention(queries.last(window), keys)
    .mean(query, group)
    .avg_pool(token, kernel, where = position < length - window)
    .protect(position >= length - window)
"""

PAIRS = {
    # Every declaration and parameter under another name.
    "renamed_score": (
        SNAP,
        """
score orchard(apple: int = 64 in 1.., pear: int = 5 in 1..) =
  attention(queries.last(apple), keys)
    .mean(query, group)
    .avg_pool(token, pear, where = position < length - apple)
    .protect(position >= length - apple)
""",
    ),
    "renamed_as_another_method": (
        "score knorm2() = -keys.norm(channel)",
        "score snapkv2() = -keys.norm(channel)",
    ),
    "renamed_press": (
        """
fn ease(x: tensor) = tanh(x)
press mine(inner: score = knorm(), size: int = 16 in 1.., budget: budget = drop(0.5)) =
  ease(inner).sum(head) |> chunk(size) |> topk(budget)
""",
        """
fn h(t: tensor) = tanh(t)
press zzz(of: score = knorm(), n: int = 16 in 1.., b: budget = drop(0.5)) =
  h(of).sum(head) |> chunk(n) |> topk(b)
""",
    ),
    # Written out by hand.
    "inlined_press": (
        "press p(budget: budget = drop(0.5)) = chunkkv(snapkv(window = 64), budget = budget)",
        """
press p(budget: budget = drop(0.5)) =
  attention(queries.last(64), keys)
    .mean(query, group)
    .avg_pool(token, 5, where = position < length - 64)
    .protect(position >= length - 64)
    .sum(head)
    |> chunk(20)
    |> topk(budget)
""",
    ),
    "inlined_composition": (
        """
press p(budget: budget = drop(0.5), thin: fraction = 0.5) =
  compose(chunkkv(knorm(), budget = budget), think(ratio = thin))
""",
        """
press p(budget: budget = drop(0.5), thin: fraction = 0.5) =
  compose(
    (-keys.norm(channel)).sum(head) |> partitioned() |> topk(budget),
    (queries.last(32) ** 2).mean(query, group) * (keys ** 2).mean(token)
      |> topk(keep(channels - int(channels * thin))),
  )
""".replace("|> partitioned()", "|> chunk(20)"),
    ),
    "inlined_function": (
        """
fn spread(x: tensor, eps: float = 0.5) = (x.max(channel) - x.min(channel)) / (abs(x.mean(channel)) + eps)
score s() = spread(keys) + spread(values, 0.25)
""",
        """
score s() =
  (keys.max(channel) - keys.min(channel)) / (abs(keys.mean(channel)) + 0.5)
    + (values.max(channel) - values.min(channel)) / (abs(values.mean(channel)) + 0.25)
""",
    ),
    "pipe_and_call": (
        "press p(budget: budget = drop(0.5)) = topk(chunk(sum(knorm(), head), 20), budget)",
        "press p(budget: budget = drop(0.5)) = knorm().sum(head) |> chunk(20) |> topk(budget)",
    ),
    # Operands in another order.
    "commuted": (
        "score s() = keys.norm(channel) + values.norm(channel) * (position / length)",
        "score s() = (position / length) * values.norm(channel) + keys.norm(channel)",
    ),
    "commuted_contraction": (
        "score s() = (keys * keys.mean(token)).sum(channel)",
        "score s() = (keys.mean(token) * keys).sum(channel)",
    ),
    "dot_or_product_and_sum": (
        "score s(w: float[head, group, channel]) = dot(w, keys, channel).mean(group)",
        "score s(w: float[head, group, channel]) = (keys * w).sum(channel).mean(group)",
    ),
    "form_of_dots": (
        """
score s(w: float[head, channel, channel']) =
  dot(dot(keys, w, channel), keys.rename(channel -> channel'), channel')
""",
        """
score s(w: float[head, channel, channel']) =
  (keys * w * keys.rename(channel -> channel')).sum(channel).sum(channel')
""",
    ),
    "commuted_form": (
        """
score s(w: float[head, channel, channel']) =
  (keys * w * keys.rename(channel -> channel')).sum(channel, channel')
""",
        """
score s(w: float[head, channel, channel']) =
  (w * keys.rename(channel -> channel') * keys).sum(channel', channel)
""",
    ),
    "commuted_turns": (
        """
score s(w: float[head, group, channel]) =
  dot(w, rotate(keys, -(seen + index([ahead: 9]))).mean(ahead), channel).mean(group)
""",
        """
score s(v: float[head, group, channel]) = {
  let t = -(index([later: 9]) + seen)
  return dot(1.0 * rotate(keys, t).mean(later), v, channel).mean(group)
}
""",
    ),
    "commuted_attention": (
        "score s() = attention(queries.last(8), keys).mean(group, query) * values.norm(channel)",
        "score s() = values.norm(channel) * attention(queries.last(8), keys).mean(query, group)",
    ),
    "commuted_think": (
        "press p() = (queries.last(32) ** 2).mean(query, group) * (keys ** 2).mean(token) |> topk(keep(8))",
        "press p() = (keys ** 2).mean(token) * (queries.last(32) ** 2).mean(group, query) |> topk(keep(8))",
    ),
    "commuted_conditions": (
        "score s() = keys.norm(channel).protect(position < 4 or position >= length - 8)",
        "score s() = keys.norm(channel).protect(length - 8 <= position or 4 > position)",
    ),
    # Nothing done.
    "times_one": (
        "score s() = -keys.norm(channel)",
        "score s() = 1 * -(1.0 * keys * 1).norm(channel) * 1.0",
    ),
    "plus_nothing_in_attention": (
        "score s() = attention(queries.last(16), keys).mean(query, group)",
        "score s() = 1 * (attention(queries.last(16), keys) * 1.0).mean(query, group)",
    ),
    "times_one_in_a_condition": (
        "score s() = keys.sum(token, where = position >= 4) * values.mean(token)",
        "score s() = 1 * keys.sum(token, where = position * 1 >= 4) * (1.0 * values).mean(token)",
    ),
    # Lets in another order, named or not, used or not.
    "reordered": (
        """
score s() = {
  let k = keys.norm(channel)
  let v = values.norm(channel)
  let m = keys.mean(token)
  return k * v + dot(keys, m, channel)
}
""",
        """
score s() = {
  let m = keys.mean(token)
  let v = values.norm(channel)
  let k = keys.norm(channel)
  return k * v + dot(keys, m, channel)
}
""",
    ),
    "reordered_passes": (
        """
score s() = {
  let a = attention(queries.last(8), keys).mean(query, group)
  let far = -cosine(keys, keys.normalize(channel).mean(token), channel)
  return a.rank(token) + far.rank(token)
}
""",
        """
score s() = {
  let far = -cosine(keys, keys.normalize(channel).mean(token), channel)
  let a = attention(queries.last(8), keys).mean(query, group)
  return a.rank(token) + far.rank(token)
}
""",
    ),
    "unused": (
        "score s() = keys.max(channel)",
        """
score s() = {
  let unused = values.norm(channel).rank(token)
  return keys.max(channel)
}
""",
    ),
    "said_twice": (
        """
score s() = {
  let n = keys.norm(channel)
  return n / n.max(token)
}
""",
        "score s() = keys.norm(channel) / keys.norm(channel).max(token)",
    ),
}


def plan(tmp_path, source, level):
    path = tmp_path / "program.kv"
    path.write_text(source)
    done = library.run(
        [
            library.compiler(),
            "compile",
            path,
            "--emit=plan",
            "-o",
            "-",
            "--channels=64",
            "--dtype=f32",
            "--target=x86-64-v3",
            level,
        ],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cost(text):
    """What a plan does, without its names and its order: buffers, and what each pass touches."""
    buffers = Counter(re.sub(r'"\w+"', "", x) for x in re.findall(r"kvplan\.buffer (.*)", text))
    passes, here, indent = Counter(), None, ""
    for line in text.splitlines():
        space = line[: len(line) - len(line.lstrip())]
        opened = re.match(r"\s*kvplan\.(pass|small|order|tasks) ?([^%]*)", line)
        if opened and opened[1] in ("pass", "small") and line.rstrip().endswith("{"):
            here, indent = [opened[1] + opened[2]], space
        elif here is not None and line.rstrip() == indent + "}":
            passes[tuple(sorted(here))] += 1
            here = None
        elif found := re.match(
            r"\s*(?:%[\w:]+ = )?(kvplan\.\w+|kvp\.input\s+\w+)[^:]*:?(.*)", line
        ):
            what = found[1] + " " + found[2].strip()
            if here is not None:
                here.append(what)
            elif not what.startswith("kvplan.buffer"):
                passes[(what,)] += 1
    return buffers, passes


@pytest.mark.parametrize("name", PAIRS)
def test_same_cost(tmp_path, name):
    one, other = (cost(plan(tmp_path, source, "-O2")) for source in PAIRS[name])
    assert one[0] == other[0], "buffers"
    assert one[1] == other[1], "passes"


def test_costs_differ(tmp_path):
    """The measure tells plans apart: another pass, another buffer, another stream."""
    sources = (
        "score s() = keys.norm(channel)",
        "score s() = values.norm(channel)",
        "score s() = keys.norm(channel) + values.norm(channel)",
        "score s() = keys.norm(channel) / keys.norm(channel).max(token)",
        "score s() = keys.norm(channel).avg_pool(token, 3)",
    )
    costs = [str(cost(plan(tmp_path, source, "-O2"))) for source in sources]
    assert len(set(costs)) == len(costs)
    assert cost(plan(tmp_path, sources[3], "-O0")) != cost(plan(tmp_path, sources[3], "-O2"))
