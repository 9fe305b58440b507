"""Presses of the library on a real model, each beside its counterpart in kvpress, at a given drop.

What kvpress cannot take from the model at hand, or we cannot, both are given: see `Given`.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

import kvpc

DMS_WINDOW = 128  # entries that dms keeps whatever their score is; the default of both


# Of a streaming head of duo_attention, which the default of ours and the patterns of kvpress have.
SINK, RECENT = 128, 256

# Tokens of finch_score's window, which its authors fill with the question: here the prompt's end.
FINCH_WINDOW = 64

# What a press may need that only runs of the model yield.
RUNS = {
    "filters": "filters of the model",
    "statistics": "statistics of the model's queries",
    "attention": "attention weights on kvpress' side",
}


@dataclass(frozen=True)
class Given:
    """What presses need beside their drop.

    drop       share of entries that go (think: of key channels)
    layers     of the model
    tokens     of the prompt
    threshold  of dms, on snapkv's scores: (drop, tokens) → a number
    filters    f32 [layer, head, channel], of qfilter
    statistics of queries before their rotation, of expected_attention_stats: means
               [layer, head, group, channel], covariances [layer, head, group, channel, channel]
    heads      of keys in each layer
    """

    drop: float
    layers: int
    tokens: int
    threshold: callable = None
    filters: object = None
    statistics: tuple = None
    heads: int = None

    @property
    def ratios(self):
        """One drop a layer, 0.2 more in the last than on average, 0.2 less in the first."""
        steps = range(self.layers)
        ratios = [self.drop - 0.2 + 0.4 * i / max(self.layers - 1, 1) for i in steps]
        return [min(max(ratio, 0.0), 0.99) for ratio in ratios]

    @property
    def pattern(self):
        """How much each head retrieves [layer, head]: random numbers, for want of the model's."""
        return torch.rand(self.layers, self.heads, generator=torch.Generator().manual_seed(0))

    @property
    def curve(self):
        """The share that each head drops [percent, layer, head], the percents' own on average: by
        random numbers, for want of the model's."""
        percent = torch.arange(1, 100)[:, None, None] / 100
        rand = torch.Generator().manual_seed(1)
        spread = torch.rand(self.layers, self.heads, generator=rand)
        return percent + (spread - spread.mean()) * torch.minimum(percent, 1 - percent)

    @property
    def part(self):
        """The drop of each of two presses that one after the other drop `drop`."""
        return 1 - (1 - self.drop) ** 0.5


@dataclass(frozen=True)
class Pair:
    """name       of our press in the library
    arguments  of our press: Given → name → value
    defines    its static parameters, likewise
    peer       (module kvpress, Given) → the press of kvpress
    needs      what of RUNS; kvpress alone needs `attention`, as its press' output[1]
    note       where the two are not the same on purpose
    """

    name: str
    peer: callable
    arguments: callable = field(default=lambda given: {"drop": given.drop})
    defines: callable = field(default=lambda given: {})
    needs: tuple = ()
    note: str = ""

    def unmet(self, peer):
        """Why a benchmark that has nothing of RUNS cannot run it, or an empty string.

        peer: whether kvpress is to run too
        """
        lacking = [RUNS[name] for name in self.needs if peer or name != "attention"]
        if not lacking:
            return ""
        return f"`{self.name}` needs {', '.join(lacking)}, which this benchmark does not make"

    def ours(self, given, dtype, channels):
        defines = self.defines(given)
        module = kvpc.compile(
            self.name, defines=defines, dtypes=dtype, channels=channels, press=self.name
        )
        return module.press(self.name, **self.arguments(given))


def simple(name):
    return lambda k, given: getattr(k, name)(compression_ratio=given.drop)


def snapkv(k, given):
    return k.SnapKVPress(compression_ratio=given.drop)


def qfilter(k, given):
    press = k.QFilterPress(compression_ratio=given.drop)
    press.q_filters = given.filters
    return press


def duo_attention(k, given):
    """Its choice of heads is kvpress' own; the pattern, which it would download, is given."""
    press = k.DuoAttentionPress(head_compression_ratio=given.drop)
    press.load_attention_pattern = lambda model: (SINK, RECENT, given.pattern.numpy())
    press.post_init_from_model(SimpleNamespace(device="cpu"))
    return press


def expected_attention_stats(k, given):
    press = k.ExpectedAttentionStatsPress(given.drop)
    press.mu, press.cov = (x.flatten(1, 2) for x in given.statistics)
    return press


def finch_score(k, given):
    """Its score and choice; positions stay, and the window, which it takes from a token between
    context and question, is given."""
    press = k.FinchPress(given.drop, rerotate_keys=False)
    press.window_size = FINCH_WINDOW
    return press


def lukv(k, given):
    """The curve, which it would download, is given."""
    press = k.LUKVPress(compression_ratio=given.drop)
    press._budget_curves = given.curve.numpy()
    return press


def without_norms(k, given):
    return k.ExpectedAttentionPress(given.drop, use_vnorm=False)


def composed_defines(given):
    part = f"topk(drop({given.part:.6f}))"
    return {"p": f"knorm() |> {part}", "q": f"snapkv() |> {part}"}


MASKS = "kvpress masks what its heads drop"

PAIRS = {
    pair.name: pair
    for pair in (
        Pair("knorm", simple("KnormPress")),
        # Without a seed: with one, kvpress draws the same numbers in every layer.
        Pair("random", simple("RandomPress"), note="other random numbers"),
        Pair("streaming_llm", simple("StreamingLLMPress")),
        Pair("keydiff", simple("KeyDiffPress")),
        Pair("tova", simple("TOVAPress")),
        Pair("lagkv", simple("LagKVPress")),
        Pair("cur", simple("CURPress")),
        Pair(
            "qfilter",
            qfilter,
            arguments=lambda given: {"drop": given.drop, "filter": given.filters},
            needs=("filters",),
        ),
        Pair("snapkv", snapkv),
        Pair("pyramidkv", simple("PyramidKVPress")),
        Pair(
            "per_layer",
            lambda k, given: k.PerLayerCompressionPress(k.SnapKVPress(), given.ratios),
            arguments=lambda given: {"ratios": given.ratios},
        ),
        Pair("chunkkv", lambda k, given: k.ChunkKVPress(snapkv(k, given), chunk_length=20)),
        Pair(
            "chunkkv_reuse",
            lambda k, given: k.ChunkKVPress(snapkv(k, given), chunk_length=10),
            note="kvpress cannot reuse: each layer chooses",
        ),
        Pair(
            "composed",
            lambda k, given: k.ComposedPress([k.KnormPress(given.part), k.SnapKVPress(given.part)]),
            arguments=lambda given: {},
            defines=composed_defines,
            note="kvpress loses the order of tokens between the two, so its window is of others",
        ),
        Pair(
            "think",
            lambda k, given: k.ThinKPress(key_channel_compression_ratio=given.drop),
            arguments=lambda given: {"ratio": given.drop},
            note="drop is of key channels",
        ),
        Pair(
            "snap_think",
            lambda k, given: k.ComposedPress([snapkv(k, given), k.ThinKPress(0.5)]),
            note="and half of the key channels",
        ),
        Pair(
            "chunk_snap_think",
            lambda k, given: k.ComposedPress(
                [k.ChunkKVPress(snapkv(k, given), chunk_length=20), k.ThinKPress(0.5)]
            ),
            note="and half of the key channels",
        ),
        Pair(
            "dms",
            lambda k, given: k.DMSPress(
                k.SnapKVPress(),
                threshold=given.threshold(given.drop, given.tokens),
                sliding_window_size=DMS_WINDOW,
            ),
            arguments=lambda given: {
                "threshold": given.threshold(given.drop, given.tokens),
                "window": DMS_WINDOW,
            },
            defines=lambda given: {"inner": "snapkv()"},
            note="the threshold drops this share of a text that sets it",
        ),
        Pair(
            "simlayerkv",
            lambda k, given: k.SimLayerKVPress(lazy_threshold=0.5, n_recent=recent(given)),
            arguments=lambda given: {"threshold": 0.5, "recent": recent(given)},
            note="drop is of layers whose last query spends half of its attention on the ends",
        ),
        Pair(
            "observed_attention",
            simple("ObservedAttentionPress"),
            needs=("attention",),
            note="kvpress takes the weights of the model's attention, ours makes them from queries",
        ),
        Pair("expected_attention", simple("ExpectedAttentionPress")),
        Pair(
            "expected_attention_stats",
            expected_attention_stats,
            arguments=lambda given: {
                "drop": given.drop,
                "mu": given.statistics[0],
                "cov": given.statistics[1],
            },
            needs=("statistics",),
        ),
        Pair(
            "finch_score",
            finch_score,
            arguments=lambda given: {"drop": given.drop, "window": FINCH_WINDOW},
        ),
        Pair(
            "non_causal_attention",
            simple("NonCausalAttnPress"),
            note="kvpress fills the last run with keys of zeros, which take part",
        ),
        Pair(
            "critical_expected_attention",
            lambda k, given: k.CriticalKVPress(without_norms(k, given)),
        ),
        Pair("critical_snapkv", lambda k, given: k.CriticalKVPress(snapkv(k, given))),
        # Of all that follow, heads keep different counts: kvpress masks, and frees nothing.
        Pair("adakv", lambda k, given: k.AdaKVPress(snapkv(k, given)), note=MASKS),
        Pair("adakv_snapkv", lambda k, given: k.AdaKVPress(snapkv(k, given)), note=MASKS),
        Pair(
            "adakv_expected_attention",
            lambda k, given: k.AdaKVPress(k.ExpectedAttentionPress(given.drop, epsilon=1e-2)),
            note=MASKS,
        ),
        Pair("critical_adakv", lambda k, given: k.CriticalAdaKVPress(snapkv(k, given)), note=MASKS),
        Pair(
            "duo_attention",
            duo_attention,
            arguments=lambda given: {
                "ratio": given.drop,
                "pattern": given.pattern,
                "sink": SINK,
                "recent": RECENT,
            },
            note=f"drop is of heads, by a random pattern; they keep {SINK + RECENT}; {MASKS}",
        ),
        Pair(
            "critical_adakv_expected_attention",
            lambda k, given: k.CriticalAdaKVPress(without_norms(k, given)),
            note=MASKS,
        ),
        Pair(
            "lukv",
            lukv,
            arguments=lambda given: {"drop": given.drop, "curve": given.curve},
            note=f"by a random curve; {MASKS}",
        ),
    )
}


def recent(given):
    """What a lazy layer of simlayerkv keeps, beside 4 of the first."""
    return int(given.tokens * (1 - given.drop)) - 4
