"""All templates, sampled into one suite that is the same on every machine."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache

from qdeploy.bench.accuracy.items import Item, Task
from qdeploy.bench.smoke import agreement, facts, verbs
from qdeploy.bench.smoke.grammar import Draft

VERSION = 1
"""Raised whenever a question changes: runs of different versions cannot be compared."""

PER_TEMPLATE = 24
SOURCE = "qdeploy smoke suite: generated, not a public benchmark"
GENERATORS: tuple[Callable[[], Iterator[Draft]], ...] = (
    agreement.subject_verb,
    agreement.attractors,
    agreement.determiners,
    agreement.articles,
    agreement.reflexives,
    agreement.number_words,
    verbs.negation,
    verbs.verb_forms,
    verbs.comparison,
    verbs.pronoun_case,
    verbs.prepositions,
    facts.calendar,
    facts.counting,
    facts.sums,
    facts.countries,
    facts.opposites,
    facts.nature,
    facts.daily_life,
    facts.sizes,
)


@cache
def smoke_suite() -> Task:
    """The suite. Its first items are a fair sample of it: templates take turns, in no order of kinds."""
    by_template: dict[str, list[Draft]] = defaultdict(list)
    for generator in GENERATORS:
        for draft in dict.fromkeys(generator()):
            by_template[f"{draft.kind}/{draft.template}"].append(draft)
    turns = [
        (turn, cluster, draft)
        for cluster, drafts in by_template.items()
        for turn, draft in enumerate(_drawn(cluster, drafts))
    ]
    turns.sort(key=lambda entry: (entry[0], random.Random(entry[1]).random()))
    items = [_item(f"{cluster}/{turn}", cluster, draft) for turn, cluster, draft in turns]
    return Task("smoke", "smoke suite", f"{SOURCE}, v{VERSION}", items)


def _drawn(cluster: str, drafts: list[Draft]) -> list[Draft]:
    return random.Random(cluster).sample(drafts, min(PER_TEMPLATE, len(drafts)))


def _item(doc_id: str, cluster: str, draft: Draft) -> Item:
    """The draft with its right answer at a random place, so that ties favor neither answer."""
    order = random.Random(doc_id).sample(range(len(draft.requests)), len(draft.requests))
    requests = tuple(draft.requests[i] for i in order)
    lengths = tuple(len(continuation) - 1 for _, continuation in requests)
    return Item(doc_id, cluster, requests, order.index(0), lengths, draft.kind)
