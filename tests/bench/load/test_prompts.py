from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from qdeploy.bench.load.workload.dialect import Dialect
from qdeploy.bench.load.workload.prompts import MEASURED, WARMUP, Vocabulary, generator, vocabulary
from qdeploy.bench.load.workload.target import Target

WORDS = Vocabulary(ids=tuple(range(100, 400)), prefix=(1,))


def prompts(seed: int, salt: str, stream: int, token_ids: bool = True) -> set[str]:
    target = Target("http://x/v1", "m", None, Dialect(token_ids=token_ids), WORDS)
    payloads = target.payloads(50, 64, 8, generator(seed, salt, stream))
    return {str(json.loads(p)["prompt"]) for p in payloads}


@pytest.mark.parametrize("token_ids", [True, False])
def test_runs_share_no_prompt(token_ids: bool) -> None:
    sets = [
        prompts(0, "00aa", MEASURED, token_ids),
        prompts(0, "00ab", MEASURED, token_ids),
        prompts(1, "00aa", MEASURED, token_ids),
        prompts(0, "00aa", WARMUP, token_ids),
    ]
    assert all(len(found) == 50 for found in sets)
    assert all(a.isdisjoint(b) for a, b in combinations(sets, 2))
    assert prompts(0, "00aa", MEASURED, token_ids) == sets[0]


def test_id_prompts_are_exactly_as_long_as_asked_and_share_no_cache_block() -> None:
    target = Target("http://x/v1", "m", None, Dialect(), WORDS)
    found = target.material.draw([128] * 100, generator(0, "7", MEASURED))
    assert {len(p) for p in found} == {128}
    assert all(p[0] == 1 for p in found)
    assert len({tuple(p[:16]) for p in found}) == 100


def test_vocabulary_separates_the_special_prefix_from_the_words() -> None:
    assert vocabulary([1, 9, 5, 7, 2], [9, 5, 7]) == Vocabulary((5, 7, 9), (1,))
    assert vocabulary([9, 5, 5], [9, 5, 5]) == Vocabulary((5, 9), ())


def test_text_prompts_are_scaled_by_the_calibration() -> None:
    target = Target("http://x/v1", "m", None, Dialect(token_ids=False), None, words_per_token=0.5)
    [payload] = target.payloads(1, 100, 8, np.random.default_rng(0))
    assert len(json.loads(payload)["prompt"].split()) == 50
