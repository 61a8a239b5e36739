from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qdeploy.assignment import resolve_schemes
from qdeploy.cli.sensitivity import sensitivity
from qdeploy.errors import OutputError, QDeployError, RecipeError, ResourceError, UnknownNameError, UsageError
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import quantize, shapes
from qdeploy.recipe import Recipe
from qdeploy.sensitivity import memory

runner = CliRunner()
app = typer.Typer()
app.command()(sensitivity)
SMALL = ["--samples", "2", "--sequence-length", "16", "--gpu", "h100", "--schemes", "W4A16:32,W8A16:32"]


def output_of(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def found(*arguments: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(output_of(*arguments, "--json"))
    return loaded


def test_the_table_shows_every_part_the_most_harmed_first(tiny_llama: Path) -> None:
    shown = output_of(str(tiny_llama), *SMALL)
    data = found(str(tiny_llama), *SMALL)
    worst = max(data["units"], key=lambda unit: max(choice["kl"] for choice in unit["choices"]))
    rows = [line for line in shown.splitlines() if "self_attn" in line or "mlp" in line]
    assert len(rows) == len(data["units"]) == 8
    assert rows[0].split()[1] == worst["name"].removeprefix("model.layers.").replace("_proj", "")
    assert "W4A16:32" in shown
    assert data["assignment"] is None


def test_the_recipe_holds_what_was_chosen_and_can_be_run(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    data = found(str(tiny_llama), *SMALL, "--target-bits", "6", "--method", "rtn", "-o", str(path))
    assignment = data["assignment"]
    assert path.read_text() == assignment["recipe"]
    assert assignment["bits"] <= 6
    assert not list(tmp_path.glob("*.tmp"))
    recipe = Recipe.from_yaml(path)
    planned = resolve_schemes(recipe, shapes(find_blocks(build_skeleton(CheckpointReader(tiny_llama)))))
    for unit in data["units"]:
        for name in unit["layers"]:
            assert (planned[name].scheme.describe() if name in planned else "16 bit") == unit["chosen"]
    quantize(recipe, tmp_path / "out")
    files = CheckpointReader(tmp_path / "out").files
    assert sum(file.stat().st_size for file in files) <= assignment["bytes"]


def test_predictions_are_of_the_choices(tiny_llama: Path) -> None:
    data = found(str(tiny_llama), *SMALL, "--target-size", "150KiB")
    assignment, total = data["assignment"], 0.0
    assert assignment["bytes"] <= 150 * 1024
    for unit in data["units"]:
        total += next(c["kl"] for c in unit["choices"] if c["scheme"] == unit["chosen"])
    assert assignment["kl_predicted"] == pytest.approx(total)
    assert assignment["kl_together"] == pytest.approx(total, rel=1)


def test_less_harm_takes_more_bytes(tiny_llama: Path) -> None:
    sizes = []
    for limit in (1e-3, 1e-2):
        assignment = found(str(tiny_llama), *SMALL, "--max-kl", str(limit))["assignment"]
        assert assignment["kl_predicted"] <= limit
        sizes.append(assignment["bytes"])
    assert sizes[0] > sizes[1]


def test_both_scores_answer(tiny_llama: Path) -> None:
    measured = found(str(tiny_llama), *SMALL, "--score", "kl")
    assert measured["score"] == "kl"
    for unit in measured["units"]:
        four, eight, sixteen = (choice["kl"] for choice in unit["choices"])
        assert four > eight > sixteen == 0


def test_what_the_engine_cannot_run_is_left_out_and_told(tiny_llama: Path) -> None:
    options = [*SMALL[:4], "--gpu", "cpu-avx512", "--schemes", "W4A16:32,W8A16:32"]
    result = runner.invoke(app, [str(tiny_llama), *options, "--json"], catch_exceptions=False)
    assert "W8A16:32 left out on vllm, cpu-avx512: no kernel" in " ".join(result.stderr.split())
    data = json.loads(result.stdout)
    assert [*data["left_out"]] == ["W8A16:32"]
    assert {c["scheme"].split()[0] for unit in data["units"] for c in unit["choices"]} == {"W4A16", "16"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--target-bits", "4", "--max-kl", "1"], UsageError, "--target-bits and --max-kl exclude"),
        (["--target-bits", "0"], UsageError, "must be above 0"),
        (["--target-bits", "nan"], UsageError, "must be above 0"),
        (["--target-size", "huge"], UsageError, "'huge' is not a size"),
        (["--target-bits", "3"], UsageError, "smallest with these schemes is --target-bits 4.5"),
        (["--target-size", "10KiB"], UsageError, "smallest with these schemes is --target-size 0.1"),
        (["--target-bits", "16"], UsageError, "16-bit model itself"),
        (["--schemes", "W4A16:48"], UsageError, "groups of 48 do not divide"),
        (["--schemes", "W5A99"], UnknownNameError, "Unknown scheme"),
        (["--engine", "vlllm"], UnknownNameError, "vllm"),
        (["--gpu", "h1000"], UnknownNameError, "h100"),
        (["--method", "gptq+rtn"], RecipeError, "then one rounder"),
        (["-o", "recipe.yaml"], UsageError, "without a target"),
        (["-o", "nowhere/recipe.yaml", "--target-bits", "5"], OutputError, "is not a folder"),
    ],
)
def test_what_cannot_work_is_one_message(
    tiny_llama: Path, options: list[str], error: type[QDeployError], words: str
) -> None:
    result = runner.invoke(app, [str(tiny_llama), *SMALL, *options])
    assert isinstance(result.exception, error)
    assert words in str(result.exception)
    assert result.exception.exit_code == 2


def test_a_recipe_that_is_there_is_kept(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("edited")
    result = runner.invoke(app, [str(tiny_llama), *SMALL, "--target-bits", "5", "-o", str(path)])
    assert isinstance(result.exception, OutputError)
    assert path.read_text() == "edited"


def test_what_does_not_fit_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 20)
    result = runner.invoke(app, [str(tiny_llama), *SMALL])
    assert isinstance(result.exception, ResourceError)
    assert "Measuring needs" in str(result.exception)
    assert "1.00 MiB are free" in str(result.exception)
