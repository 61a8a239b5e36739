from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdeploy.bench.fidelity import divergence, score_windows, summarize
from qdeploy.bench.text import Windows, load_windows
from qdeploy.bench.token_table import TokenTable, read_tokens, write_tokens
from qdeploy.bench.tokenizer import encoder_of
from qdeploy.errors import ComparisonError, UsageError
from tests.bench.evaluation.conftest import Serve, endpoint, exact_logprobs
from tests.conftest import byte_tokenizer

TOKENS = np.random.default_rng(0).integers(0, 1000, size=(3, 24)).tolist()
WINDOWS = Windows("random", "0", TOKENS)


def table(logprobs: np.ndarray, tokens: np.ndarray, k: int) -> TokenTable:
    """The top k of full distributions float64 [P, V]."""
    top = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    return TokenTable(
        window=np.zeros(len(tokens), np.int32),
        token=tokens.astype(np.int32),
        logprob=np.take_along_axis(logprobs, tokens[:, None], 1)[:, 0].astype(np.float32),
        top_ids=top,
        top_logprobs=np.take_along_axis(logprobs, top, 1).astype(np.float32),
    )


def random_logprobs(seed: int, positions: int = 40, vocabulary: int = 50, spread: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=spread, size=(positions, vocabulary))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def exact_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(1)


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("distance", [0.01, 0.3, 3.0])
def test_bound_is_never_above_the_exact_divergence(k: int, distance: float) -> None:
    for seed in range(20):
        p = random_logprobs(seed)
        q = p + distance * np.random.default_rng(seed + 100).normal(size=p.shape)
        q -= np.log(np.exp(q).sum(1, keepdims=True))
        tokens = np.random.default_rng(seed).integers(0, 50, size=len(p))
        bound = divergence(table(p, tokens, k), table(q, tokens, k)).kl
        assert (bound >= 0).all()
        assert (bound <= exact_kl(p, q) + 1e-5).all()


def test_bound_is_exact_where_all_tokens_are_known() -> None:
    p, q, tokens = random_logprobs(1), random_logprobs(2), np.zeros(40, np.int64)
    found = divergence(table(p, tokens, 50), table(q, tokens, 50))
    assert found.kl == pytest.approx(exact_kl(p, q), abs=1e-4)
    assert found.tail == pytest.approx(0, abs=1e-5)


def test_bound_is_the_divergence_of_the_coarser_distribution() -> None:
    """Two of five tokens shared by both top sets, and the token of the text: three atoms and a lump."""
    p, q = np.log([[0.4, 0.3, 0.15, 0.1, 0.05]]), np.log([[0.3, 0.4, 0.05, 0.15, 0.1]])
    found = divergence(table(p, np.array([4]), 2), table(q, np.array([4]), 2))
    a, b = np.array([0.4, 0.3, 0.05, 0.25]), np.array([0.3, 0.4, 0.1, 0.2])
    assert found.kl == pytest.approx([(a * np.log(a / b)).sum()], abs=1e-6)
    assert found.tail == pytest.approx([0.25], abs=1e-6)


def test_identical_models_do_not_diverge() -> None:
    p, tokens = random_logprobs(3), np.arange(40)
    assert divergence(table(p, tokens, 8), table(p, tokens, 8)).kl == pytest.approx(0, abs=1e-6)


def test_more_tokens_tighten_the_bound() -> None:
    p, tokens = random_logprobs(4), np.arange(40)
    q = p + 0.2 * np.random.default_rng(5).normal(size=p.shape)
    q -= np.log(np.exp(q).sum(1, keepdims=True))
    bounds = [divergence(table(p, tokens, k), table(q, tokens, k)).kl.mean() for k in (2, 10, 30, 50)]
    assert bounds == sorted(bounds)


def test_served_figures_are_those_of_the_models(serve: Serve, model: Any, perturbed: Any) -> None:
    with endpoint(serve(model)) as first, endpoint(serve(perturbed)) as second:
        baseline = score_windows(first, WINDOWS, top_k=64, concurrency=2)
        variant = score_windows(second, WINDOWS, top_k=64, concurrency=2)
    fidelity = summarize(WINDOWS, variant, baseline)
    p = torch.cat([exact_logprobs(model, ids)[:-1] for ids in TOKENS])
    q = torch.cat([exact_logprobs(perturbed, ids)[:-1] for ids in TOKENS])
    token = torch.tensor([t for ids in TOKENS for t in ids[1:]])[:, None]
    nll = -q.gather(1, token).double().mean()
    assert fidelity.perplexity.value == pytest.approx(float(nll.exp()), rel=1e-5)
    assert fidelity.baseline_perplexity is not None and fidelity.perplexity_ratio is not None
    ratio = (p.gather(1, token) - q.gather(1, token)).double().mean().exp()
    assert fidelity.perplexity_ratio.value == pytest.approx(float(ratio), rel=1e-5)
    assert fidelity.same_top_token is not None
    same = (p.argmax(1) == q.argmax(1)).float().mean()
    assert fidelity.same_top_token.value == pytest.approx(float(same))
    assert fidelity.kl_lower_bound is not None and fidelity.tail_mass is not None
    exact = float((p.exp() * (p - q)).sum(1).mean())
    assert 0 < fidelity.kl_lower_bound.value <= exact
    assert 0 < fidelity.tail_mass < 1
    assert np.mean(fidelity.per_window_kl) == pytest.approx(fidelity.kl_lower_bound.value)
    assert (fidelity.positions, fidelity.method) == (3 * 23, "intersection")


def test_token_table_survives_the_file(tmp_path: Path, serve: Serve, model: Any) -> None:
    with endpoint(serve(model)) as client:
        scored = score_windows(client, WINDOWS, top_k=8, concurrency=2)
    write_tokens(tmp_path / "tokens.parquet", scored)
    again = read_tokens(tmp_path)
    for name in ("window", "token", "logprob", "top_ids", "top_logprobs"):
        assert np.array_equal(getattr(again, name), getattr(scored, name))


def test_missing_token_table_is_a_comparison_error(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"tokens\.parquet"):
        read_tokens(tmp_path)


def test_other_tokens_are_not_compared() -> None:
    p, tokens = random_logprobs(1), np.arange(40)
    windows = Windows("x", "0", [list(range(41))])
    with pytest.raises(ComparisonError, match="other tokens"):
        summarize(windows, table(p, tokens, 4), table(p, tokens + 1, 4))


def test_windows_do_not_overlap_and_drop_the_tail(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")
    encoder = encoder_of(byte_tokenizer())
    windows = load_windows(str(path), encoder, 3, 3)
    assert [encoder.tokenizer.decode(w) for w in windows.tokens] == ["abc", "def", "ghi"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot be read"),
        ("rows.jsonl", b"{}", "only plain text"),
        ("latin.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("short.txt", b"abcdefgh", "--windows 2"),
        ("tiny.txt", b"ab", "--window-tokens 2 --windows 1"),
    ],
)
def test_unusable_text_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_windows(str(tmp_path / name), encoder_of(byte_tokenizer()), 3, 4)
