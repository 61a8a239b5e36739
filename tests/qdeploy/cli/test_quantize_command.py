from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from qdeploy.cli import quantize, recipe
from qdeploy.errors import QDeployError
from qdeploy.recipe import Recipe

runner = CliRunner()
app = typer.Typer()
app.command("quantize")(quantize.quantize)
app.add_typer(recipe.app, name="recipe")
SMALL = ["--group-size", "auto", "--samples", "2", "--sequence-length", "32"]


def output_of(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def error_of(*arguments: str) -> str:
    with pytest.raises(QDeployError) as error:
        runner.invoke(app, list(arguments), catch_exceptions=False)
    assert error.value.exit_code == 2
    return str(error.value)


def test_quantize_writes_the_checkpoint_and_prints_the_manifest(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = json.loads(output_of("quantize", str(tiny_llama), *SMALL, "--json", "-o", str(out)))
    assert manifest == json.loads((out / "qdeploy.json").read_text())
    assert len(manifest["modules"]) == 14
    expected = Recipe.from_flags(
        str(tiny_llama), group_size="auto", calibration={"samples": 2, "sequence_length": 32}
    )
    assert manifest["recipe_sha256"] == expected.sha256()


def test_a_rotation_is_a_stage_like_others(tiny_llama: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--method", "rotation+gptq"]
    output_of("quantize", str(tiny_llama), *options, "-o", str(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "qdeploy.json").read_text())
    assert manifest["modules"][0]["method"] == "rotation+gptq"
    assert manifest["recipe"]["rules"][0]["stages"][0] == {"rotation": {"seed": 0, "r2": True}}
    assert "seed: 0" in output_of("recipe", "show", str(tiny_llama), *options)
    message = error_of("quantize", str(tiny_llama), "--method", "gptq+rotation", "-o", str(tmp_path / "x"))
    assert "put it first" in message


def test_a_model_that_cannot_be_rotated_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    options = [*SMALL, "--method", "rotation+rtn", "-o", str(tmp_path / "out")]
    message = error_of("quantize", str(tiny_model("gemma3_text")), *options)
    assert re.search(
        r"model\.layers\.0 computes something else .* 0\.001 is allowed.* Leave rotation out", message
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("W4A16", "as it is by vLLM on CUDA, vLLM on CPU, transformers:"),
        ("W3A16", "as it is by vLLM on CUDA, transformers:"),
        ("W2A16_ASYM", "as it is by vLLM on CUDA, transformers with"),
    ],
)
def test_the_summary_names_the_engines(tiny_llama: Path, tmp_path: Path, scheme: str, words: str) -> None:
    options = ["--scheme", scheme, "--group-size", "32", "--method", "rtn", "-o", str(tmp_path / "out")]
    shown = output_of("quantize", str(tiny_llama), *options)
    assert words in " ".join(shown.replace("│", " ").split())


def test_calibration_given_several_times_is_a_mixture(tiny_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("never twice the same. " * 100)
    options = ["--calibration", str(text), "--calibration", "builtin-prose@3", "--json"]
    shown = output_of(
        "quantize", str(tiny_llama), *SMALL, "--samples", "8", *options, "-o", str(tmp_path / "out")
    )
    found = json.loads(shown)["calibration"]
    assert found["source"] == f"{text}, builtin-prose@3"
    assert [(part["source"], part["samples"]) for part in found["parts"]] == [
        ("builtin-prose", 6),
        (str(text), 2),
    ]


def test_the_summary_shows_error_size_and_where_it_is_served(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = output_of("quantize", str(tiny_llama), *SMALL, "--method", "rtn", "-o", str(out))
    words = " ".join(shown.replace("│", " ").split())
    for part in ("14 layers", "relative error mean", "worst", "MB →", "export"):
        assert part in words


def test_a_recipe_file_and_flags_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe.from_flags("m").to_yaml())
    message = error_of("quantize", "--recipe", str(file), "--scheme", "W8A8", "--seed", "1", "-o", "out")
    assert "--scheme, --seed" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--scheme", "W4A61"], "Did you mean"),
        (["m", "--method", "gtpq"], "Did you mean 'gptq'"),
        (["m", "--group-size", "tiny"], "Group size 'tiny'"),
        ([], "No model"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in error_of("quantize", *arguments, "-o", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_recipe_show_prints_what_quantize_would_do(tmp_path: Path) -> None:
    shown = output_of("recipe", "show", "m", "--scheme", "W8A8", "--method", "rtn", "--samples", "9")
    assert Recipe.model_validate(yaml.safe_load(shown)) == Recipe.from_flags(
        "m", scheme="W8A8", method="rtn", calibration={"samples": 9}
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(shown)
    assert output_of("recipe", "show", "--recipe", str(file)) == shown
    as_json = output_of("recipe", "show", "--recipe", str(file), "--json")
    assert json.loads(as_json) == yaml.safe_load(shown)


def test_the_commands_import_nothing_heavy() -> None:
    code = (
        "import sys, qdeploy.cli.quantize, qdeploy.cli.recipe;"
        "print([m for m in ('torch', 'transformers', 'pydantic', 'numpy', 'yaml') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(("given", "found"), [(None, "1000"), ("7", "7")])
def test_idle_threads_sleep_soon_unless_the_user_wants_otherwise(given: str | None, found: str) -> None:
    """OpenMP reads the variable when torch loads it, so that it must be there before."""
    code = (
        "import os, sys\n"
        "from dataclasses import fields\n"
        "from qdeploy.cli.recipe_options import Asked, with_recipe\n"
        "def show(asked: Asked) -> None: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)\n"
        "with_recipe(show)(**{field.name: None for field in fields(Asked)})"
    )
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment = others if given is None else {**others, "GOMP_SPINCOUNT": given}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.split() == [found, "False"]
