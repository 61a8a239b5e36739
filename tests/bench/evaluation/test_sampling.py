"""Sampling until the verdict is there, and the noise floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qdeploy.bench.accuracy.encoding import EncodedItem
from qdeploy.bench.accuracy.items import Item, Task
from qdeploy.bench.accuracy.sampling import LOOKS, Tasks, batches, until_decided
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.commands.evaluate import evaluate
from qdeploy.bench.compare import compare_folders
from qdeploy.bench.evaluation import EvalSettings, run_eval
from qdeploy.bench.noise import beyond_floor, is_difference, is_divergence, shuffled, with_floor
from qdeploy.bench.records import Estimate, Noise, load_record
from qdeploy.errors import UsageError
from tests.bench.compare.conftest import item
from tests.bench.evaluation.conftest import Serve, endpoint
from tests.bench.report.conftest import fidelity, task_score

SETTINGS = EvalSettings(windows=3, window_tokens=32, top_k=16, limit=24, concurrency=2)


def questions(n: int, size: int = 1) -> list[EncodedItem]:
    """n items in clusters of `size`, far apart in the list."""
    return [EncodedItem(Item(str(i), str(i % (n // size)), (), 0, ()), ()) for i in range(n)]


def scorer(wrong: set[int], asked: list[int]) -> Any:
    """Answers all items right but those in `wrong`; notes how many were asked for in each batch."""

    def score(tasks: Tasks) -> list[ItemScore]:
        asked.append(sum(len(items) for _, items in tasks))
        return [
            item(task.name, int(e.item.doc_id), int(e.item.doc_id) not in wrong)
            for task, items in tasks
            for e in items
        ]

    return score


def baseline(n: int, names: Sequence[str] = ("t",)) -> dict[tuple[str, str], ItemScore]:
    return {(name, str(i)): item(name, i, True) for name in names for i in range(n)}


def test_batches_have_every_item_once_and_cut_no_cluster() -> None:
    found = batches(questions(300, 5))
    assert sorted(int(e.item.doc_id) for batch in found for e in batch) == list(range(300))
    homes = [{e.item.cluster for e in batch} for batch in found]
    assert sum(map(len, homes)) == 60
    assert len(found) == LOOKS and max(map(len, found)) - min(map(len, found)) <= 10
    assert found == batches(questions(300, 5))


def test_fewer_clusters_than_looks_are_fewer_batches() -> None:
    assert len(batches(questions(12, 4))) == 3


def test_a_destroyed_model_fails_early() -> None:
    asked: list[int] = []
    task = Task("t", "t", "made up", [])
    tasks = [(task, questions(800))]
    scores, looks = until_decided(tasks, scorer(set(range(0, 800, 2)), asked), baseline(800), 0.01)
    assert len(scores) == sum(asked) < 400
    assert looks["t"] == tuple((k + 1) / LOOKS for k in range(len(asked)))


def test_a_decided_task_is_asked_no_more_while_others_are() -> None:
    """Few items of equal answers prove nothing at 1 %, so the sound task runs to its end."""
    asked: list[int] = []
    tasks = [(Task(name, name, "made up", []), questions(160)) for name in ("sound", "lost")]
    known = baseline(160, ("sound", "lost"))

    def score(batch: Tasks) -> list[ItemScore]:
        asked.append(len(batch))
        return [item(t.name, int(e.item.doc_id), t.name == "sound") for t, items in batch for e in items]

    scores, looks = until_decided(tasks, score, known, 0.01)
    assert asked[0] == 2 and asked[-1] == 1 and len(asked) == LOOKS
    assert looks["sound"][-1] == 1.0 > looks["lost"][-1]
    assert sum(s.task == "sound" for s in scores) == 160


def test_until_decided_over_the_endpoint(tmp_path: Path, serve: Serve, model: Any, perturbed: Any) -> None:
    """The same settings serve both, as in a campaign: the baseline is scored whole."""
    settings = replace(SETTINGS, text=None, limit=40, until_decided=True)
    with endpoint(serve(model)) as client:
        base = run_eval(client, settings, tmp_path / "base")
    assert (base.tasks[0].items, base.tasks[0].looks) == (40, [])
    with endpoint(serve(perturbed)) as client:
        record = run_eval(client, settings, tmp_path / "w4", tmp_path / "base")
    whole = record.tasks[0]
    assert whole.looks and whole.looks[-1] == pytest.approx(whole.items / 40)
    [again] = compare_folders(tmp_path / "base", [tmp_path / "w4"], settings.margin).candidates
    assert again.tasks == record.tasks, "compare computes from the folders what eval has recorded"


def test_noise_of_a_steady_server_is_none(tmp_path: Path, serve: Serve, model: Any) -> None:
    server = serve(model)
    with endpoint(server) as client:
        record = run_eval(client, replace(SETTINGS, noise=True, window_tokens=100), tmp_path / "base")
    assert load_record(tmp_path / "base") == record
    assert {path.name for path in (tmp_path / "base").iterdir()} == {
        "run.json",
        "tokens.parquet",
        "items.parquet",
    }
    assert record.noise is not None and record.noise.fidelity is not None
    [floor] = record.noise.tasks
    assert floor.flips is not None and floor.flips.value == 0
    assert record.noise.fidelity.kl_lower_bound is not None
    assert record.noise.fidelity.kl_lower_bound.value == pytest.approx(0, abs=1e-6)
    windows = [ids for ids in server.scored if len(ids) == 100]
    assert len(windows) == 2 * SETTINGS.windows
    assert windows[:3] != windows[3:] and sorted(windows[:3]) == sorted(windows[3:])


class Fickle:
    """A model that becomes another after some calls."""

    def __init__(self, first: Any, second: Any, calls: int) -> None:
        self.first, self.second, self.left = first, second, calls

    def __call__(self, ids: Any) -> Any:
        self.left -= 1
        return (self.first if self.left >= 0 else self.second)(ids)


def test_what_a_server_differs_from_itself_by_is_a_floor(
    tmp_path: Path, serve: Serve, model: Any, perturbed: Any
) -> None:
    """It answers otherwise the second time; a variant that answers so from the start is within the noise."""
    steady = serve(model)
    with endpoint(steady) as client:
        run_eval(client, SETTINGS, tmp_path / "steady")
    with endpoint(serve(Fickle(model, perturbed, calls=len(steady.scored)))) as client:
        base = run_eval(client, replace(SETTINGS, noise=True), tmp_path / "base")
    with endpoint(serve(perturbed)) as client:
        found = run_eval(client, SETTINGS, tmp_path / "w4", tmp_path / "base")
    assert base.noise is not None and base.noise.fidelity is not None
    assert base.noise.fidelity.kl_lower_bound is not None and found.fidelity is not None
    assert base.noise.fidelity.kl_lower_bound.value > 1e-4
    assert not is_divergence(found.fidelity, base.noise) and is_divergence(found.fidelity, None)
    whole = found.tasks[0]
    assert whole.difference is not None and whole.noise_difference == abs(whole.difference.value)
    assert not is_difference(whole)


def test_shuffling_keeps_all_and_is_seeded() -> None:
    assert sorted(shuffled(range(50))) == list(range(50)) != shuffled(range(50))
    assert shuffled(range(50)) == shuffled(range(50))


def test_what_is_not_beyond_the_floor_is_no_difference() -> None:
    lost = task_score(True).model_copy(
        update={
            "difference": Estimate(value=-0.02, low=-0.03, high=-0.01),
            "verdict": "fail",
            "inferiority_p": 0.01,
        }
    )
    for floor, differs in ((0.01, True), (0.02, False), (0.03, False)):
        noise = Noise(tasks=[task_score(True).model_copy(update={"difference": Estimate(value=floor)})])
        [found] = with_floor([lost], noise)
        assert (is_difference(found), beyond_floor(found)) == (differs, differs)
        assert (found.verdict, found.inferiority_p) == (("fail", 0.01) if differs else ("inconclusive", 1.0))
    assert with_floor([lost], None) == [lost] and is_difference(lost)


def test_divergence_must_be_beyond_the_floor_s_interval() -> None:
    found = fidelity(True)
    assert found.kl_lower_bound is not None and found.kl_lower_bound.low is not None
    assert is_divergence(found, None)
    for high, beyond in ((0.01, True), (0.03, False)):
        floor = found.model_copy(update={"kl_lower_bound": Estimate(value=0.005, low=0.0, high=high)})
        assert is_divergence(found, Noise(fidelity=floor)) == beyond


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--until-decided"], "give --baseline"), (["--noise", "--baseline", "runs/base"], "measured already")],
)
def test_options_without_their_baseline_are_refused(options: list[str], told: str) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, ["http://127.0.0.1:9/v1", *options])
    assert isinstance(result.exception, UsageError) and told in str(result.exception)
