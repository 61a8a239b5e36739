from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qdeploy import registry
from qdeploy.cli.methods import methods
from qdeploy.errors import CheckpointError, UnknownNameError
from qdeploy.schemes import PRESETS
from tests.conftest import save_tiny

runner = CliRunner(env={"COLUMNS": "200"})
app = typer.Typer()
app.command()(methods)


def output_of(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def listed(*arguments: str) -> dict[str, Any]:
    return dict(json.loads(output_of(*arguments, "--json")))


def kinds(*arguments: str) -> dict[tuple[str, str], str]:
    return {(row["scheme"], row["device"]): row["kind"] for row in listed(*arguments)["schemes"]}


def test_every_method_and_every_scheme_on_every_engine_has_a_row() -> None:
    found = listed("--gpu", "h100", "--gpu", "cpu-avx2")
    assert [method["name"] for method in found["methods"]] == registry.names("methods")
    rows = {(row["scheme"], row["engine"], row["device"]) for row in found["schemes"]}
    engines, devices = registry.names("exporters"), ("h100", "cpu-avx2")
    assert rows == {
        (scheme, engine, device) for scheme in PRESETS for engine in engines for device in devices
    }
    assert all(row["reason"] for row in found["schemes"])
    assert found["broken"] == []


def test_what_a_scheme_is_depends_on_the_device() -> None:
    found = kinds("--gpu", "h100", "--gpu", "cpu-avx2")
    assert found["W4A16", "h100"] == found["W4A16", "cpu-avx2"] == "native"
    assert (found["W3A16", "h100"], found["W3A16", "cpu-avx2"]) == ("native", "reference")


def test_a_method_tells_what_it_needs_and_its_knobs() -> None:
    found = {method["name"]: method for method in listed()["methods"]}
    assert [found[name]["kind"] for name in ("gptq", "awq")] == ["rounder", "transform"]
    assert [found[name]["needs_calibration"] for name in ("rtn", "gptq", "awq", "autoround")] == [
        *(False, True, True, True)
    ]
    assert found["smoothquant"] == listed("smoothquant")
    assert listed("smoothquant")["knobs"] == [
        {
            "name": "alpha",
            "type": "float | None",
            "required": False,
            "default": None,
            "bounds": {"ge": 0, "le": 1},
            "description": "How much of the outliers moves into the weights; null searches, layer by layer.",
        }
    ]


def test_tables_hold_the_same() -> None:
    shown = output_of("--gpu", "h100")
    assert "Round to nearest: every" in shown
    assert "MacheteLinearKernel" in shown
    assert "> 0, ≤ 1" in output_of("gptq")


def test_an_unknown_name_says_what_is_near() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown method 'gtpq'\. Did you mean 'gptq'"):
        output_of("gtpq")
    with pytest.raises(UnknownNameError, match="Unknown GPU 'h1000'"):
        output_of("--gpu", "h1000")


def test_with_a_model_the_worst_layer_decides(tiny_llama: Path) -> None:
    # Machete wants multiples of 128 rows, which only gate and up have; Humming takes the others.
    rows = {row["scheme"]: row for row in listed("--gpu", "h100", "--model", str(tiny_llama))["schemes"]}
    assert rows["W4A16"]["stored"] == "W4A16 symmetric, group 64"
    assert "MacheteLinearKernel" in rows["W4A16"]["reason"]
    assert "HummingLinearKernel" in rows["W4A16"]["reason"]
    assert rows["NVFP4"]["stored"] == "NVFP4 e2m1, group 16"
    assert rows["FP8_BLOCK"]["kind"] == "reference"
    assert "groups of 128 columns do not divide" in rows["FP8_BLOCK"]["reason"]
    with pytest.raises(CheckpointError):
        output_of("--model", "no-such-folder")


def test_the_layer_without_a_kernel_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", intermediate_size=144)
    arguments = ["--gpu", "cpu-avx512", "--model", str(tmp_path)]
    rows = {row["scheme"]: row for row in listed(*arguments)["schemes"]}
    assert rows["W4A16"]["kind"] == "reference"
    assert rows["W4A16"]["reason"].startswith("model.layers.0.mlp.gate_proj [144, 64]: CPUWNA16LinearKernel")


BROKEN = """
[qdeploy.methods]
gptq = theirs:Config
typo = theirs.nothing:Config
function = theirs:function
alone = theirs:Config

[qdeploy.exporters]
engine = theirs.nothing:Exporter
"""


def qdeploy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "qdeploy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_a_broken_package_is_named_and_the_rest_is_listed(tmp_path: Path) -> None:
    installed = tmp_path / "theirs-0.3.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 0.3\n")
    (installed / "entry_points.txt").write_text(BROKEN)
    (tmp_path / "theirs.py").write_text(
        "from pydantic.dataclasses import dataclass\n@dataclass\nclass Config: ...\ndef function(): ...\n"
    )
    found = json.loads(qdeploy(tmp_path, "methods", "--json").stdout)
    assert [method["name"] for method in found["methods"]] == [
        name for name in registry.names("methods") if name != "gptq"
    ]
    assert {row["engine"] for row in found["schemes"]} == set(registry.names("exporters"))
    reasons = {entry["name"]: entry["reason"] for entry in found["broken"]}
    assert reasons["gptq"] == "several packages register the name"
    assert "importing theirs.nothing:Config failed (ModuleNotFoundError" in reasons["typo"]
    assert "importing theirs.nothing:Exporter failed (ModuleNotFoundError" in reasons["engine"]
    assert reasons["function"].startswith("it is no pydantic dataclass but <function")
    assert "no function beside Config is decorated with @rounder, @scaling or" in reasons["alone"]
    assert {entry["origin"] for entry in found["broken"]} - {"theirs 0.3"} == {"qdeploy 0.1.0 and theirs 0.3"}

    asked = qdeploy(tmp_path, "quantize", "model", "--method", "typo", "-o", "never")
    assert asked.returncode == 2
    assert asked.stderr.startswith("Error: The method 'typo' of theirs 0.3 cannot be used: importing")
    assert "Traceback" not in asked.stderr
