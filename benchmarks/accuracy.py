"""Scoring over an endpoint: qdeploy beside lm-eval's `local-completions`, on the same served model.

Questions are those of the smoke suite with five of them, answered, before each: once with the answers' texts
as choices, once with their letters. Every run has a first line of its own, so that none finds its prompts in
the engine's prefix cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import table
from qdeploy.bench.accuracy.encoding import encode_request
from qdeploy.bench.accuracy.items import Item, Likelihood
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.scheduler import answer_all
from qdeploy.bench.smoke import smoke_suite
from qdeploy.bench.tokenizer import load_encoder
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import VllmEngine

ITEMS, SHOTS, CONCURRENCY = 16, 5, 8
Pair = tuple[str, str]
Scorer = Callable[[Sequence[Pair]], list[float]]


@dataclass
class Timed:
    """One way of scoring: seconds, and the scores."""

    name: str
    seconds: float
    scores: list[float]


def accuracy(model: Path, work: Path) -> None:
    """Print the table: how long the same choices take."""
    print("\n## Accuracy over an endpoint\n")
    with VllmEngine().launch(model, log=work / "engine.log") as engine, Endpoint(engine.base_url) as endpoint:
        scorers: dict[str, Scorer] = {
            "qdeploy": _ours(endpoint, work),
            f"lm-eval, {CONCURRENCY} in flight": _theirs(engine.base_url, model, CONCURRENCY),
            "lm-eval as it comes": _theirs(engine.base_url, model, 1),
        }
        for score in scorers.values():
            score(_pairs("warm-up", letters=False)[:2])
        rows = []
        for kind, letters in (("letters", True), ("texts", False)):
            timed = [_time(name, score, f"{kind}, {name}", letters) for name, score in scorers.items()]
            rows += [_row(kind, run, timed[0]) for run in timed]
    print(table(["choices", "by", "seconds", "× qdeploy's", "choices a second"], rows))


def _time(name: str, score: Scorer, salt: str, letters: bool) -> Timed:
    pairs = _pairs(salt, letters)
    start = time.perf_counter()
    scores = score(pairs)
    return Timed(name, time.perf_counter() - start, scores)


def _row(kind: str, run: Timed, ours: Timed) -> list[str]:
    rate = len(run.scores) / run.seconds
    return [kind, run.name, f"{run.seconds:.1f}", f"{run.seconds / ours.seconds:.2f}", f"{rate:.1f}"]


def _pairs(salt: str, letters: bool) -> list[Pair]:
    """(context, continuation) of all choices."""
    items = list(smoke_suite().items)
    examples = "\n\n".join(
        _question(item, letters) + _choices(item, letters)[item.gold or 0] for item in items[:SHOTS]
    )
    return [
        (f"{salt}\n\n{examples}\n\n{_question(item, letters)}", choice)
        for item in items[SHOTS : SHOTS + ITEMS]
        for choice in _choices(item, letters)
    ]


def _question(item: Item, letters: bool) -> str:
    lines = (
        [f"{letter}.{text}" for letter, text in zip("ABCD", _texts(item), strict=False)] if letters else []
    )
    return "\n".join(["Which sentence is right?", *lines, "Answer:"])


def _texts(item: Item) -> list[str]:
    return [" " + "".join(call).strip() for call in item.requests if isinstance(call, tuple)]


def _choices(item: Item, letters: bool) -> list[str]:
    return [f" {letter}" for letter in "ABCD"[: len(item.requests)]] if letters else _texts(item)


def _ours(endpoint: Endpoint, work: Path) -> Scorer:
    encoder, listed = load_encoder(endpoint, None), probe(endpoint).listed_logprobs

    def score(pairs: Sequence[Pair]) -> list[float]:
        requests = [encode_request(encoder, *pair) for pair in pairs]
        path = work / "answers.jsonl"
        with Journal(path, {}) as journal:
            answer_all(endpoint, requests, journal, CONCURRENCY, listed)
            answers = [journal.get(request) for request in requests]
        path.unlink()
        return [answer.loglikelihood for answer in answers if isinstance(answer, Likelihood)]

    return score


def _theirs(base_url: str, model: Path, concurrency: int) -> Scorer:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    peer = LocalCompletionsAPI(
        base_url=f"{base_url}/completions",
        model=model.name,
        tokenizer=str(model),
        tokenizer_backend="huggingface",
        num_concurrent=concurrency,
        max_length=2048,
    )

    def score(pairs: Sequence[Pair]) -> list[float]:
        asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        found: list[Any] = peer.loglikelihood(asked, disable_tqdm=True)
        return [float(loglikelihood) for loglikelihood, _ in found]

    return score
