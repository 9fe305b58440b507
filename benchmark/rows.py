"""What is measured: each press of the library that compiles, half kept, and its peers."""

from dataclasses import dataclass, field

import formulas as f

HALF = {"drop": 0.5}


@dataclass(frozen=True)
class Row:
    """name       of the press in the library
    stages     the same in formulas.py; none: no reference, the choice is random
    peers      module kvpress, Given → presses of kvpress that run one after another
    arguments  of our press; a function is called with Given
    defines    its static parameters
    layer      of how many `layers` the call is
    calls      layers compressed in one timed call: the first chooses, the others reuse its choice
    queries    how many of the last are given: those of a window, all, or none and only the peer
               counts them
    weights    whether the peer is given the weights of all queries, which it makes first
    most       tokens that it is measured with, where more are asked
    alike      whether kvpress chooses the same
    note       where the peer is not the same
    """

    name: str
    stages: tuple
    peers: callable
    arguments: dict = field(default_factory=lambda: HALF)
    defines: dict = field(default_factory=dict)
    layer: int = 0
    layers: int = 1
    calls: int = 1
    queries: str = "window"
    weights: bool = False
    most: int = 1 << 40
    alike: bool = True
    note: str = ""


def filters(press, given):
    press.q_filters = given.filters.to(given.keys.dtype)
    return press


def with_statistics(press, given):
    groups = given.queries.shape[1] // given.keys.shape[1]
    told = f.statistics(given.keys.shape[1], groups, given.keys.shape[3])
    press.mu, press.cov = (x.flatten(1, 2).to(given.keys.dtype) for x in told)
    return press


def told_statistics(index):
    def told(given):
        groups = given.queries.shape[1] // given.keys.shape[1]
        return f.statistics(given.keys.shape[1], groups, given.keys.shape[3])[index]

    return told


def half(name):
    return lambda k, given: [getattr(k, name)(compression_ratio=0.5)]


TOKENS = f.share(0.5)
SNAPKV = f.Tokens(f.snapkv, TOKENS)
THINK = f.Channels(f.think, f.share(0.5))

ROWS = {
    row.name: row
    for row in (
        Row("knorm", (f.Tokens(f.knorm, TOKENS),), half("KnormPress")),
        Row(
            "random",
            (),
            lambda k, given: [k.RandomPress(compression_ratio=0.5, seed=0)],
            note="other random numbers than the peer's",
        ),
        Row("streaming_llm", (f.Tokens(f.streaming_llm, TOKENS),), half("StreamingLLMPress")),
        Row("keydiff", (f.Tokens(f.keydiff, TOKENS),), half("KeyDiffPress")),
        Row("tova", (f.Tokens(f.tova, TOKENS),), half("TOVAPress")),
        Row("snapkv", (SNAPKV,), half("SnapKVPress")),
        Row(
            "pyramidkv",
            (f.Tokens(f.snapkv, f.pyramid(0.5)),),
            half("PyramidKVPress"),
            layer=15,
            layers=32,
        ),
        Row(
            "qfilter",
            (f.Tokens(f.qfilter, TOKENS),),
            lambda k, given: [filters(k.QFilterPress(compression_ratio=0.5), given)],
            arguments=HALF | {"filter": lambda given: given.filters.float()},
        ),
        Row(
            "observed_attention",
            (f.Tokens(f.observed_attention, TOKENS),),
            half("ObservedAttentionPress"),
            queries="all",
            weights=True,
            most=8192,
            note="the peer reads the weights of eager attention, made head by head into one tensor",
        ),
        Row(
            "expected_attention",
            (f.Tokens(f.expected_attention, TOKENS),),
            half("ExpectedAttentionPress"),
            queries="all",
        ),
        Row(
            "expected_attention_stats",
            (f.Tokens(f.expected_attention_stats, TOKENS),),
            lambda k, given: [with_statistics(k.ExpectedAttentionStatsPress(0.5), given)],
            arguments=HALF | {"mu": told_statistics(0), "cov": told_statistics(1)},
            queries="counted",
            note="statistics of queries are given",
        ),
        Row(
            "chunkkv",
            (f.Parts(f.snapkv, 20, f.share(0.5)),),
            lambda k, given: [k.ChunkKVPress(k.SnapKVPress(0.5), chunk_length=20)],
        ),
        Row(
            "chunkkv_reuse",
            (f.Parts(f.snapkv, 10, f.share(0.5)),),
            lambda k, given: [k.ChunkKVPress(k.SnapKVPress(0.5), chunk_length=10)],
            layers=2,
            calls=2,
            note="2 layers, the second reuses; the peer cannot and chooses twice",
        ),
        Row(
            "per_layer",
            (SNAPKV,),
            half("SnapKVPress"),
            arguments={"ratios": [0.3, 0.5]},
            layer=1,
            layers=2,
            note="the peer's wrapper only sets the ratio of its SnapKVPress",
        ),
        Row(
            "composed",
            (f.Tokens(f.knorm, f.share(0.25), ordered=True), f.Tokens(f.snapkv, f.share(0.33))),
            lambda k, given: [k.KnormPress(0.25), k.SnapKVPress(0.33)],
            arguments={},
            defines={
                "p": "knorm() |> topk(drop(0.25))",
                "q": "snapkv() |> topk(drop(0.33))",
            },
            alike=False,
            note="knorm, then snapkv on what is left; the peer loses the order of tokens between them, "
            "so that its window is of others",
        ),
        Row(
            "think",
            (THINK,),
            lambda k, given: [k.ThinKPress(0.5)],
            arguments={"ratio": 0.5},
            note="the peer writes zeros where ours gives channels back",
        ),
        Row(
            "snap_think",
            (SNAPKV, THINK),
            lambda k, given: [k.SnapKVPress(0.5), k.ThinKPress(0.5)],
            note="as think",
        ),
        Row(
            "chunk_snap_think",
            (f.Parts(f.snapkv, 20, f.share(0.5)), THINK),
            lambda k, given: [k.ChunkKVPress(k.SnapKVPress(0.5), 20), k.ThinKPress(0.5)],
            note="as think",
        ),
    )
}
