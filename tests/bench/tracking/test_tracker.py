"""Runs in a real MLflow store, in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.records import Decision, RunRecord, load_record
from qdeploy.bench.tracking import Tracker
from qdeploy.bench.tracking.figures import metrics_of, params_of, tags_of
from qdeploy.errors import UsageError
from tests.bench.report.conftest import CampaignMaker, fidelity, load_result, record, task_score


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty store."""
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'qdeploy[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def logged(uri: str) -> list[Any]:
    """All runs of the store, the first first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("qdeploy")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def artifacts(run: Any) -> set[str]:
    from urllib.parse import unquote, urlsplit

    folder = Path(unquote(urlsplit(run.info.artifact_uri).path))
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bench_run(tmp_path: Path) -> tuple[RunRecord, Path]:
    folder = tmp_path / "bench"
    folder.mkdir()
    made = record("bench", "bench", True, load=load_result(9.0, 400), settings={"rate": 2.0, "slo": None})
    made.save(folder)
    (folder / "requests.parquet").write_bytes(b"rows")
    return made, folder


def test_a_run_is_logged_with_its_figures_and_files(store: str, bench_run: tuple[RunRecord, Path]) -> None:
    Tracker(store).log(*bench_run)
    [run] = logged(store)
    assert (run.info.run_name, run.info.status) == ("bench", "FINISHED")
    assert run.data.metrics["tpot_ms_p50"] == 9.0
    assert run.data.metrics["output_token_throughput"] == 63.4
    assert run.data.params["rate"] == "2.0"
    assert "slo" not in run.data.params
    assert run.data.tags["qdeploy.kernel"] == "CPUWNA16LinearKernel"
    assert artifacts(run) == {"run.json", "requests.parquet"}


def test_an_evaluation_has_accuracy_and_fidelity() -> None:
    made = record("eval", "eval", True, fidelity=fidelity(True), tasks=[task_score(True)])
    found = metrics_of(made)
    assert found["kl_lower_bound_low"] == 0.023
    assert found["smoke_grammar.acc.accuracy"] == 0.871
    assert tags_of(made)["qdeploy.verdict"] == "inconclusive"
    assert params_of(made)["engine_arguments"] == "--max-model-len 2048"


def test_a_campaign_is_a_run_with_parts(store: str, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign("w4")
    decision = Decision(
        objective="o", optimize="rate", verdict="pass", recommended="w4", headline="h", standings=[]
    )
    decision.save(campaign)
    (campaign / "report.html").write_text("<p>")
    Tracker(store).log_campaign(campaign, decision)
    runs = logged(store)
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    parts = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in parts} == {
        "baseline/bench",
        "baseline/eval",
        "w4/bench",
        "w4/eval",
        "w4/verify",
    }
    assert parent.data.tags["qdeploy.recommended"] == "w4"
    assert artifacts(parent) == {"report.html", "decision.json", "campaign.json"}


def test_a_store_that_fails_loses_no_run(
    store: str, tmp_path: Path, bench_run: tuple[RunRecord, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(store)
    shutil.rmtree(tmp_path / "mlruns")
    (tmp_path / "mlruns").write_text("no folder any more")
    tracker.log(*bench_run)
    assert "bench is saved, but MLflow at" in capsys.readouterr().err.replace("\n", " ")
    assert load_record(bench_run[1]) == bench_run[0]


def test_a_server_that_does_not_answer_is_found_before_anything_is_measured(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UsageError, match=r"--mlflow http://127.0.0.1:9 does not answer"):
        Tracker("http://127.0.0.1:9")


def test_a_password_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        Tracker("https://me:secret@mlflow.example")
    assert "secret" not in str(caught.value)
