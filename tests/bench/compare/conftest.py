"""Run folders with known answers, as `qdeploy eval` and `qdeploy bench` leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.bench.accuracy.comparison import task_scores
from qdeploy.bench.accuracy.items import Task
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.accuracy.table import write_items
from qdeploy.bench.fidelity.token_table import TokenTable, write_tokens
from qdeploy.bench.records import RunRecord
from tests.bench.report.conftest import fidelity, load_result, record

SETTINGS = {"tokenizer_sha256": "ab", "bos": "none"}
LOAD = {"arrival": "poisson", "rate": 2.0, "prompt_tokens": 128, "output_tokens": 32, "seed": 0}
WriteEval = Callable[..., Path]


def item(task: str, index: int, correct: bool) -> ItemScore:
    return ItemScore(
        task=task,
        kind="",
        doc_id=str(index),
        cluster=f"{task}/{index}",
        prompt_hash=f"{task}{index}",
        gold=0,
        predicted=int(not correct),
        correct=float(correct),
        correct_norm=float(correct),
        loglikelihoods=[-1.0, -2.0],
        lengths=[1, 1],
        split=False,
        values={"acc": float(correct)},
    )


def answered(task: str, n: int, wrong: range) -> list[ItemScore]:
    """n items of which those in `wrong` are answered wrongly."""
    return [item(task, i, i not in wrong) for i in range(n)]


def write_eval(
    folder: Path, scores: list[ItemScore], looks: dict[str, Any] | None = None, **parts: Any
) -> Path:
    """An evaluation without a baseline of its own."""
    folder.mkdir(parents=True)
    write_items(folder / "items.parquet", scores)
    tasks = []
    for name in dict.fromkeys(score.task for score in scores):
        pairs = [(score, None) for score in scores if score.task == name]
        shares = (looks or {}).get(name, ())
        tasks += task_scores(Task(name, name, "made up", []), pairs, 0.01, shares)
    made: RunRecord = record("eval", folder.name, False, **{"settings": SETTINGS, "tasks": tasks, **parts})
    made.save(folder)
    return folder


def write_bench(folder: Path, tpot: float, count: int = 400, **settings: Any) -> Path:
    """A load run with the given median time per output token."""
    folder.mkdir(parents=True)
    load = load_result(tpot, count)
    record("bench", folder.name, False, settings=LOAD | settings, load=load).save(folder)
    return folder


def write_text_eval(folder: Path, shift: float, **changes: Any) -> Path:
    """An evaluation of a text whose two likeliest tokens have probabilities 0.6 ± shift and the rest."""
    folder.mkdir(parents=True)
    rows = 24 * 20
    top = np.tile(np.log([0.6 - shift, 0.2 + shift]), (rows, 1)).astype(np.float32)
    table = TokenTable(
        window=np.repeat(np.arange(24), 20).astype(np.int32),
        token=np.zeros(rows, np.int32),
        logprob=top[:, 0],
        top_ids=np.tile(np.array([0, 1], np.int32), (rows, 1)),
        top_logprobs=top,
    )
    write_tokens(folder / "tokens.parquet", table)
    text = fidelity(False).model_copy(update={"positions": rows, "top_k": 2, **changes})
    record("eval", folder.name, False, settings=SETTINGS, fidelity=text).save(folder)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two tasks of 1,000 items; the candidate loses 40 of one and 1 of the other."""
    base = [*answered("a", 1000, range(200)), *answered("b", 1000, range(200))]
    other = [*answered("a", 1000, range(240)), *answered("b", 1000, range(201))]
    return write_eval(tmp_path / "base", base), write_eval(tmp_path / "w4", other)
