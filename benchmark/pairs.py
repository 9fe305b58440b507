"""Presses of the library on a real model, each beside its counterpart in kvpress, at a given drop.

What kvpress cannot take from the model at hand, or we cannot, both are given: see `Given`.
"""

from dataclasses import dataclass, field

import kvpc

DMS_WINDOW = 128  # entries that dms keeps whatever their score is; the default of both


@dataclass(frozen=True)
class Given:
    """What presses need beside their drop.

    drop       share of entries that go (think: of key channels)
    layers     of the model
    tokens     of the prompt
    threshold  of dms, on snapkv's scores: (drop, tokens) → a number
    filters    f32 [layer, head, channel], of qfilter
    """

    drop: float
    layers: int
    tokens: int
    threshold: callable = None
    filters: object = None

    @property
    def ratios(self):
        """One drop a layer, 0.2 more in the last than on average, 0.2 less in the first."""
        steps = range(self.layers)
        ratios = [self.drop - 0.2 + 0.4 * i / max(self.layers - 1, 1) for i in steps]
        return [min(max(ratio, 0.0), 0.99) for ratio in ratios]

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
    note       where the two are not the same on purpose
    """

    name: str
    peer: callable
    arguments: callable = field(default=lambda given: {"drop": given.drop})
    defines: callable = field(default=lambda given: {})
    note: str = ""

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


def composed_defines(given):
    part = f"topk(drop({given.part:.6f}))"
    return {"p": f"knorm() |> {part}", "q": f"snapkv() |> {part}"}


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
    )
}


def recent(given):
    """What a lazy layer of simlayerkv keeps, beside 4 of the first."""
    return int(given.tokens * (1 - given.drop)) - 4
