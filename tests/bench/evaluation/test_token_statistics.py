"""llama.cpp's table against its definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qdeploy.bench.fidelity.token_statistics import token_statistics
from qdeploy.bench.fidelity.token_table import TokenTable

Array = np.ndarray[Any, np.dtype[Any]]


def table(logprob: Array, windows: int) -> TokenTable:
    rows = len(logprob)
    return TokenTable(
        window=np.repeat(np.arange(windows), rows // windows).astype(np.int32),
        token=np.zeros(rows, np.int32),
        logprob=logprob.astype(np.float32),
        top_ids=np.zeros((rows, 1), np.int32),
        top_logprobs=logprob.astype(np.float32)[:, None],
    )


def drawn(windows: int, each: int, shared: float) -> tuple[TokenTable, TokenTable, Array]:
    """Baseline, variant and KL; `shared` is how much the tokens of one window have in common."""
    rng = np.random.default_rng(0)
    base = -rng.exponential(2.0, windows * each)
    step = 0.1 * rng.normal(size=windows * each) + shared * np.repeat(rng.normal(size=windows), each)
    return table(base, windows), table(np.minimum(base - 0.05 + step, 0), windows), np.abs(step)


def test_figures_are_those_of_their_definitions() -> None:
    baseline, variant, kl = drawn(10, 50, 0.02)
    found = token_statistics(baseline, variant, kl, variant.clusters)
    b, v = (-t.logprob.astype(np.float64) for t in (baseline, variant))
    dp = np.exp(-v) - np.exp(-b)
    assert found.ln_perplexity_ratio.value == pytest.approx(v.mean() - b.mean())
    assert found.ln_perplexity_correlation == pytest.approx(np.corrcoef(v, b)[0, 1])
    assert found.perplexity_difference.value == pytest.approx(math.exp(v.mean()) - math.exp(b.mean()))
    assert found.dp_mean.value == pytest.approx(dp.mean())
    assert found.dp_rms.value == pytest.approx(math.sqrt((dp**2).mean()))
    assert found.kl_percentiles["99%"] == pytest.approx(np.percentile(kl, 99))
    assert (found.kl_percentiles["maximum"], found.kl_percentiles["minimum"]) == (kl.max(), kl.min())
    assert found.dp_percentiles["50%"] == pytest.approx(np.median(dp))


def test_with_independent_tokens_the_error_is_llama_cpps() -> None:
    """√(σ²_v + σ²_b − 2·cov) of token means; a window a token, so that clusters are tokens."""
    baseline, variant, kl = drawn(400, 1, 0.0)
    found = token_statistics(baseline, variant, kl, variant.clusters)
    b, v = (-t.logprob.astype(np.float64) for t in (baseline, variant))
    covariance = np.cov(v, b) / len(v)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    ratio = found.ln_perplexity_ratio
    assert ratio.high is not None
    assert (ratio.high - ratio.value) / 1.966 == pytest.approx(error, rel=1e-2)  # t at 399 degrees
    assert found.design_effect == pytest.approx(1.0)
    # The difference by the same covariance, each weighted with its perplexity.
    high, low = math.exp(v.mean()), math.exp(b.mean())
    spread = high**2 * covariance[0, 0] + low**2 * covariance[1, 1] - 2 * high * low * covariance[0, 1]
    difference = found.perplexity_difference
    assert difference.high is not None
    assert (difference.high - difference.value) / 1.966 == pytest.approx(math.sqrt(spread), rel=1e-2)


def test_tokens_that_move_together_widen_the_interval() -> None:
    baseline, variant, kl = drawn(20, 50, 0.3)
    found = token_statistics(baseline, variant, kl, variant.clusters)
    assert found.design_effect is not None and found.design_effect > 10


def test_what_a_model_rules_out_is_no_overflow() -> None:
    """vLLM writes −9999 for −∞."""
    impossible, fine = table(np.full(10, -9999.0), 2), table(np.linspace(-2, -1, 10), 2)
    found = token_statistics(fine, impossible, np.full(10, 700.0), fine.clusters)
    assert math.isfinite(found.perplexity_difference.value)


def test_one_window_has_no_interval() -> None:
    baseline, variant, kl = drawn(1, 50, 0.0)
    found = token_statistics(baseline, variant, kl, variant.clusters)
    assert found.ln_perplexity_ratio.low is None and found.design_effect is None


def test_a_constant_has_no_correlation() -> None:
    flat = table(np.full(10, -1.0), 2)
    found = token_statistics(flat, flat, np.zeros(10), flat.clusters)
    assert found.ln_perplexity_correlation is None
    assert found.perplexity_difference.value == 0
