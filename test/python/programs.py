"""Random well-typed programs of the press language: the same for the same seed, on every machine.

A program is one exported score or press with the functions that it calls. An expression is drawn
for wanted axes, from the leaves up: so all that is drawn is right by construction, and what the
compiler refuses is a bug. Values stay of moderate size (what grows is squashed before `exp`), or no
bound of rounding would mean anything.
"""

import random
import re
from dataclasses import dataclass, field

SMOOTH = (
    "tanh({})",
    "sigmoid({})",
    "gelu({})",
    "relu({})",
    "abs({})",
    "({} ** 2)",
    "-{}",
    "sqrt(abs({}))",
    "rsqrt(abs({}) + 0.7)",
    "log(abs({}) + 0.3)",
    "exp(clamp({}, -4, 3))",
    "clamp({}, -1.5, 2)",
    "float({})",
    "maximum({}, 0.25)",
    "minimum(0.5, {})",
    "(3 - {})",
    "(1.5 * {} + 0.1)",
    "({} / 3)",
)
STEPS = ("floor({})", "round(2 * {})", "int({})", "({} % 3)")
JOINED = (
    "({a} + {b})",
    "({a} - {b})",
    "({a} * {b})",
    "({a} / (abs({b}) + 0.6))",
    "maximum({a}, {b})",
    "minimum({a}, {b})",
    "where({c}, {a}, {b})",
    "({a} + 0.5 * {b})",
)
TOTALS = ("sum", "mean", "max", "min", "std", "var", "norm")
CACHE = ("head", "token", "channel")
ASKED = ("head", "group", "query", "channel")
PAID = ("head", "group", "query", "token")
LEAST = 45  # the shortest row of the tests


@dataclass
class Program:
    """One exported declaration.

    name      of it
    kind      score (selected by topk with its own budget) or press
    source    its text, with its functions
    arguments of the call
    tensors   tensor parameters: name → axes
    """

    name: str
    kind: str
    source: str
    arguments: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)


class Generator:
    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.rare = random.Random(seed + 0.5)  # what few programs have
        self.seed = seed
        self.functions, self.lets, self.parameters = [], [], []
        self.arguments, self.tensors = {}, {}
        self.over_head = True  # may token values be reduced over `head`
        self.weights = True  # may tensor parameters be used: not after a selection
        self.length = "length"  # or, after heads kept different counts, a number
        self.many = True  # are there certainly some tokens: std of one is 0 / 0
        self.windows = (self.pick((1, 4, 17)),)  # one each: `query` has one extent in a program
        self.all = random.Random(seed + 0.25).random() < 0.12  # all queries, not a window

    def chance(self, p):
        return self.draw.random() < p

    def pick(self, what):
        return self.draw.choice(what)

    def pick_rarely(self, what):
        return self.rare.choice(what)

    # Leaves: text over some of the wanted axes.

    def leaf(self, axes):
        """Over exactly `axes`, which is a tuple in the language's order."""
        if axes == CACHE:
            plain = self.pick(("keys", "values", "keys", "(keys - values)"))
            if self.rare.random() < 0.15:
                return self.pick_rarely(
                    (
                        f"rotate({plain}, position)",
                        f"rotate({plain}, -7)",
                        f"rotate({plain}, seen + index([ahead: 5])).mean(ahead)",
                        "keys.unrotated",
                    )
                )
            return plain
        if axes == ASKED:
            before = ".unrotated" if self.rare.random() < 0.15 else ""
            return f"{self.asked()}{before}"
        if axes == PAID:
            call = self.pick(("attention", "attention", "logits"))
            where = (
                f", where = {self.condition()}" if call == "attention" and self.chance(0.25) else ""
            )
            return f"{call}({self.asked()}, keys{where})"
        if axes == ("token",):
            return self.pick(
                (
                    f"(position / {self.length})",
                    "sqrt(position)",
                    "index(token) / 100",
                    "sigmoid(position / 50 - 2)",
                )
            )
        if axes == ("query",) and self.all:
            return "(index(query) / 50)"
        if axes == ("channel",):
            return "(index(channel) / channels)"
        if axes in (("head", "token"), ("head", "group", "token")) and self.rare.random() < 0.2:
            share = self.pick_rarely(
                (
                    "dot(values, output_weight, channel).abs().sum(feature)",
                    "dot(values, output_weight, channel).norm(feature)",
                    "relu(dot(values, output_weight, channel) - 0.1).max(feature)",
                )
            )
            return f"({share} / 10)" if "group" in axes else f"({share}.mean(group) / 10)"
        if axes == ("head", "token") and self.chance(0.3):
            return f"uniform({self.pick((1, 2, self.scalar_parameter('int')))}, [head, token])"
        if axes == ("head", "channel") and self.weights and self.chance(0.3):
            return self.tensor_parameter(axes)
        return None

    def asked(self):
        window = self.pick(self.windows)
        return "queries" if self.all else f"queries.last({window})"

    def scalar_parameter(self, kind):
        name = f"p{len(self.parameters)}"
        value = self.draw.randint(0, 9) if kind == "int" else round(self.draw.uniform(0.2, 2), 3)
        self.parameters.append(f"{name}: {kind} = {value}")
        if self.chance(0.5):  # a parameter of the call, with another value than its default
            self.arguments[name] = value + (1 if kind == "int" else 0.25)
        return name

    def tensor_parameter(self, axes):
        name = f"w{len(self.tensors)}"
        self.tensors[name] = axes
        self.parameters.append(f"{name}: float[{', '.join(axes)}]")
        return name

    def scalar(self):
        return self.pick(
            (
                "0.5",
                "2",
                f"({self.length} / 100)",
                "layers",
                "(layer + 1)",
                "rsqrt(channels)",
                "0.01 * seen",
            )
            + ((self.scalar_parameter("float"),) if self.chance(0.3) else ())
        )

    def condition(self):
        """Over token alone, of positions: never a near tie."""
        n = self.draw.randint(1, 30)
        return self.pick(
            (
                f"position >= {n}",
                f"position < {self.length} - {n}",
                f"(position % 3 != 1 and position > {n % 5})",
                f"not (position == {n} or position == 2)",
                f"position < {self.length} / 2",
                f"original_position > {n}",
            )
        )

    # Expressions.

    def value(self, axes, depth):
        """Text over exactly `axes`."""
        ways = [self.by_map, self.by_join, self.by_total, self.by_total, self.by_along]
        if "channel" not in axes and "token" in axes and set(axes) <= {"head", "group", "token"}:
            ways += [self.by_contraction, self.by_parts, self.by_along]
        leaf = self.leaf(axes)
        if leaf and (depth <= 0 or self.chance(0.25)):
            return leaf
        if depth <= 0:
            return self.by_total(axes, 0)
        return self.pick(ways)(axes, depth)

    def by_map(self, axes, depth):
        inner = self.value(axes, depth - 1)
        shape = self.pick(SMOOTH + STEPS[: 1 if self.chance(0.2) else 0])
        if self.chance(0.25):
            name = f"f{self.seed}_{len(self.functions)}"
            body = self.pick(SMOOTH).format(f"(x * {self.pick(('0.5', 'by', '1.1'))})")
            self.functions.append(f"fn {name}(x: tensor, by: float = 0.9) = {body}")
            by = self.pick(("", ", 0.7", f", by = {self.scalar()}"))
            return f"{name}({inner}{by})"
        return shape.format(inner)

    def by_join(self, axes, depth):
        """Two values, the second perhaps over fewer axes."""
        other = axes
        if len(axes) > 1 and self.chance(0.6):
            other = tuple(x for x in axes if self.chance(0.5))
        b = self.value(other, depth - 1) if other else self.scalar()
        a = self.value(axes, depth - 1)
        shape = self.pick(JOINED)
        if "{c}" in shape:
            condition = self.condition() if "token" in axes else f"{self.scalar()} > 1"
        else:
            condition = ""
        if "*" not in shape and "/" not in shape and self.chance(0.5):
            a, b = b, a
            if other != axes and "where" in shape:
                a, b = b, a
        return shape.format(a=a, b=b, c=condition)

    def wider(self, axes):
        """Axes that a reduction may take away to leave `axes`."""
        have = set(axes)
        homes = [
            x for x in (CACHE, ASKED, PAID, ("head", "token"), ("head", "channel")) if have < set(x)
        ]
        if "token" in have and not self.over_head:
            homes = [x for x in homes if "head" not in x or "head" in have]
        if self.all and "query" in have:  # all queries go before heads
            homes = [x for x in homes if "head" not in x or "head" in have]
        if not axes:
            homes = [("token",)]
        return self.pick(homes) if homes else None

    def by_total(self, axes, depth):
        home = self.wider(axes)
        if home is None:
            return self.value(axes, depth - 1) if depth > 0 else self.leaf(axes) or self.split(axes)
        gone = [x for x in home if x not in axes]
        self.draw.shuffle(gone)
        # Some at once, some one after the other.
        if self.all and "query" in gone:
            gone.sort(key=lambda axis: axis == "head")
        cut = self.draw.randint(1, len(gone))
        first, rest = gone[:cut], gone[cut:]
        text = self.value(home, depth - 1)
        for some in filter(None, (first, rest)):
            how = self.pick(TOTALS)
            if how in ("std", "var") and (some == ["query"] or ("token" in some and not self.many)):
                how = "mean"
            where = (
                f", where = {self.condition()}" if "token" in home and "token" not in axes else ""
            )
            if where and (some is not first or "token" not in some or self.chance(0.6)):
                where = ""
            text = f"{self.bracket(text)}.{how}({', '.join(some)}{where})"
            if how in ("sum", "norm", "var"):
                text = f"({text} / {self.pick(('4', '10'))})"
        return text

    def split(self, axes):
        """Where nothing else is: a product of narrower values."""
        return " * ".join(f"({self.value((a,), 0)})" for a in axes)

    def bracket(self, text):
        return text if text.isidentifier() else f"({text})"

    def by_along(self, axes, depth):
        inner = self.bracket(self.value(axes, depth - 1))
        axis = self.pick(axes)
        together = self.over_head and not (self.all and "query" in axes)
        if axis == "head" and "token" in axes and not together:
            axis = "token"
        where = f", where = {self.condition()}" if axis == "token" and self.chance(0.4) else ""
        ways = [f".softmax({axis}{where})", f".normalize({axis}{where})"]
        if axis == "token":
            k = self.pick((1, 3, 5, 9))
            ways += [
                f".cumsum(token{where})",
                f".avg_pool(token, {k}{where})",
                f".avg_pool(token, {k}{where})",
                f".max_pool(token, {k})",
                f".shift(token, {self.pick((-3, -1, 1, 2, 7))}, fill = 0.5)",
            ]
            # A rank of positions alone would be one of near ties.
            if set(axes) <= {"head", "token"} and self.of_data(inner):
                ways.append(f".rank(token{where})")
        way = self.pick(ways)
        if way.startswith(".softmax"):
            inner = f"clamp({inner}, -8, 8)"
        text = inner + way
        if "cumsum" in way or "rank" in way:
            text = f"({text} / {self.length})"
        return text

    def of_data(self, text):
        """Does a value come from tensors that differ from entry to entry?"""
        for line in reversed(self.lets):
            name, _, value = line.removeprefix("  let ").partition(" = ")
            text = re.sub(rf"\b{name}\b", lambda _, v=value: v, text)
        return re.search(r"\b(keys|values|queries|uniform)\b", text) is not None

    def by_contraction(self, axes, depth):
        """A sum over channels of products."""
        if "head" not in axes:
            return self.by_map(axes, depth)
        left = self.value(CACHE, depth - 1)
        if "group" in axes:
            q = f"{self.asked()}.{self.pick(('mean', 'max', 'sum'))}(query)"
        else:
            q = self.value(("head", "channel"), depth - 1)
        return self.pick(
            (
                f"(({left} * {q}).sum(channel) / 4)",
                f"(dot({left}, {q}, channel) / 4)",
                f"cosine({left}, {q}, channel)",
                f"(dot({q}, {left}, channel) / 5)",
            )
        )

    def by_parts(self, axes, depth):
        size = self.pick((4, 16, 20))
        inner = self.bracket(self.value(axes, depth - 1))
        limits = self.pick(
            ("", "", ", from = 3", f", from = 2, to = {self.length} - 5", ", whole = true")
        )
        parts = f"{inner}.partition(token, {size}{limits})"
        # Of positions, such a difference would be rounding alone.
        apart = "{p} - {p}.mean(slot)" if self.of_data(inner) else "{p} + {p}.mean(slot)"
        inside = self.pick(
            (
                apart,
                "{p} / ({p}.max(slot) - {p}.min(slot) + 0.5)",
                "clamp({p}, -5, 5).softmax(slot)",
                "{p}.cumsum(slot) / 10",
                "{p} * {p}.mean(slot).shift(part, 1, fill = 1)",
                "{p}.avg_pool(slot, 3)",
            )
        )
        if "{p}" in inside:
            name = self.let(parts)
            return f"({inside.format(p=name)}).join(fill = {self.pick(('0', '0.25', '1'))})"
        return inner

    def let(self, text):
        name = f"x{len(self.lets)}"
        self.lets.append(f"  let {name} = {text}")
        return name

    # Declarations.

    def score(self, axes, depth):
        text = self.value(axes, depth)
        if self.chance(0.4):
            text = self.let(text)
        if axes[-1] == "token" and self.chance(0.35):
            text = (
                f"{self.bracket(text)}.protect({self.condition()})"
                if self.chance(0.3)
                else (
                    f"{self.bracket(text)}.protect(position >= {self.length} - {self.draw.randint(1, 12)})"
                )
            )
            if self.chance(0.3):
                text = f"2 * {text} + {self.scalar()}"
        return text

    def budget(self, most=LEAST):
        if self.chance(0.4) or self.length != "length":
            return f"keep({self.draw.randint(1, most)})"
        name = f"b{len(self.parameters)}"
        amount = round(self.draw.uniform(0.05, 0.95), 2)
        self.parameters.append(f"{name}: budget = drop({amount})")
        return name

    def stage(self, depth):
        """A pipeline of one selection; whether it left heads aligned, and with equal counts."""
        kind = self.draw.randint(0, 9)
        if kind <= 3:
            text = self.score(("head", "token"), depth)
            budget = self.budget()
            if self.rare.random() < 0.3:
                share = self.pick_rarely(("", ", at_least = 0.2", ", at_least = 0.9"))
                return f"{text} |> topk({budget}, over = [head, token]{share})", False, False
            if self.rare.random() < 0.2:
                count = f"(uniform({self.rare.randint(0, 9)}, [head, token]) > 0.6).count(token)"
                return f"{text} |> topk(keep({count}))", False, False
            return f"{text} |> topk({budget})", False, True
        if kind <= 5:
            return f"{self.score(('token',), depth)} |> topk({self.budget()})", True, True
        if kind <= 7:
            uniform = self.over_head and self.chance(0.6)
            axes = ("token",) if uniform else ("head", "token")
            text = self.value(axes, depth)
            size = self.pick((5, 16, 20))
            return (
                f"{self.bracket(text)} |> chunk({size}) |> topk({self.budget()})",
                uniform,
                uniform,
            )
        text = self.value(("head", "token"), depth)
        return f"mask({self.bracket(text)} > {self.pick(('0.2', '0.35', '0'))})", False, False


def program(seed):
    """The program of a seed."""
    g = Generator(seed)
    name = f"r{seed}"
    depth = g.pick((1, 2, 2, 3, 3, 4))
    shape = g.draw.random()
    if shape < 0.62:
        kind = "score"
        axes = g.pick((("head", "token"), ("head", "token"), ("token",), ("head", "channel")))
        body = g.score(axes, depth)
        if g.chance(0.15) and axes[-1] == "token":
            body = f"{g.bracket(g.value(axes, depth))} |> chunk({g.pick((5, 16, 20))})"
    elif shape < 0.82:
        kind, (body, _, _) = "press", g.stage(depth)
    else:
        kind = "press"
        first, aligned, even = g.stage(min(depth, 2))
        g.over_head, g.weights, g.many = aligned, False, False
        g.length = "length" if even else "40"
        lets, g.lets = g.lets, []
        given = list(g.parameters)
        if g.chance(0.4):
            axes = ("head", "channel")
            second = f"{g.value(axes, 1)} |> topk(keep({g.draw.randint(2, 15)}))"
        else:
            second, _, _ = g.stage(min(depth, 2))
        # A value belongs to one state of the cache: each stage is a press of its own.
        heads = [block(lets, first), block(g.lets, second)]
        calls = []
        for i, (text, own) in enumerate(zip(heads, (given, g.parameters[len(given) :]))):
            g.functions.append(f"press {name}_{i}({', '.join(own)}) = {text}")
            calls.append(f"{name}_{i}({', '.join(p.split(':')[0] for p in own)})")
        g.lets = []
        body = f"compose({', '.join(calls)})"
    text = f"{kind} {name}({', '.join(g.parameters)}) = {block(g.lets, body)}"
    source = "\n".join([*g.functions, text])
    return Program(name, kind, source, g.arguments, g.tensors)


def block(lets, body):
    if not lets:
        return body
    return "{\n" + "\n".join(lets) + f"\n  return {body}\n}}"


if __name__ == "__main__":
    import sys

    for seed in range(*map(int, sys.argv[1:])):
        print(f"# {seed}\n{program(seed).source}\n")
