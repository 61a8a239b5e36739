"""The form of a generated question, and the words that templates share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before its choices are shuffled: (context, continuation) pairs, the right one first."""

    kind: str
    template: str
    requests: tuple[tuple[str, str], ...]


def minimal_pair(kind: str, template: str, context: str, good: str, bad: str, rest: str = ".") -> Draft:
    """Two continuations of one context that differ in one word."""
    return Draft(kind, template, ((context, f" {good}{rest}"), (context, f" {bad}{rest}")))


def licensed(kind: str, template: str, good: str, bad: str, rest: str) -> Draft:
    """One continuation after two contexts, of which only the first licenses it."""
    return Draft(kind, template, ((good, f" {rest}"), (bad, f" {rest}")))


def choice(kind: str, template: str, context: str, answer: str, wrong: Iterable[str]) -> Draft:
    """A question with several answers."""
    return Draft(kind, template, tuple((context, f" {text}.") for text in (answer, *wrong)))


def others(answer: str, pool: Iterable[str], key: str, count: int = 3) -> list[str]:
    """`count` members of `pool` that are not the answer, drawn by `key` alone."""
    return random.Random(key).sample(sorted({*pool} - {answer}), count)


class Noun(NamedTuple):
    """A countable noun."""

    singular: str
    plural: str


def words(text: str) -> tuple[str, ...]:
    """A list of words, written as text."""
    return tuple(text.split())


def regular(text: str) -> tuple[Noun, ...]:
    """Nouns whose plural is made with -s."""
    return tuple(Noun(word, f"{word}s") for word in words(text))


PEOPLE = regular(
    "teacher doctor farmer student lawyer driver singer writer painter neighbor soldier waiter pilot dancer "
    "manager customer visitor worker player actor"
)
ANIMALS = regular("dog cat horse bird cow rabbit goat duck pig bear")
THINGS = regular("book chair table letter picture lamp bottle window basket key hat shirt ticket blanket")


def crossed(nouns: Sequence[Noun]) -> Iterator[tuple[str, str, bool]]:
    """(subject, another noun of the other number, whether the subject is plural) for all pairs."""
    for noun in nouns:
        for other in nouns:
            if noun != other:
                yield noun.singular, other.plural, False
                yield noun.plural, other.singular, True
