"""Layers without a kernel: stored dequantized, and said to be so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdeploy.checkpoint.inspection import inspect_checkpoint
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.reference_linear import LARGEST, ReferenceLinear, portable
from tests.resuming import whole_and_resumed

CALIBRATION = {"samples": 4, "sequence_length": 32}


def recipe(model: Path, **flags: Any) -> Recipe:
    how = {"scheme": "W3A16_ASYM", "group_size": "16", "method": "spqr", "calibration": CALIBRATION} | flags
    return Recipe.from_flags(str(model), **how)


def test_portable_weights_survive_any_cast() -> None:
    weight = torch.cat([torch.randn(4096) * scale for scale in (1e-9, 1e-5, 1.0, 1e4, 1e9)])
    found = portable(weight)
    assert torch.equal(found.half().float(), found.float())
    assert found.abs().max() == LARGEST
    near = weight.abs().clamp_max(LARGEST)
    assert ((found.float().abs() - near).abs() <= near * 2**-8 + 2**-25).all()
    assert torch.equal(portable(found.float()), found)


def test_rows_divide_by_powers_of_two() -> None:
    layer, s = ReferenceLinear(portable(torch.randn(6, 8)), 4.0), torch.exp2(torch.arange(-3.0, 3.0))
    assert torch.equal(layer.divided_by(s).dequantize() * s[:, None], layer.dequantize())


@pytest.mark.parametrize(
    "method", ["spqr", "awq+spqr", "incoherence+ldlq", "smoothquant+incoherence+gptq", "incoherence+rtn"]
)
def test_the_folder_is_one_of_16_bits_that_says_what_it_is(
    method: str, tiny_llama: Path, tmp_path: Path
) -> None:
    manifest = quantize(recipe(tiny_llama, method=method), tmp_path / "out")
    source, made = CheckpointReader(tiny_llama), CheckpointReader(tmp_path / "out")
    assert "quantization_config" not in made.config
    assert sorted(made.names) == sorted(source.names)
    assert all(made.dtype(name) == source.dtype(name) for name in made.names)
    assert manifest["serving"] == "reference"
    layers = manifest["modules"]
    assert {layer["scheme"] for layer in layers} == {"W3A16_ASYM asymmetric, group 16, reference"}
    assert all("no kernel" in layer["without_kernel"] and 3.5 < layer["bits"] < 8 for layer in layers)
    for layer in layers:
        name = f"{layer['name']}.weight"
        assert not torch.equal(made.get(name), source.get(name))
    found = inspect_checkpoint(tmp_path / "out")
    assert found.manifest is not None
    assert found.manifest.serving == "reference"


def test_packed_layers_stand_beside_them(tiny_llama: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "re:.*mlp.*", "scheme": {"bits": 3, "group": 16, "symmetric": False}, "stages": ["spqr"]},
        {"match": "Linear", "scheme": {"bits": 4, "group": 32}, "stages": ["gptq"]},
    ]
    asked = Recipe.model_validate({"model": str(tiny_llama), "rules": rules, "calibration": CALIBRATION})
    quantize(asked, tmp_path / "out")
    block = CheckpointReader(tmp_path / "out").config["quantization_config"]
    assert {name.rpartition(".")[2] for name in block["ignore"]} == {
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    }


@pytest.mark.parametrize("method", ["awq+spqr", "smoothquant+incoherence+ldlq"])
def test_a_resumed_run_ends_in_the_same_bytes(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    asked = recipe(tiny_llama, method=method)
    whole, resumed = whole_and_resumed(asked, tmp_path)
    assert resumed == whole


def test_zeroquants_compensation_is_a_reference(tiny_llama: Path, tmp_path: Path) -> None:
    for rank, serving in ((0, "native"), (4, "reference")):
        stages = [{"zeroquant": {"rank": rank}}]
        rule = {"match": "Linear", "scheme": {"bits": 4, "group": 32}, "stages": stages}
        asked = Recipe.model_validate({"model": str(tiny_llama), "rules": [rule]})
        assert quantize(asked, tmp_path / str(rank))["serving"] == serving


def test_every_family_can_be_studied(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    for family in ("qwen3", "phi3"):
        quantize(recipe(tiny_model(family)), tmp_path / family)
        manifest = load_manifest(tmp_path / family)
        assert manifest is not None
        assert manifest.serving == "reference"
