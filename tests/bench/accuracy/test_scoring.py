from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.encoding import encode_item
from qdeploy.bench.accuracy.items import Generate, Item, Likelihood, Task
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.scoring import grade, score_items
from qdeploy.bench.accuracy.table import read_items, write_items
from qdeploy.bench.tokenizer import Encoder
from qdeploy.errors import UsageError
from tests.bench.accuracy.conftest import Ask, client
from tests.bench.evaluation.conftest import exact_logprobs

TASK = Task("t", "t", "made up", [], ("acc", "acc_norm"))


def test_scores_are_sums_over_the_continuation(
    ask: Ask, model: Any, encoder: Encoder, journal: Journal
) -> None:
    item = Item("0", "c", (("The cat", " sits"), ("The cat", " sat down")), 1, (4, 8))
    encoded = encode_item(encoder, item, 256)
    with client(ask()) as endpoint:
        [score] = score_items(endpoint, [(TASK, [encoded])], 1, journal)
    exact = []
    for request in encoded.requests:
        logprobs = exact_logprobs(model, list(request.ids))
        start = len("The cat")
        exact.append(sum(float(logprobs[i - 1, request.ids[i]]) for i in range(start, len(request.ids))))
    assert score.loglikelihoods == pytest.approx(exact, abs=1e-4)
    assert score.correct == float(exact[1] > exact[0])


def test_per_character_scores_can_choose_differently(encoder: Encoder) -> None:
    encoded = encode_item(encoder, Item("0", "c", (("a", " bb"), ("a", " cccc")), 1, (2, 4)), None)
    score = grade(TASK, encoded, [Likelihood(-3.0), Likelihood(-4.0)])
    assert (score.predicted, score.correct, score.correct_norm) == (0, 0.0, 1.0)


def test_a_metric_without_a_number_is_refused(encoder: Encoder) -> None:
    task = Task("t", "t", "made up", [], ("acc",), lambda item, answers: {"acc": "yes"})
    encoded = encode_item(encoder, Item("7", "c", (("a", " b"), ("a", " c")), 0, (1, 1)), None)
    with pytest.raises(UsageError, match="'yes' for acc of item 7"):
        grade(task, encoded, [Likelihood(-1.0), Likelihood(-2.0)])


def test_rows_of_all_kinds_survive_the_file(tmp_path: Path, encoder: Encoder) -> None:
    choice = encode_item(encoder, Item("0", "c", (("a", " b"), ("a", " c")), 0, (1, 1)), None)
    text = encode_item(encoder, Item("1", "c", (Generate("a", (), 3),), None, ()), None)
    written = Task(
        "g", "g", "made up", [], ("em",), lambda item, answers: {"em": 1, "ppl": (-2.5, 3)}, {"ppl": len}
    )
    scores = [grade(TASK, choice, [Likelihood(-1.0), Likelihood(-2.0)]), grade(written, text, ["ü\n1"])]
    write_items(tmp_path / "items.parquet", scores)
    assert read_items(tmp_path) == scores
    assert (scores[1].response, scores[1].parts, scores[1].predicted) == ("ü\n1", '{"ppl": [-2.5, 3]}', None)
