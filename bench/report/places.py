"""The places where two models differ most, as the page shows them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qdeploy.bench.records import Candidate, Disagreement

SYMBOLS = {"\n": "⏎", "\t": "⇥", " ": "␣"}
REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of characters that change the order in which others are shown."""

Key = tuple[str, int]
"""A token's text, and which of those with that text: pieces of one character all look alike."""


@dataclass(frozen=True)
class Expectation:
    """A token that a model found likely, and its probability in each; None if not among the likeliest."""

    token: str
    baseline: float | None
    variant: float | None
    is_next: bool


def expectations(place: Disagreement) -> list[Expectation]:
    """The likeliest tokens of both models, in the baseline's order first, and the one that the text has."""
    ours, theirs = dict(_keyed(place.baseline)), dict(_keyed(place.variant))
    own: Key = (place.token, 0)
    known = {own: (place.p_baseline, place.p_variant)}
    return [
        Expectation(key[0], *known.get(key, (ours.get(key), theirs.get(key))), is_next=key == own)
        for key in dict.fromkeys([*ours, *theirs, own])
    ]


def at_most(candidates: Iterable[Candidate]) -> float:
    """What the probability of a token that is not among the candidates cannot exceed."""
    return min((candidate.p for candidate in candidates), default=1.0)


def visible(token: str) -> str:
    """A token with its blanks and all that cannot be seen as signs."""
    stripped = token.strip(" ")
    if not stripped:
        return SYMBOLS[" "] * len(token)
    head, _, tail = token.partition(stripped)
    inner = "".join(c if c.isprintable() else SYMBOLS.get(c) or _escaped(c) for c in stripped)
    return SYMBOLS[" "] * len(head) + inner + SYMBOLS[" "] * len(tail)


def harmless(text: str) -> str:
    """Text with its lines and blanks as they are, and control characters as signs."""
    return "".join(_escaped(c) if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    if character in SYMBOLS:
        return False
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in REORDERING


def _escaped(character: str) -> str:
    return f"\\u{{{ord(character):x}}}"


def _keyed(candidates: Iterable[Candidate]) -> Iterator[tuple[Key, float]]:
    seen: Counter[str] = Counter()
    for candidate in candidates:
        yield (candidate.token, seen[candidate.token]), candidate.p
        seen[candidate.token] += 1
