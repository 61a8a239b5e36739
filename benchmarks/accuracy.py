"""Scoring over an endpoint: qdeploy beside lm-eval's `local-completions`, on the same served model.

lm-eval is asked twice: with as many requests in flight as qdeploy, and as it comes, one at a time. The median
of several rounds counts. A round's prompts have a first line of their own, and qdeploy goes first in each, so
that nobody finds his prompts in the engine's cache; lm-eval's requests do not read it.

Beside them stands what the engine itself takes to read every context with its choice, from the first token
on, and tell nothing of it: no client that has each choice read whole can be faster.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.table import table
from qdeploy.bench.accuracy.asking import Shortcuts
from qdeploy.bench.accuracy.encoding import encode_request
from qdeploy.bench.accuracy.harness import harness_tasks
from qdeploy.bench.accuracy.items import Item, Likelihood
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.scheduler import answer_all
from qdeploy.bench.smoke import smoke_suite
from qdeploy.bench.tokenizer import load_encoder
from qdeploy.calibration.builtin import evaluation_text
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import VllmEngine

ITEMS, SHOTS, PASSAGE_WORDS, ROUNDS, CONCURRENCY = 8, 5, 150, 3, 8
TASKS, DOCUMENTS = ("arc_easy", "hellaswag", "piqa", "winogrande"), 32
"""Tasks of lm-eval of which so many questions are asked, without examples, where there are files."""

Pair = tuple[str, str]
"""A context and a continuation."""
Scorer = Callable[[Sequence[Pair]], list[float]]


@dataclass
class Timed:
    """One way of scoring: the seconds of each round, and the scores of the last."""

    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def accuracy(model: Path, work: Path, data: Path | None) -> None:
    """Print the table: how long the same choices take, and how far apart the scores are.

    Args:
        data: folder with original files of data sets, whose questions are then asked; None: qdeploy's own.
    """
    print("\n## Accuracy over an endpoint\n")
    with VllmEngine().launch(model, log=work / "engine.log") as engine, Endpoint(engine.base_url) as endpoint:
        scorers: dict[str, Scorer] = {
            "qdeploy": _ours(endpoint, work),
            f"lm-eval, {CONCURRENCY} in flight": _theirs(engine.base_url, model, CONCURRENCY),
            "lm-eval as it comes": _theirs(engine.base_url, model, 1),
            f"reading alone, {CONCURRENCY} in flight": _reading(endpoint),
        }
        _time(_smoke(letters=False)[:2], scorers, "Warm-up")
        rows = [row for kind, pairs in _kinds(data).items() for row in _rows(kind, pairs, scorers)]
    print(table(["choices", "by", "seconds", "× qdeploy's", "choices a second", "nats apart"], rows))


def _rows(kind: str, pairs: Sequence[Pair], scorers: dict[str, Scorer]) -> list[list[str]]:
    timed = {name: Timed() for name in scorers}
    for turn in range(ROUNDS):
        for name, (seconds, scores) in _time(pairs, scorers, f"{kind}, round {turn}").items():
            timed[name].seconds.append(seconds)
            timed[name].scores = scores
    ours = next(iter(timed.values()))
    return [_row(kind, name, run, ours) for name, run in timed.items()]


def _time(
    pairs: Sequence[Pair], scorers: dict[str, Scorer], first_line: str
) -> dict[str, tuple[float, list[float]]]:
    """Seconds and scores, by who scores."""
    salted = [(f"{first_line}\n\n{context}", choice) for context, choice in pairs]
    found = {}
    for name, score in scorers.items():
        start = time.perf_counter()
        scores = score(salted)
        found[name] = time.perf_counter() - start, scores
    return found


def _row(kind: str, name: str, run: Timed, ours: Timed) -> list[str]:
    seconds, count = median(run.seconds), len(ours.scores)
    ratio = seconds / median(ours.seconds)
    apart = "–"
    if run.scores:
        apart = f"{max(abs(a - b) for a, b in zip(run.scores, ours.scores, strict=True)):.4f}"
    return [kind, name, f"{seconds:.1f}", f"{ratio:.2f}", f"{count / seconds:.1f}", apart]


def _kinds(data: Path | None) -> dict[str, list[Pair]]:
    """What is asked → (context, continuation) of all choices."""
    if data is None:
        return {
            f"letters, {SHOTS} examples": _smoke(letters=True),
            f"texts, {SHOTS} examples": _smoke(letters=False),
            "texts, each after a passage": _after_passages(),
        }
    return {name: _of_task(name, data) for name in TASKS}


def _of_task(name: str, data: Path) -> list[Pair]:
    [task] = harness_tasks(name, DOCUMENTS, data_dir=data)
    return [call for item in task.items for call in item.requests if isinstance(call, tuple)]


def _smoke(letters: bool) -> list[Pair]:
    items = list(smoke_suite().items)
    examples = "\n\n".join(
        _question(item, letters) + _choices(item, letters)[item.gold or 0] for item in items[:SHOTS]
    )
    return [
        (f"{examples}\n\n{_question(item, letters)}", choice)
        for item in items[SHOTS : SHOTS + ITEMS]
        for choice in _choices(item, letters)
    ]


def _after_passages() -> list[Pair]:
    words = evaluation_text().split()
    passages = [" ".join(words[i : i + PASSAGE_WORDS]) for i in range(0, len(words), PASSAGE_WORDS)]
    return [
        (f"{passage}\n\n{_question(item, letters=False)}", choice)
        for passage, item in zip(passages, smoke_suite().items[:ITEMS], strict=False)
        for choice in _texts(item)
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
    encoder, shortcuts = load_encoder(endpoint, None), Shortcuts.of(probe(endpoint))

    def score(pairs: Sequence[Pair]) -> list[float]:
        requests = [encode_request(encoder, *pair) for pair in pairs]
        path = work / "answers.jsonl"
        with Journal(path, {}) as journal:
            answer_all(endpoint, requests, journal, CONCURRENCY, shortcuts)
            answers = [journal.get(request) for request in requests]
        path.unlink()
        return [answer.loglikelihood for answer in answers if isinstance(answer, Likelihood)]

    return score


def _reading(endpoint: Endpoint) -> Scorer:
    """Each prompt with a salt of its own, so that none is read out of the cache; scores nothing."""
    encoder = load_encoder(endpoint, None)

    def read(ids: Sequence[int]) -> None:
        endpoint.complete(ids, max_tokens=1, cache_salt=secrets.token_hex(16))

    def score(pairs: Sequence[Pair]) -> list[float]:
        prompts = [encode_request(encoder, *pair).ids for pair in pairs]
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(read, prompts))
        return []

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
