from __future__ import annotations

import hashlib
from collections import Counter

from qdeploy.bench.smoke import smoke_suite
from qdeploy.bench.smoke.suite import GENERATORS

ITEMS = smoke_suite().items


def test_the_suite_is_the_same_everywhere() -> None:
    """Changing a question changes this hash: raise suite.VERSION with it."""
    text = "\n".join(f"{item.doc_id}\t{item.requests}\t{item.gold}" for item in ITEMS)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3c042ea1c69f75d8"


def test_the_suite_has_power() -> None:
    assert len(ITEMS) >= 600
    assert len({item.cluster for item in ITEMS}) >= 30


def test_items_are_distinct_and_named_apart() -> None:
    assert len({item.doc_id for item in ITEMS}) == len(ITEMS)
    assert len({frozenset(item.requests) for item in ITEMS}) == len(ITEMS)


def test_choices_of_an_item_differ() -> None:
    for item in ITEMS:
        assert len(set(item.requests)) == len(item.requests) in (2, 4), item


def test_the_right_answer_is_at_no_favorite_place() -> None:
    pairs = Counter(item.gold for item in ITEMS if len(item.requests) == 2)
    fours = Counter(item.gold for item in ITEMS if len(item.requests) == 4)
    assert min(pairs.values()) > 0.45 * sum(pairs.values())
    assert min(fours.values()) > 0.20 * sum(fours.values())


def test_every_request_is_a_plain_sentence() -> None:
    for item in ITEMS:
        for context, continuation in item.requests:
            assert context == context.strip() and context
            assert continuation.startswith(" ") and continuation.endswith((".", "?"))
            assert "  " not in context + continuation


def test_no_right_answer_of_one_item_is_wrong_in_another() -> None:
    """Of one context, no answer is right in one item and wrong in another."""
    right = {item.requests[item.gold] for item in ITEMS}
    wrong = {request for item in ITEMS for i, request in enumerate(item.requests) if i != item.gold}
    assert not right & wrong


def test_the_first_items_are_a_sample_of_all_kinds() -> None:
    kinds = {item.kind for item in ITEMS}
    assert {item.kind for item in ITEMS[:91]} == kinds
    assert len({item.kind for item in ITEMS[:30]}) >= 10
    assert len(kinds) == len(GENERATORS)
