from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qdeploy import shortage
from qdeploy.cli.plan import plan
from tests.conftest import save_tiny

runner = CliRunner()
app = typer.Typer()
app.command()(plan)
SMALL = ["--group-size", "32", "--samples", "4", "--sequence-length", "32"]


def output_of(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_plan_prints_parts_layers_and_time_and_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    shown = " ".join(output_of(str(tiny_llama), *SMALL, "-o", str(tmp_path / "out")).split())
    for part in (
        "Hessians",
        "The checkpoint",
        "Peak",
        "2 blocks; the first took",
        "mlp.down_proj",
        "64 × 128",
    ):
        assert part in shown
    assert not list(tmp_path.iterdir())


def test_json_holds_the_same_figures(tiny_llama: Path, tmp_path: Path) -> None:
    found = json.loads(output_of(str(tiny_llama), *SMALL, "--json", "-o", str(tmp_path / "out")))
    parts, peaks = found["bytes_by_part"], found["peak_bytes"]
    assert peaks["disk"] == parts["output"] + parts["spilled"]
    assert parts["libraries"] < peaks["memory"] < parts["libraries"] + 2**24
    # Both blocks of two were run: nothing is extrapolated.
    seconds = found["seconds"]
    assert seconds["total"] == pytest.approx(seconds["preparation"] + sum(seconds["blocks"]))
    assert len(found["layers"]) == 7
    assert found["problems"] == []


def test_blocks_that_are_not_run_take_as_long_as_the_last_that_was(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "deep", "llama", num_hidden_layers=5)
    found = json.loads(output_of(str(folder), *SMALL, "--json", "-o", str(tmp_path / "out")))
    seconds = found["seconds"]
    assert len(seconds["blocks"]) == 2
    expected = seconds["preparation"] + sum(seconds["blocks"]) + 3 * seconds["blocks"][-1]
    assert seconds["total"] == pytest.approx(expected)


def test_what_does_not_fit_is_not_timed(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortage, "free_memory", lambda: 1 << 20)
    shown = output_of(str(tiny_llama), *SMALL, "-o", str(tmp_path / "out"))
    assert "Does not fit: The run needs" in shown
    assert "the first took" not in shown
