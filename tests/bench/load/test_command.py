"""`qdeploy bench` as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qdeploy.bench.commands.load import bench
from qdeploy.bench.load.client import use as client_use
from qdeploy.bench.records import LoadResult, SeriesRecord, load_record
from qdeploy.errors import EndpointError, GateError, OutputError, UsageError
from tests.bench.load.server import Server

app = typer.Typer()
app.command()(bench)
SHORT = ["--num-requests", "6", "--prompt-tokens", "16", "--output-tokens", "4", "--warmup", "1"]


def test_json_on_standard_output_is_the_result(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    result = CliRunner().invoke(app, [server.url, "--rate", "50", *SHORT, "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert LoadResult.model_validate(json.loads(result.stdout)) == load_record(out).load


def test_table(server: Server) -> None:
    result = CliRunner().invoke(app, [server.url, "--concurrency", "2", *SHORT])
    assert "Closed loop, 2 concurrent" in result.stdout
    assert "n ≥ 299" in result.stdout
    assert "6 completed, 0 failed" in result.stdout


def test_a_run_that_the_client_limited_fails_if_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client_use, "MAX_SHARE", 0.0)
    options = [server.url, "--concurrency", "2", *SHORT, "-o"]
    passed = CliRunner().invoke(app, [*options, str(tmp_path / "a")])
    assert passed.exit_code == 0
    assert "of its own ceiling" in passed.stdout.replace("\n", " ")
    strict = CliRunner().invoke(app, [*options, str(tmp_path / "b"), "--strict"])
    assert isinstance(strict.exception, GateError)
    assert "of its own ceiling" in str(strict.exception)
    load = load_record(tmp_path / "b").load
    assert load and load.client_limited and load.invalid


def test_of_a_server_that_dies_what_was_measured_is_kept(tmp_path: Path) -> None:
    dying = Server()
    dying.start()
    dying.behaviour.first_token_s = 0.05
    dying.stop_after(12)
    many = ["--num-requests", "30", *SHORT[2:]]
    result = CliRunner().invoke(app, [dying.url, "--rate", "25", *many, "-o", str(tmp_path / "run")])
    assert isinstance(result.exception, EndpointError)
    assert "does not answer any more" in str(result.exception) and "marked invalid" in str(result.exception)
    load = load_record(tmp_path / "run").load
    assert load and load.lost and load.completed and load.invalid


def test_table_shows_failures(server: Server) -> None:
    server.behaviour.fail = {2: "status"}
    result = CliRunner().invoke(app, [server.url, "--concurrency", "1", *SHORT])
    assert "1 × HTTP 503" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give either --rate"),
        (["--rate", "1", "--concurrency", "1"], "Give either --rate"),
        (["--rate", "0"], "--rate: Input should be greater than 0"),
        (["--rate", "1", "--num-requests", "1"], "--num-requests"),
        (["--rate", "1", "--end-rate", "0"], "--end-rate: Input should be greater than 0"),
        (["--concurrency", "1", "--end-rate", "2"], "--end-rate is where an open loop"),
        (["--rate", "1", "--burstiness", "2"], "--burstiness is of gamma arrivals, not poisson"),
        (["--rate", "1", "--turns", "2"], "--turns are of conversations: give --dataset"),
        (["--rate", "1", "--trace", "t.csv"], "Give either --rate"),
        (["--trace", "t.csv", "--dataset", "d.json"], "--trace sets the lengths of its own prompts"),
        (["--rate", "1", "--slo", "fast"], "--slo: 'fast' is no limit such as p99_ttft=500ms"),
        (["--rate", "1", "--slo", "p99_ttft=1s", "--no-stream"], "Without --stream there is no first token"),
        (["--rate", "1", "--salt", "xyz"], "--salt: String should match pattern"),
        (["--sweep", "--rate", "1"], "--sweep sets the rates itself"),
        (["--sweep", "--dataset", "d.json", "--turns", "2"], "--turns make sessions"),
        (["--sweep", "--baseline", "runs/b"], "--baseline is for one run"),
        (["--rate", "1", "--arrival", "weibull"], "--arrival: Input should be 'poisson', 'gamma' or 'con"),
    ],
)
def test_options_that_cannot_work(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["http://127.0.0.1:1/v1", *options])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_an_output_folder_in_use_is_refused_before_the_load(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "run"):
        result = CliRunner().invoke(app, [server.url, "--rate", "50", *SHORT, "-o", str(output)])
        assert isinstance(result.exception, OutputError)
        assert str(output) in str(result.exception)
    assert server.payloads == []


def test_a_trace_that_cannot_be_read_is_refused_by_name(server: Server) -> None:
    result = CliRunner().invoke(app, [server.url, "--trace", "missing.csv"])
    assert isinstance(result.exception, UsageError)
    assert "--trace: cannot read missing.csv" in str(result.exception)


def test_sweep_and_search_show_a_table_and_write_one_folder_a_rate(server: Server, tmp_path: Path) -> None:
    server.behaviour.slots, server.behaviour.first_token_s = 1, 0.01
    out = tmp_path / "sweep"
    options = [server.url, "--sweep", *SHORT, "--slo", "p50_ttft=10s", "-o", str(out)]
    first = CliRunner().invoke(app, options)
    assert first.exit_code == 0, first.output
    assert "Knee" in first.stdout
    assert "Objective   met up to" in first.stdout
    sent = len(server.payloads)
    again = CliRunner().invoke(app, [*options, "--json"])
    assert len(server.payloads) == sent, "all runs are read from the folder"
    found = SeriesRecord.model_validate(json.loads(again.stdout))
    assert found == SeriesRecord.model_validate_json((out / "series.json").read_text())
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"all-at-once", *(f"rate-{run.rate:g}" for run in found.runs)}


def test_ctrl_c_leaves_the_figures_of_what_had_ended(server: Server, tmp_path: Path) -> None:
    server.behaviour.first_token_s = 0.05
    command = [sys.executable, "-m", "qdeploy", "bench", server.url, "--concurrency", "2", "--json"]
    options = ["--num-requests", "5000", "--prompt-tokens", "16", "-o", str(tmp_path / "run")]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while len(server.payloads) < 30:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = LoadResult.model_validate_json(out)
    assert found == load_record(tmp_path / "run").load
    assert found.interrupted
    assert found.failed == 0
    assert 15 < found.completed < 5000
    assert f"Interrupted after {found.completed} of 5000 requests" in err.decode()
