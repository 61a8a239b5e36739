"""`qdeploy bench` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qdeploy.bench.commands.load import bench
from qdeploy.bench.records import LoadResult, load_record
from qdeploy.errors import OutputError, UsageError
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
