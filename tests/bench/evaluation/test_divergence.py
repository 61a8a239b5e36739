"""Both bounds against the divergence over the whole vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qdeploy.bench.fidelity.divergence import intersection, two_pass
from qdeploy.bench.fidelity.figures import best_divergence, score_windows, summarize
from qdeploy.bench.fidelity.token_table import TokenTable, read_tokens, write_tokens
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.errors import ComparisonError
from tests.bench.evaluation.conftest import Serve, endpoint, exact_logprobs

TOKENS = np.random.default_rng(0).integers(0, 1000, size=(3, 24)).tolist()
WINDOWS = Windows("random", "0", TOKENS, starts=[1, 7, 12])
Array = np.ndarray[Any, np.dtype[Any]]


def table(logprobs: Array, tokens: Array, k: int) -> TokenTable:
    """The top k of full distributions float64 [P, V]."""
    top = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    return TokenTable(
        window=np.zeros(len(tokens), np.int32),
        token=tokens.astype(np.int32),
        logprob=np.take_along_axis(logprobs, tokens[:, None], 1)[:, 0].astype(np.float32),
        top_ids=top,
        top_logprobs=np.take_along_axis(logprobs, top, 1).astype(np.float32),
    )


def pair(p: Array, q: Array, tokens: Array, k: int) -> tuple[TokenTable, TokenTable]:
    """Baseline and variant, which scored the baseline's top k too."""
    baseline, variant = table(p, tokens, k), table(q, tokens, k)
    chosen = np.take_along_axis(q, baseline.top_ids.astype(np.int64), 1).astype(np.float32)
    return baseline, replace(variant, chosen_ids=baseline.top_ids, chosen=chosen)


def random_logprobs(seed: int, positions: int = 40, vocabulary: int = 50, spread: float = 2.0) -> Array:
    logits = np.random.default_rng(seed).normal(scale=spread, size=(positions, vocabulary))
    return normalized(logits)


def normalized(logits: Array) -> Array:
    shifted: Array = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return shifted


def near(p: Array, distance: float, seed: int) -> Array:
    return normalized(p + distance * np.random.default_rng(seed).normal(size=p.shape))


def exact_kl(p: Array, q: Array) -> Array:
    kl: Array = (np.exp(p) * (p - q)).sum(1)
    return kl


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("distance", [0.01, 0.3, 3.0])
def test_bounds_are_never_above_the_exact_divergence(k: int, distance: float) -> None:
    for seed in range(20):
        p = random_logprobs(seed)
        q = near(p, distance, seed + 100)
        tables = pair(p, q, np.random.default_rng(seed).integers(0, 50, size=len(p)), k)
        loose, tight = intersection(*tables).kl, two_pass(*tables).kl
        assert (loose >= 0).all()
        # The intersection's single tokens are a part of the other's.
        assert (loose <= tight + 1e-5).all()
        assert (tight <= exact_kl(p, q) + 1e-5).all()


@pytest.mark.parametrize("k", [2, 8, 30])
def test_what_the_lump_hides_is_its_mass_times_the_divergence_inside(k: int) -> None:
    """Chain rule: KL = bound + p_R · KL(P_R ‖ Q_R)."""
    p = random_logprobs(7)
    q = near(p, 0.5, 8)
    tokens = np.argsort(-p, axis=1)[:, 0]  # in the top k, so that the lump is what is outside it
    found = two_pass(*pair(p, q, tokens, k))
    rest = np.argsort(-p, axis=1)[:, k:]
    inside = [np.take_along_axis(np.exp(x), rest, 1) for x in (p, q)]
    masses = [x.sum(1) for x in inside]
    a, b = (x / m[:, None] for x, m in zip(inside, masses, strict=True))
    hidden = masses[0] * (a * np.log(a / b)).sum(1)
    assert found.tail == pytest.approx(masses[0], abs=1e-5)
    assert found.kl + hidden == pytest.approx(exact_kl(p, q), abs=1e-5)


@pytest.mark.parametrize("bound", [two_pass, intersection])
def test_bound_is_exact_where_all_tokens_are_known(bound: Any) -> None:
    p, q = random_logprobs(1), random_logprobs(2)
    found = bound(*pair(p, q, np.zeros(40, np.int64), 50))
    assert found.kl == pytest.approx(exact_kl(p, q), abs=1e-4)
    assert found.tail == pytest.approx(0, abs=1e-5)


def test_intersection_is_the_divergence_of_the_coarser_distribution() -> None:
    """Two of five tokens shared by both top sets, and the token of the text: three atoms and a lump."""
    p, q = np.log([[0.4, 0.3, 0.15, 0.1, 0.05]]), np.log([[0.3, 0.4, 0.05, 0.15, 0.1]])
    found = intersection(*pair(p, q, np.array([4]), 2))
    a, b = np.array([0.4, 0.3, 0.05, 0.25]), np.array([0.3, 0.4, 0.1, 0.2])
    assert found.kl == pytest.approx([(a * np.log(a / b)).sum()], abs=1e-6)
    assert found.tail == pytest.approx([0.25], abs=1e-6)


def test_two_pass_sees_what_the_variant_no_longer_likes() -> None:
    """Token 0 falls from the variant's top 2: the intersection lumps it, the second pass does not."""
    p, q = np.log([[0.5, 0.3, 0.1, 0.06, 0.04]]), np.log([[0.02, 0.4, 0.5, 0.04, 0.04]])
    tables = pair(p, q, np.array([1]), 2)
    a, b = np.array([0.5, 0.3, 0.2]), np.array([0.02, 0.4, 0.58])
    assert two_pass(*tables).kl == pytest.approx([(a * np.log(a / b)).sum()], abs=1e-5)
    assert intersection(*tables).kl[0] < 0.1 < 1 < two_pass(*tables).kl[0]


def test_a_token_that_the_variant_rules_out_keeps_the_bound_finite() -> None:
    p, q = np.log([[0.5, 0.5]]), np.log([[1.0, 1e-300]])
    baseline, variant = pair(p, q, np.array([0]), 2)
    chosen = np.array([[0.0, -np.inf]], np.float32)
    found = two_pass(baseline, replace(variant, chosen_ids=baseline.top_ids, chosen=chosen))
    assert np.isfinite(found.kl).all() and found.kl[0] > 100


def test_identical_models_do_not_diverge() -> None:
    p = random_logprobs(3)
    tables = pair(p, p, np.arange(40), 8)
    assert intersection(*tables).kl == pytest.approx(0, abs=1e-6)
    assert two_pass(*tables).kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bound", [two_pass, intersection])
def test_more_tokens_tighten_the_bound(bound: Any) -> None:
    p = random_logprobs(4)
    q = near(p, 0.2, 5)
    bounds = [bound(*pair(p, q, np.arange(40), k)).kl.mean() for k in (2, 10, 30, 50)]
    assert bounds == sorted(bounds)


def test_another_baseline_than_the_one_that_chose_the_ids_gets_the_bound_of_both() -> None:
    p = random_logprobs(1)
    baseline, variant = pair(p, near(p, 0.3, 2), np.arange(40), 8)
    other = replace(baseline, top_ids=np.roll(baseline.top_ids, 1, axis=1))
    assert best_divergence(baseline, variant)[0] == "two-pass"
    assert best_divergence(other, variant)[0] == "intersection"
    with pytest.raises(ComparisonError, match="another baseline"):
        two_pass(other, variant)


def test_ids_that_were_not_scored_are_no_bound() -> None:
    p = random_logprobs(1)
    with pytest.raises(ComparisonError, match="that a baseline chose"):
        two_pass(table(p, np.arange(40), 8), table(p, np.arange(40), 8))


def test_the_served_bound_is_that_of_the_models(
    tmp_path: Any, serve: Serve, model: Any, perturbed: Any
) -> None:
    """Over HTTP, in windows of which only a part is scored, and from the files."""
    with endpoint(serve(model)) as first, endpoint(serve(perturbed)) as second:
        baseline = score_windows(first, WINDOWS, top_k=64, concurrency=2)
        variant = score_windows(second, WINDOWS, top_k=64, concurrency=2, baseline=baseline)
    write_tokens(tmp_path / "tokens.parquet", variant)
    fidelity = summarize(WINDOWS, read_tokens(tmp_path), baseline)
    parts = [(ids, start) for ids, start in zip(TOKENS, WINDOWS.starts, strict=True)]
    p, q = (
        torch.cat([exact_logprobs(m, ids)[start - 1 : -1] for ids, start in parts]).double().numpy()
        for m in (model, perturbed)
    )
    tokens = np.array([token for ids, start in parts for token in ids[start:]])
    expected = two_pass(*pair(p, q, tokens, 64)).kl.mean()
    assert fidelity.method == "two-pass" and fidelity.positions == len(tokens)
    assert fidelity.kl_lower_bound is not None and fidelity.kl_intersection is not None
    assert fidelity.kl_lower_bound.value == pytest.approx(expected, rel=1e-3)
    assert fidelity.kl_intersection.value < fidelity.kl_lower_bound.value < exact_kl(p, q).mean()
