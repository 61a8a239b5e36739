"""Tasks of each kind over the real engine: what lm-eval's `local-completions` sends, scores and counts.

QDEPLOY_TEST_DATA   folder with original files of data sets (docs/tasks.md)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.asking import Shortcuts
from qdeploy.bench.accuracy.comparison import pair, task_scores
from qdeploy.bench.accuracy.encoding import EncodedItem, encode_item
from qdeploy.bench.accuracy.harness import harness_tasks
from qdeploy.bench.accuracy.items import Task
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.scoring import ItemScore, score_items
from qdeploy.bench.accuracy.sources.catalogue import local_data
from qdeploy.bench.accuracy.totals import task_figures
from qdeploy.bench.tokenizer import load_encoder
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import RunningEngine, VllmEngine

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # of lm-eval[api]
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

LENGTH = 2048
DOCUMENTS = {"hellaswag": 4, "sst2": 8, "winogrande": 8, "gsm8k": 2, "wikitext": 1}
"""Choices of several tokens, labels of one, choices in the context, text to write, text to read."""
WRITTEN = {"gsm8k"}
"""Of these only the prompts are compared: what is written in 16 bits depends on what else is in the batch."""


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("QDEPLOY_TEST_DATA")
    if not folder:
        pytest.skip("QDEPLOY_TEST_DATA names no folder of data")
    return Path(folder)


@pytest.fixture(scope="module")
def engine(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    log, arguments = tmp_path_factory.mktemp("log") / "engine.log", ["--max-model-len", str(LENGTH)]
    with VllmEngine().launch(model, log=log, arguments=arguments) as running:
        yield running


@pytest.mark.parametrize("name", DOCUMENTS)
def test_same_as_local_completions(
    engine: RunningEngine, model: Path, data: Path, tmp_path: Path, name: str
) -> None:
    peer, theirs = _theirs(engine, model, data, name)
    task, items, scores = _ours(engine, data, name, tmp_path)
    samples = {str(sample["doc_id"]): sample for sample in theirs["samples"][name]}
    assert {score.doc_id for score in scores} == samples.keys()
    for item in items:
        assert _ids(item) == _their_ids(peer, samples[item.item.doc_id])
    if name in WRITTEN:
        return
    for score in scores:
        answers = [response[0] for response in samples[score.doc_id]["resps"]]
        exact = [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]
        assert score.loglikelihoods == pytest.approx(exact, abs=0.05, rel=1e-4)
    assert _figures(task, scores) == pytest.approx(_their_figures(theirs["results"][name]), rel=1e-3)


def _theirs(engine: RunningEngine, model: Path, data: Path, name: str) -> tuple[Any, dict[str, Any]]:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    peer = LocalCompletionsAPI(
        base_url=f"{engine.base_url}/completions", model=engine.model, tokenizer=str(model),
        tokenizer_backend="huggingface", max_length=LENGTH,
    )  # fmt: skip
    with local_data(data):
        found = lm_eval.simple_evaluate(peer, tasks=[name], limit=DOCUMENTS[name], bootstrap_iters=0)
    assert found is not None
    return peer, dict(found)


def _ours(
    engine: RunningEngine, data: Path, name: str, folder: Path
) -> tuple[Task, list[EncodedItem], list[ItemScore]]:
    [task] = harness_tasks(name, DOCUMENTS[name], data_dir=data)
    with Endpoint(engine.base_url) as endpoint, Journal(folder / "answers.jsonl", {}) as journal:
        encoder, shortcuts = load_encoder(endpoint, None), Shortcuts.of(probe(endpoint))
        assert shortcuts == Shortcuts(listed=True, block=shortcuts.block) and shortcuts.block
        items = [encode_item(encoder, item, LENGTH) for item in task.items]
        return task, items, score_items(endpoint, [(task, items)], 4, journal, shortcuts)


def _ids(item: EncodedItem) -> list[tuple[int, ...]]:
    return [request.ids for request in item.requests]


def _their_ids(peer: Any, sample: dict[str, Any]) -> list[tuple[int, ...]]:
    """What lm-eval sends for each request of a document."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    found: list[tuple[int, ...]] = []
    for context, *more in sample["arguments"]:
        if not more:
            windows = get_rolling_token_windows(
                peer.tok_encode(context), peer.prefix_token_id, peer.max_length - 1, 1
            )
            found += [(*before, *after) for before, after in map(make_disjoint_window, windows)]
        elif isinstance(more[0], str):
            before, after = peer._encode_pair(context, more[0])
            found.append((*before, *after))
        else:
            found.append(tuple(peer.tok_encode(context)))
    return found


def _figures(task: Task, scores: list[ItemScore]) -> dict[str, float]:
    pairs = pair(task, scores, None)
    shares = {score.metric: score.accuracy.value for score in task_scores(task, pairs, 0.01)}
    return shares | {figure.metric: figure.value.value for figure in task_figures(task, pairs)}


def _their_figures(results: dict[str, Any]) -> dict[str, float]:
    found = {key: value for key, value in results.items() if "," in key and "_stderr" not in key}
    return {key.removesuffix(",none"): float(value) for key, value in found.items()}
