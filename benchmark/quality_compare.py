"""Whether two presses do equally well on the same prompts, and the tables that say so."""

import math
from collections import defaultdict

import torch

CONFIDENCE = 0.99  # of a statement; with 60 of them, about one in two runs has a false one
RESAMPLES = 20_000
TOLERANCE = 1e-3  # nats: what rounding does to presses that keep the same; no table shows so little
FEWEST = 5  # prompts of which noise can be told

# measure → whether more is better
MEASURES = {"logp": True, "nll": False, "kl": False}


def interval(differences):
    """(mean, its standard error, bounds of the paired bootstrap) of differences by prompt."""
    x = torch.tensor(differences, dtype=torch.float64)
    rand = torch.Generator().manual_seed(0)
    means = x[torch.randint(len(x), (RESAMPLES, len(x)), generator=rand)].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return x.mean().item(), (x.std() / math.sqrt(len(x))).item(), low, high


def by_prompt(results, press, measure):
    """Ours less kvpress', one number a prompt: the mean over drops."""
    sides = defaultdict(dict)
    for one in results:
        if one["press"] == press and measure in one:
            prompt = one["length"], one["depth"]
            sides[prompt, one["drop"]][one["side"]] = one[measure]
    differences = defaultdict(list)
    for (prompt, _), values in sides.items():
        if len(values) == 2:
            differences[prompt].append(values["kvpc"] - values["kvpress"])
    return [sum(x) / len(x) for x in differences.values()]


def statement(results, press, measure):
    """mean difference, standard error and a verdict, of one press over all drops and prompts."""
    differences = by_prompt(results, press, measure)
    if len(differences) < FEWEST:
        return {"measure": measure, "prompts": len(differences), "verdict": "too few prompts"}
    mean, error, low, high = interval(differences)
    verdict = "equal within noise"
    if low > TOLERANCE or high < -TOLERANCE:
        better = (mean > 0) == MEASURES[measure]
        verdict = f"{'kvpc' if better else 'kvpress'} is better"
    return {
        "measure": measure,
        "prompts": len(differences),
        "mean": mean,
        "standard_error": error,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def statements(results):
    names = dict.fromkeys(one["press"] for one in results if one["press"] != "none")
    return [
        {"press": name, **statement(results, name, measure)}
        for name in names
        for measure in MEASURES
    ]


def mean(values):
    return sum(values) / len(values) if values else math.nan


def summary(results):
    """One entry for each press, drop and side: means over prompts."""
    groups = defaultdict(list)
    for one in results:
        groups[one["press"], one["drop"], one["side"]].append(one)
    plain = {
        (one["side"], one["length"], one["depth"]): one["bytes"]
        for one in results
        if one["press"] == "none"
    }
    out = {}
    for key, ones in groups.items():
        done = [one for one in ones if "failed" not in one]
        out[key] = {
            "prompts": len(done),
            "exact": sum(one["exact"] for one in done),
            "logp": mean([one["logp"] for one in done]),
            "perplexity": math.exp(mean([one["nll"] for one in done])),
            "kl": mean([one["kl"] for one in done]),
            "bytes": mean(
                [one["bytes"] / plain[one["side"], one["length"], one["depth"]] for one in done]
            ),
            "failed": next((one["failed"] for one in ones if "failed" in one), None),
        }
    return out


def markdown(head, rows):
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def results_table(results):
    """A row for each press and drop: ours / kvpress."""
    sums = summary(results)
    rows = []
    for press, drop in dict.fromkeys((press, drop) for press, drop, _ in sums):
        two = [sums.get((press, drop, side)) for side in ("kvpc", "kvpress")]

        def pair(key, form, two=two):
            return " / ".join(format(one[key], form) if one else "-" for one in two)

        wrong = "; ".join(one["failed"] for one in two if one and one["failed"])
        rows.append(
            [
                press,
                f"{drop:g}",
                pair("bytes", ".0%"),
                pair("exact", "d"),
                pair("logp", ".2f"),
                pair("perplexity", ".2f"),
                wrong or pair("kl", ".3f"),
            ]
        )
    head = ["press", "drop", "cache", "needles", "log p", "perplexity", "KL"]
    return markdown(head, rows)


def statements_table(said):
    rows = defaultdict(list)
    for one in said:
        cell = one["verdict"]
        if "mean" in one:
            cell = f"{one['mean']:+.3f} ± {one['standard_error']:.3f}: {cell}"
        rows[one["press"]].append(cell)
    head = ["press", "log p of the needle", "nll of what follows", "KL of what follows"]
    return markdown(head, [[press, *cells] for press, cells in rows.items()])
