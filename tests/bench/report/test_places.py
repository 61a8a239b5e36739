"""Places of disagreement, and text that would be more than text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.bench.records import Candidate, Disagreement
from qdeploy.bench.report.places import at_most, expectations, harmless, visible


def place(token: str, baseline: dict[str, float], variant: dict[str, float]) -> Disagreement:
    return Disagreement(
        window=0,
        position=1,
        kl=1.0,
        context="",
        token=token,
        p_baseline=0.01,
        p_variant=0.02,
        baseline=[Candidate(token=t, p=p) for t, p in baseline.items()],
        variant=[Candidate(token=t, p=p) for t, p in variant.items()],
    )


def test_tokens_of_both_models_and_of_the_text() -> None:
    found = expectations(place("x", {"a": 0.6, "b": 0.3}, {"b": 0.5, "c": 0.4}))
    assert [(e.token, e.baseline, e.variant) for e in found] == [
        ("a", 0.6, None),
        ("b", 0.3, 0.5),
        ("c", None, 0.4),
        ("x", 0.01, 0.02),
    ]
    assert [e.token for e in found if e.is_next] == ["x"]


def test_the_texts_own_token_is_known_in_both() -> None:
    (found,) = [e for e in expectations(place("a", {"a": 0.01}, {"b": 0.9})) if e.is_next]
    assert (found.baseline, found.variant) == (0.01, 0.02)


def test_pieces_that_look_alike_stay_apart() -> None:
    odd = place("x", {}, {})
    odd.baseline = [Candidate(token="\ufffd", p=0.5), Candidate(token="\ufffd", p=0.25)]
    assert [e.baseline for e in expectations(odd)][:2] == [0.5, 0.25]


def test_what_is_not_among_the_likeliest_is_less_likely_than_all_of_them() -> None:
    assert at_most([Candidate(token="a", p=0.6), Candidate(token="b", p=0.3)]) == 0.3
    assert at_most([]) == 1


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"),
        ("\n\n", "⏎⏎"),
        ("  ", "␣␣"),
        ("a b", "a b"),
        ("\u202e", "\\u{202e}"),
        ("", ""),
        ("é", "é"),
    ],
)
def test_blanks_are_seen(token: str, shown: str) -> None:
    assert visible(token) == shown


@given(st.text())
def test_a_token_is_one_line_that_can_be_seen(text: str) -> None:
    assert all(c.isprintable() for c in visible(text))


@given(st.text())
def test_no_character_of_a_context_reorders_or_controls(text: str) -> None:
    shown = harmless(text)
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not any(c in shown for c in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068")
    assert [c for c in text if c.isalnum()] == [
        c for c in shown if c in text and c.isalnum()
    ] or "\\u{" in shown
