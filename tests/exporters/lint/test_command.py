"""`qdeploy lint`: output for people and machines, exit codes, and the document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import qdeploy.exporters
from qdeploy.cli.main import build
from qdeploy.errors import CheckpointError, UnknownNameError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.pages import CHAPTERS, document
from qdeploy.exporters.lint.rule import RULES, rule
from qdeploy.exporters.lint.sarif import sarif
from tests.packed import edit_tensors

REPOSITORY = Path(qdeploy.exporters.__path__[0]).parent
MODULE = "model.layers.1.mlp.up_proj"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["lint", *map(str, arguments)])


@pytest.fixture
def broken(packed: Path) -> Path:
    """Two layers without scales."""
    edit_tensors(packed, {f"model.layers.{i}.mlp.up_proj.weight_scale": None for i in range(2)})
    return packed


def test_a_sound_folder(packed: Path) -> None:
    result = run(packed, "--deep")
    assert result.exit_code == 0
    assert result.output.strip().endswith("packed: nothing found")


def test_like_findings_are_told_once(broken: Path) -> None:
    result = run(broken)
    assert result.exit_code == 1
    first, last = result.output.strip().splitlines()
    assert first.startswith("QD201 error model.layers.0.mlp.up_proj: tensor weight_scale is missing.")
    assert first.endswith("(and 1 more of QD201)")
    assert last.endswith("packed: 2 errors")


def test_for_machines(broken: Path) -> None:
    result = run(broken, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    assert [(f["code"], f["severity"], f["module"]) for f in found] == [
        ("QD201", "error", f"model.layers.{i}.mlp.up_proj") for i in range(2)
    ]


def test_sarif(broken: Path, tmp_path: Path) -> None:
    assert run(broken, "--sarif", tmp_path / "found.sarif").exit_code == 1
    content = json.loads((tmp_path / "found.sarif").read_text())
    (log,) = content["runs"]
    assert content["version"] == "2.1.0"
    assert {rule["id"] for rule in log["tool"]["driver"]["rules"]} == set(RULES)
    result = log["results"][1]
    assert (result["ruleId"], result["level"]) == ("QD201", "error")
    assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == MODULE
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith(
        "packed/config.json"
    )


def test_sarif_calls_infos_notes_and_has_findings_of_no_module() -> None:
    (result,) = sarif(Path("x"), [Finding("info", "so it is", code="QD616")])["runs"][0]["results"]
    assert result["level"] == "note"
    assert "logicalLocations" not in result["locations"][0]


def test_the_engine_is_asked(packed: Path) -> None:
    assert run(packed, "--engine", "vllm", "--device", "cpu-avx512").exit_code == 0
    result = run(packed, "--engine", "vllm", "--gpu", "cpu-avx512", "--tp", 4)
    assert result.exit_code == 1
    assert "QD602" in result.output


def test_an_original_that_cannot_be_read(packed: Path, tmp_path: Path) -> None:
    result = run(packed, "--against", tmp_path / "nowhere")
    assert isinstance(result.exception, CheckpointError)


def test_the_original_of_another_model(packed: Path, tmp_path: Path, tiny_llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    tensors = load_file(tiny_llama / "model.safetensors")
    save_file({name: torch.randn_like(t.float()) for name, t in tensors.items()}, other / "model.safetensors")
    result = run(packed, "--against", other)
    assert result.exit_code == 1
    assert "QD311" in result.output


def test_explains(packed: Path) -> None:
    result = run("--explain", "qd205")
    assert result.exit_code == 0
    assert result.output.startswith("### QD205: A tensor is transposed")
    assert isinstance(run("--explain", "QD999").exception, UnknownNameError)


def test_the_document_is_what_the_rules_say() -> None:
    """`python -m qdeploy.exporters.lint.pages > docs/lint.md` writes it."""
    assert (REPOSITORY / "docs" / "lint.md").read_text() == document()


def test_codes_are_in_a_chapter_and_taken_once() -> None:
    assert {code[2] for code in RULES} == set(CHAPTERS)
    with pytest.raises(ValueError, match="QD205 is 'A tensor is transposed'"):
        rule("QD205", "error", "again", "")
