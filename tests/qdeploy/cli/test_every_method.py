"""Every method and every number format by the command, as a user asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy import registry
from qdeploy.recipe import WHOLE
from qdeploy.schemes import PRESETS
from tests.qdeploy.cli.test_quantize_command import error_of, output_of

ROUNDERS = {"rtn", "gptq", "ldlq", "hqq", "spqr", "zeroquant", "autoround"}
STACKS = [
    *sorted(ROUNDERS),
    *WHOLE,
    "smoothquant+gptq",
    "awq+gptq",
    "awq+spqr",
    "awq+hqq",
    "rotation+smoothquant+gptq",
    "smoothquant+quip",
    "awq+autoround",
    "rotation+autoround",
]
SMALL = ["--samples", "2", "--sequence-length", "32", "--json"]


def made(model: Path, output: Path, *options: str) -> dict[str, Any]:
    output_of("quantize", str(model), *options, *SMALL, "-o", str(output))
    manifest: dict[str, Any] = json.loads((output / "qdeploy.json").read_text())
    return manifest


def test_no_method_is_left_out() -> None:
    used = {name for stack in STACKS for part in stack.split("+") for name in WHOLE.get(part, (part,))}
    assert set(registry.names("methods")) <= used


@pytest.mark.parametrize("stack", STACKS)
def test_every_method_quantizes(stack: str, wide: Path, tmp_path: Path) -> None:
    options = ["--scheme", "W4A16_ASYM", "--group-size", "16", "--method", stack]
    manifest = made(wide, tmp_path / "out", *options)
    asked = "+".join(name for part in stack.split("+") for name in WHOLE.get(part, (part,)))
    assert {module["method"] for module in manifest["modules"]} == {asked}
    dense = any(name in stack for name in ("spqr", "quip"))
    assert manifest["serving"] == ("reference" if dense else "native")
    assert all(module["relative_error"] < 0.1 for module in manifest["modules"])


@pytest.mark.parametrize("scheme", PRESETS)
def test_every_number_format_is_made(scheme: str, wide: Path, tmp_path: Path) -> None:
    manifest = made(wide, tmp_path / "out", "--scheme", scheme, "--group-size", "auto", "--method", "rtn")
    assert all(module["scheme"].startswith(f"{scheme} ") for module in manifest["modules"])
    assert {module["without_kernel"] for module in manifest["modules"]} == {None}


def test_what_does_not_go_together_is_said(wide: Path, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    told = error_of("quantize", str(wide), "--scheme", "FP8_DYNAMIC", "--method", "hqq", *out)
    assert "hqq cannot make FP8_DYNAMIC e4m3, per channel: it fits scales of integers" in told
    told = error_of("quantize", str(wide), "--scheme", "W8A8", "--method", "quip", *out)
    assert "take a scheme such as W4A16" in told
    told = error_of("quantize", str(wide), "--method", "incoherence+autoround", *out)
    assert "tunes layers as they run, not in another basis" in told
    told = error_of("quantize", str(wide), "--scheme", "MXFP4", "--method", "autoround", *out)
    assert "tunes the rounding of integers" in told
    assert not (tmp_path / "out").exists()
