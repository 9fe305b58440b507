"""Needles in a haystack, and what comes after it. The hay is the story that scripts/demo reads:
"The Red-Headed League" by Arthur Conan Doyle, 1891, in the public domain."""

import random
from dataclasses import dataclass
from pathlib import Path

STORY = Path(__file__).resolve().parents[1] / "scripts/demo.txt"

NEEDLE = "The secret number of {place} is {number}.\n\n"
QUESTION = "\n\nWhat is the secret number of {place}?"
ANSWER = "The secret number of {place} is "
PLACES = (
    "Lisbon", "Cairo", "Oslo", "Madrid", "Vienna", "Dublin", "Athens", "Warsaw", "Geneva",
    "Boston", "Bombay", "Prague", "Venice", "Moscow", "Berlin",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """Token ids, as lists.

    length    tokens of `context`
    depth     of the needle in it: 0 begins, 1 ends
    context   what is read and compressed, before anything is known of the question
    question  and how the answer opens
    answer    the needle's number
    after     the story's next tokens after the context: an own continuation, without the question
    """

    length: int
    depth: float
    context: list
    question: list
    answer: list
    after: list


def story(tokenizer):
    """Tokens of each paragraph, the blank line after it included."""
    text = STORY.read_text().partition("\n---\n")[2].strip()
    return [
        tokenizer(part + "\n\n", add_special_tokens=False).input_ids for part in text.split("\n\n")
    ]


def chat(tokenizer):
    """(what opens a user's turn, what ends it and opens the answer), as text."""
    content = "what the user says"
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    opening, _, ending = turn.partition(content)
    return opening, ending


def make(tokenizer, lengths, depths, after):
    """One prompt for each length and depth. Prompts of one length begin at different places of the
    story, so that what follows them differs."""

    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    parts, rand, prompts = story(tokenizer), random.Random(0), []
    tokens = [token for part in parts for token in part]
    bounds = [0]
    for part in parts:
        bounds.append(bounds[-1] + len(part))
    opening, ending = chat(tokenizer)
    head = ids(opening)
    for number, depth in enumerate(depths):
        for length in lengths:
            spare = len(tokens) - length - after
            if spare < 0:
                raise SystemExit(
                    f"the story has {len(tokens)} tokens; {length} and {after} after it are too many"
                )
            names = {"place": PLACES[len(prompts) % len(PLACES)]}
            value = str(rand.randrange(10000, 100000))
            needle = ids(NEEDLE.format(**names, number=value))
            start = spare * number // max(len(depths) - 1, 1)
            stop = start + length - len(head) - len(needle)
            wanted = start + depth * (stop - start)
            inside = [bound for bound in bounds if start <= bound <= stop] or [start]
            place = min(inside, key=lambda bound: abs(bound - wanted))
            prompts.append(
                Prompt(
                    length,
                    depth,
                    head + tokens[start:place] + needle + tokens[place:stop],
                    ids(QUESTION.format(**names) + ending + ANSWER.format(**names)),
                    ids(value),
                    tokens[stop : stop + after],
                )
            )
    return prompts
