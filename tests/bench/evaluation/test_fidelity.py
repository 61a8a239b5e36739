from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdeploy.bench.fidelity.figures import score_windows, summarize
from qdeploy.bench.fidelity.text import load_windows
from qdeploy.bench.fidelity.token_table import read_tokens, write_tokens
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.tokenizer import encoder_of
from qdeploy.errors import ComparisonError, UsageError
from tests.bench.evaluation.conftest import Serve, endpoint, exact_logprobs
from tests.bench.evaluation.test_divergence import random_logprobs, table
from tests.conftest import byte_tokenizer

TOKENS = np.random.default_rng(0).integers(0, 1000, size=(3, 24)).tolist()
WINDOWS = Windows("random", "0", TOKENS)


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
        summarize(windows, table(p, tokens + 1, 4), table(p, tokens, 4))


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
