"""Short questions of everyday knowledge with one right answer of four, and sizes compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product

from qdeploy.bench.smoke.grammar import Draft, choice, minimal_pair, others
from qdeploy.bench.smoke.tables import (
    CAPITALS,
    COLORED,
    COLORS,
    COUNTRIES,
    DAYS,
    JOBS,
    LANGUAGES,
    MEMBERS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    ORDINALS,
    ORGANS,
    SIZES,
    SOUNDS,
    TOOLS,
    YOUNG,
    Fact,
)


def calendar() -> Iterator[Draft]:
    """Days and months in their order."""
    for title, cycle in (("day", DAYS), ("month", MONTHS)):
        for index, name in enumerate(cycle):
            after, before = cycle[(index + 1) % len(cycle)], cycle[index - 1]
            wrong = others(after, {*cycle} - {name}, f"after {name}")
            yield choice("days and months", f"{title} after", f"The {title} after {name} is", after, wrong)
            context = f"If this {title} is {name}, the next {title} is"
            yield choice("days and months", f"next {title}", context, after, wrong)
            wrong = others(before, {*cycle} - {name}, f"before {name}")
            yield choice("days and months", f"{title} before", f"The {title} before {name} is", before, wrong)
        for index in range(len(cycle)):
            shown = [cycle[(index + step) % len(cycle)] for step in range(4)]
            wrong = others(shown[3], {*cycle} - {*shown}, f"row {shown}")
            yield choice("days and months", f"{title}s in a row", ", ".join(shown[:3]) + ",", shown[3], wrong)


def counting() -> Iterator[Draft]:
    """Rows of number words, digits and ordinals, to be continued."""
    rows: dict[str, Sequence[str]] = {
        "up": NUMBERS,
        "down": NUMBERS[::-1],
        "evens": NUMBERS[1::2],
        "odds": NUMBERS[::2],
        "ordinals": ORDINALS,
        "digits": [str(n) for n in range(1, 60)],
        "tens": [str(n) for n in range(10, 210, 10)],
        "fives": [str(n) for n in range(5, 105, 5)],
    }
    for name, row in rows.items():
        for start in range(len(row) - 3):
            *shown, answer = row[start : start + 4]
            near = {*row[max(start - 3, 0) : start + 9]} - {*shown}
            wrong = others(answer, near if len(near) > 3 else {*row} - {*shown}, f"{name} {start}")
            yield choice("counting", name, ", ".join(shown) + ",", answer, wrong)


def sums() -> Iterator[Draft]:
    """One-digit additions, after two that are worked out."""
    for a, b in product(range(1, 10), repeat=2):
        context = f"1 + 1 = 2, 5 + 2 = 7, {a} + {b} ="
        near = {str(n) for n in range(max(a + b - 4, 1), a + b + 5)}
        if (a, b) not in ((1, 1), (5, 2)):
            yield choice("sums", "digits", context, str(a + b), others(str(a + b), near, context))


def _asked(kind: str, form: str, table: Mapping[str, Fact], pool: Iterable[str] = ()) -> Iterator[Draft]:
    """Every key of the table put into `form`, with wrong answers from `pool` or from the other keys."""
    answers = {*pool} or {fact.answer for fact in table.values()}
    for key, fact in table.items():
        context = form.format(key)
        context = context[0].upper() + context[1:]
        yield choice(kind, form, context, fact.answer, others(fact.answer, answers - fact.also, key))


def countries() -> Iterator[Draft]:
    """Capitals, languages and continents."""
    kind = "countries"
    yield from _asked(kind, "the capital of {} is", CAPITALS)
    yield from _asked(kind, "the government of {} sits in its capital,", CAPITALS)
    yield from _asked(kind, "most people in {} speak", LANGUAGES)
    yield from _asked(kind, "the main language of {} is", LANGUAGES)
    yield from _asked(kind, "{} is a country in", COUNTRIES)


def opposites() -> Iterator[Draft]:
    """The opposite of a word, among words that mean about the same as it."""
    for word, (opposite, related) in OPPOSITES.items():
        wrong = sorted(related)
        yield choice("opposites", "opposite", f"The opposite of {word} is", opposite, wrong)
        yield choice("opposites", "not but", f"If it is not {word}, it may be the opposite:", opposite, wrong)


def nature() -> Iterator[Draft]:
    """Colors of things, young animals, the sounds of animals."""
    kind = "nature"
    yield from _asked(kind, "{} is", COLORED, COLORS)
    yield from _asked(kind, "what color is {}? It is", COLORED, COLORS)
    yield from _asked(kind, "a young {} is called a", YOUNG)
    yield from _asked(kind, "the name for a baby {} is", YOUNG)
    yield from _asked(kind, "the animal that {} is the", SOUNDS)
    yield from _asked(kind, "listen! Something {}. It must be the", SOUNDS)


def daily_life() -> Iterator[Draft]:
    """Kinds of things, tools, jobs, parts of the body."""
    kind = "daily life"
    yield from _asked(kind, "the word {} names a kind of", MEMBERS)
    yield from _asked(kind, "{} is a type of", MEMBERS)
    yield from _asked(kind, "to {}, you need", TOOLS)
    yield from _asked(kind, "I want to {}. Please give me", TOOLS)
    yield from _asked(kind, "someone who {} is", JOBS)
    yield from _asked(kind, "my uncle {}. He is", JOBS)
    yield from _asked(kind, "you {} with your", ORGANS)


COMPARED: Mapping[str, tuple[str, str]] = {
    "size": ("bigger", "smaller"),
    "weight": ("heavier", "lighter"),
}


def sizes() -> Iterator[Draft]:
    """Which of two animals is bigger or heavier."""
    for (small, small_one), (large, large_one) in combinations(enumerate(SIZES), 2):
        if large - small < 2:
            continue
        for name, (more, less) in COMPARED.items():
            yield minimal_pair("sizes", name, f"Compared to the {small_one}, the {large_one} is", more, less)
            yield minimal_pair("sizes", name, f"Compared to the {large_one}, the {small_one} is", less, more)
