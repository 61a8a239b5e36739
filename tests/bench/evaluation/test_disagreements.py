from __future__ import annotations

import numpy as np
import pytest

from qdeploy.bench.fidelity.disagreements import disagreements
from qdeploy.bench.fidelity.windows import Windows
from tests.bench.evaluation.test_divergence import exact_kl, near, pair, random_logprobs
from tests.conftest import byte_tokenizer


def test_the_worst_places_come_first_with_their_context() -> None:
    """Two windows of letters, of which the second is scored from its third token on."""
    text = ["abcdefgh", "ABCDEFGH"]
    tokenizer = byte_tokenizer()
    ids = [tokenizer(part, add_special_tokens=False).input_ids for part in text]
    windows = Windows("x", "0", ids, starts=[1, 2])
    p = random_logprobs(1, positions=13, vocabulary=128)
    q = near(p, 1.0, 2)
    baseline, variant = pair(p, q, windows.scored.astype(np.int64), 20)
    kl = exact_kl(p, q)
    found = disagreements(windows, baseline, variant, kl, tokenizer)
    assert [place.kl for place in found] == pytest.approx(sorted(kl, reverse=True)[:10])
    for place in found:
        assert place.context + place.token == text[place.window][: place.position + 1]
        row = place.position - 1 if place.window == 0 else 7 + place.position - 2
        assert place.p_baseline == pytest.approx(np.exp(p[row, ids[place.window][place.position]]), rel=1e-4)
        likeliest = sorted(np.exp(q[row]), reverse=True)[:5]
        assert [c.p for c in place.variant] == pytest.approx(likeliest, rel=1e-4)
