"""Estimates from samples against the divergence they estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdeploy.bench.evaluation import EvalSettings, run_eval
from qdeploy.bench.fidelity import monte_carlo
from qdeploy.bench.fidelity.figures import score_windows
from qdeploy.bench.fidelity.token_table import read_tokens
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.records import Estimate, MonteCarlo
from qdeploy.engines.endpoint import Endpoint
from qdeploy.errors import ComparisonError
from tests.bench.evaluation.conftest import Serve, endpoint, exact_logprobs

TOKENS = np.random.default_rng(5).integers(0, 1000, size=(6, 16)).tolist()
WINDOWS = Windows("random", "0", TOKENS)
SETTINGS = EvalSettings(windows=3, window_tokens=32, top_k=16, samples=4, tasks=(), concurrency=2)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of few tokens: the tiny server draws them one by one."""
    monkeypatch.setattr(monte_carlo, "SAMPLE_TOKENS", 12)


def both(first: Endpoint, second: Endpoint, count: int) -> tuple[Windows, MonteCarlo]:
    samples = monte_carlo.draw(first, WINDOWS, count, 4)
    baseline = score_windows(first, samples, 64, 4)
    variant = score_windows(second, samples, 64, 4, baseline)
    return samples, monte_carlo.estimate(WINDOWS, variant, baseline)


def covers(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low <= value <= estimate.high


def test_the_interval_holds_the_exact_divergence(serve: Serve, model: Any, perturbed: Any) -> None:
    """Exact: KL over the whole vocabulary at the very positions where tokens were drawn."""
    with endpoint(serve(model)) as first, endpoint(serve(perturbed)) as second:
        samples, found = both(first, second, 24)
    kl = []
    for i, ids in enumerate(samples.tokens):
        p, q = (exact_logprobs(m, ids)[samples.start(i) - 1 : -1].double() for m in (model, perturbed))
        kl.append((p.exp() * (p - q)).sum(1))
    exact = float(torch.cat(kl).mean())
    assert found.positions == sum(map(len, kl)) == 24 * 12
    assert covers(found.k3, exact) and covers(found.log_ratio, exact)
    assert found.kl_lower_bound.value <= exact
    # k3 has the smaller spread.
    k3, plain = found.k3, found.log_ratio
    assert k3.high is not None and k3.low is not None and plain.high is not None and plain.low is not None
    assert k3.high - k3.low < plain.high - plain.low


def test_a_model_does_not_diverge_from_itself(serve: Serve, model: Any) -> None:
    with endpoint(serve(model)) as first, endpoint(serve(model)) as second:
        _, found = both(first, second, 4)
    assert found.k3.value == pytest.approx(0, abs=1e-9)
    assert found.log_ratio.value == pytest.approx(0, abs=1e-6)


def test_samples_continue_the_windows_in_turn(serve: Serve, model: Any) -> None:
    with endpoint(serve(model)) as client:
        samples = monte_carlo.draw(client, WINDOWS, 8, 4)
        again = monte_carlo.draw(client, WINDOWS, 8, 4)
    assert [ids[:8] for ids in samples.tokens] == [TOKENS[i % 6][:8] for i in range(8)]
    assert [len(ids) - start for ids, start in zip(samples.tokens, samples.starts, strict=True)] == [12] * 8
    # Two samples of one window differ; the same call draws the same.
    assert samples.tokens[0] != samples.tokens[6]
    assert again == samples


def test_the_variant_scores_what_the_baseline_drew(
    tmp_path: Path, serve: Serve, model: Any, perturbed: Any
) -> None:
    with endpoint(serve(model)) as first, endpoint(serve(perturbed)) as second:
        record = run_eval(second, SETTINGS, tmp_path / "run", first)
    assert record.fidelity is not None and record.fidelity.monte_carlo is not None
    found = record.fidelity.monte_carlo
    assert (found.samples, found.prompt_tokens, found.positions, found.method) == (4, 16, 48, "two-pass")
    ours, theirs = (read_tokens(tmp_path / name, monte_carlo.SAMPLES) for name in ("run", "run-baseline"))
    assert np.array_equal(ours.token, theirs.token)
    assert found.log_ratio.value == pytest.approx(float((theirs.logprob - ours.logprob).mean()), rel=1e-4)


def test_a_baseline_without_samples_is_refused(
    tmp_path: Path, serve: Serve, model: Any, perturbed: Any
) -> None:
    with endpoint(serve(model)) as first:
        run_eval(first, replace(SETTINGS, samples=0), tmp_path / "baseline")
    with (
        endpoint(serve(perturbed)) as second,
        pytest.raises(ComparisonError, match="--samples 0 there, 4 here"),
    ):
        run_eval(second, SETTINGS, tmp_path / "run", tmp_path / "baseline")
