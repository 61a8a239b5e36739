from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from qdeploy.bench.commands.evaluate import evaluate
from qdeploy.bench.evaluation import EvalSettings, run_eval
from qdeploy.bench.records import RunRecord, load_record
from qdeploy.bench.render import render_eval
from qdeploy.engines.probe import BEGINNING, PATTERN
from qdeploy.errors import ComparisonError, EndpointError, OutputError, UsageError
from tests.bench.evaluation.conftest import Serve, endpoint

SETTINGS = EvalSettings(windows=3, window_tokens=32, top_k=16, limit=24, concurrency=2)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, serve: Serve, model: Any) -> Path:
    """A run folder; never write into it."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    with endpoint(serve(model)) as client:
        run_eval(client, SETTINGS, folder)
    return folder


def test_run_folder_is_whole_and_comparable(
    tmp_path: Path, serve: Serve, perturbed: Any, baseline: Path
) -> None:
    with endpoint(serve(perturbed)) as client:
        record = run_eval(client, SETTINGS, tmp_path / "variant", baseline)
    assert load_record(tmp_path / "variant") == record
    assert {path.name for path in (tmp_path / "variant").iterdir()} == {
        "run.json",
        "tokens.parquet",
        "items.parquet",
    }
    assert not list(tmp_path.glob("*.partial"))
    assert record.fidelity is not None and record.fidelity.kl_lower_bound is not None
    whole = record.tasks[0]
    assert (whole.task, whole.items, whole.part_of) == ("smoke", 24, None)
    assert whole.difference is not None and whole.verdict is not None
    parts = [score for score in record.tasks if score.part_of == "smoke"]
    assert sum(score.items for score in parts) == 24
    assert all(score.verdict is None for score in parts)
    assert "not a public benchmark" in whole.source


def test_a_model_agrees_with_itself(tmp_path: Path, serve: Serve, model: Any, baseline: Path) -> None:
    with endpoint(serve(model)) as client:
        record = run_eval(client, SETTINGS, tmp_path / "same", baseline)
    fidelity, task = record.fidelity, record.tasks[0]
    assert (
        fidelity is not None and fidelity.kl_lower_bound is not None and fidelity.same_top_token is not None
    )
    assert fidelity.kl_lower_bound.value == pytest.approx(0, abs=1e-6)
    assert fidelity.same_top_token.value == 1
    assert task.flips is not None and task.flips.value == 0
    assert task.mcnemar_p == 1


def test_a_baseline_url_is_evaluated_first(tmp_path: Path, serve: Serve, model: Any, perturbed: Any) -> None:
    settings = replace(SETTINGS, tasks=())
    with endpoint(serve(model)) as first, endpoint(serve(perturbed)) as second:
        record = run_eval(second, settings, tmp_path / "run", first)
    assert record.baseline == str(tmp_path / "run-baseline")
    assert record.fidelity is not None and record.fidelity.method == "two-pass"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 8}, "--top-k 16 there, 8 here"),
        ({"window_tokens": 16}, "--window-tokens 32 there, 16 here"),
        ({"windows": 2}, "--windows 3 there, 2 here"),
        ({"limit": 30}, "24 of 30 items"),
    ],
)
def test_what_is_not_comparable_is_refused_before_scoring(
    tmp_path: Path, serve: Serve, model: Any, baseline: Path, changes: dict[str, Any], message: str
) -> None:
    server = serve(model)
    with endpoint(server) as client, pytest.raises(ComparisonError, match=message):
        run_eval(client, replace(SETTINGS, **changes), tmp_path / "run", baseline)
    probed = {len(PATTERN) * times for times in (1, 2, 3)} | {len(BEGINNING + PATTERN)}
    assert {len(ids) for ids in server.scored} <= probed, "only the probe's sequences"
    assert not (tmp_path / "run").exists()


def test_another_text_is_refused(tmp_path: Path, serve: Serve, model: Any, baseline: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("another text " * 20)
    with endpoint(serve(model)) as client, pytest.raises(ComparisonError, match="text"):
        run_eval(client, replace(SETTINGS, text=str(text)), tmp_path / "run", baseline)


def test_another_protocol_on_the_same_text_is_refused(tmp_path: Path, serve: Serve, model: Any) -> None:
    """Both cut WikiText-2, and into as many windows of one length."""
    rows = [f" = Title = \n{word} " * 40 for word in ("one", "two")]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (tmp_path / "wikitext2-raw-test.jsonl").write_text(lines)
    settings = replace(SETTINGS, text="llama.cpp", data_dir=tmp_path, tasks=())
    with endpoint(serve(model)) as client:
        run_eval(client, settings, tmp_path / "baseline")
        with pytest.raises(ComparisonError, match=r"protocol llama\.cpp .* there, gptq-wikitext2 .* here"):
            other = replace(settings, text="gptq-wikitext2")
            run_eval(client, other, tmp_path / "run", tmp_path / "baseline")


def test_the_method_is_what_the_engine_can_do(
    tmp_path: Path, serve: Serve, perturbed: Any, baseline: Path
) -> None:
    """The intersection's bound is there for both, so that the two can be compared."""
    server, settings = serve(perturbed), replace(SETTINGS, tasks=())
    found = []
    for chosen in (True, False):
        server.chosen = chosen
        with endpoint(server) as client:
            found.append(run_eval(client, settings, tmp_path / str(chosen), baseline).fidelity)
    two_pass, intersection = (fidelity for fidelity in found if fidelity is not None)
    assert (two_pass.method, intersection.method) == ("two-pass", "intersection")
    assert two_pass.kl_lower_bound is not None and intersection.kl_lower_bound is not None
    assert two_pass.kl_lower_bound.value > intersection.kl_lower_bound.value
    assert two_pass.kl_intersection == intersection.kl_intersection == intersection.kl_lower_bound
    assert len(two_pass.worst) == 10 and two_pass.worst[0].kl >= two_pass.worst[1].kl


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, serve: Serve, model: Any) -> None:
    with endpoint(serve(model)) as client, pytest.raises(ComparisonError, match="not a run folder"):
        run_eval(client, SETTINGS, tmp_path / "run", tmp_path)


def test_no_prompt_logprobs_no_numbers(tmp_path: Path, serve: Serve, model: Any) -> None:
    server = serve(model)
    server.logprobs = False
    with endpoint(server) as client, pytest.raises(EndpointError, match="nothing was measured"):
        run_eval(client, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_many_logprobs_for_the_engine_are_refused(tmp_path: Path, serve: Serve, model: Any) -> None:
    with endpoint(serve(model)) as client, pytest.raises(UsageError, match="--top-k"):
        run_eval(client, replace(SETTINGS, top_k=512), tmp_path / "run")


def test_a_used_folder_is_left_alone(tmp_path: Path, serve: Serve, model: Any) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with endpoint(serve(model)) as client, pytest.raises(OutputError, match="in use"):
        run_eval(client, SETTINGS, tmp_path)


def test_unknown_tokenizer_is_asked_for(tmp_path: Path, serve: Serve, model: Any) -> None:
    server = serve(model)
    server.folder = tmp_path / "elsewhere"
    with endpoint(server) as client, pytest.raises(UsageError, match="--tokenizer DIR"):
        run_eval(client, SETTINGS, tmp_path / "run")


def test_summary_names_verdict_and_power(tmp_path: Path, serve: Serve, model: Any, baseline: Path) -> None:
    with endpoint(serve(model)) as client:
        record = run_eval(client, SETTINGS, tmp_path / "same", baseline)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_eval(record), render_eval(load_record(baseline)))
    text = capture.get()
    wanted = ("KL divergence, lower bound, two-pass", "same most likely token", "80 % power", "McNemar")
    for words in (*wanted, "Δp of the text's tokens, mean", "its variance by window / by token"):
        assert words in text


def test_command_prints_the_record(tmp_path: Path, serve: Serve, perturbed: Any, baseline: Path) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    numbers = ["--windows", "3", "--window-tokens", "32", "--top-k", "16", "--limit", "24"]
    target = ["--baseline", str(baseline), "-o", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(app, [serve(perturbed).url, *numbers, *target])
    assert result.exit_code == 0, result.output
    printed = RunRecord.model_validate_json(result.stdout)
    assert printed == load_record(tmp_path / "run")
    assert printed.baseline == str(baseline)
