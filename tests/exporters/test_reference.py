"""Layers without a kernel are exported when asked for, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qdeploy.bench.integrity import check_integrity
from qdeploy.catalogue.store import Catalogue
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.conversion import convert
from qdeploy.errors import ExportError
from qdeploy.exporters.lint.linter import lint
from qdeploy.exporters.reference import dequantizing, write_dequantized
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.formats.compressed_tensors import read_linear
from qdeploy.formats.ct_config import module_schemes
from qdeploy.formats.dequantize import dequantized_state
from qdeploy.formats.packed import FORMATS, Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from tests.packed import W4A16, quantize_folder


def quantized(model: Path, output: Path, scheme: str, method: str, group: str) -> Path:
    calibration = {"samples": 4, "sequence_length": 32}
    flags = {"scheme": scheme, "method": method, "group_size": group, "calibration": calibration}
    quantize(Recipe.from_flags(str(model), **flags), output)
    return output


@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
def test_some_layers_of_another_tool_s_folder(format: str, tiny_llama: Path, tmp_path: Path) -> None:
    """What stays packed stays in its format, and without a manifest the report still says what happened."""
    quantize_folder(tiny_llama, tmp_path / "packed", W4A16)
    convert(tmp_path / "packed", tmp_path / format, format)
    modules = {f"model.layers.0.mlp.{leaf}_proj": "for this test" for leaf in ("gate", "up", "down")}
    write_dequantized(tmp_path / format, tmp_path / "mixed", modules)
    before, after = (dict(dequantized_state(tmp_path / name)) for name in (format, "mixed"))
    dense = {f"{module}.weight" for module in modules}
    rounded = {name: weight.bfloat16() if name in dense else weight for name, weight in before.items()}
    assert all(torch.equal(after[name], weight) for name, weight in rounded.items())
    packed = Packed(CheckpointReader(tmp_path / "mixed"))
    assert packed.format is FORMATS[format]
    assert (
        packed.schemes.keys() == Packed(CheckpointReader(tmp_path / format)).schemes.keys() - modules.keys()
    )
    assert not lint(tmp_path / "mixed", deep=True)
    with dequantizing(tmp_path / format, tmp_path / "out", 1, lambda layer: "none here") as (folder, found):
        assert [(finding.code, finding.problem[:9]) for finding in found] == [("QD610", "14 layers")]
        assert Packed(CheckpointReader(folder)).format is None
    assert not folder.exists()


def test_dequantized_layers_are_refused_unless_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    source = quantized(tiny_llama, tmp_path / "spqr", "W3A16_ASYM", "spqr", "16")
    with pytest.raises(ExportError, match=r"14 layers are dequantized to 16 bits: .* Give --reference"):
        VllmExporter().export(source, tmp_path / "no", gpu="h100")
    assert not (tmp_path / "no").exists()
    report = VllmExporter().export(source, tmp_path / "yes", gpu="h100", reference=True)
    assert [finding.severity for finding in report.findings if "dequantized" in finding.problem] == [
        "warning"
    ]
    check_integrity(tmp_path / "yes").require(tmp_path / "yes")
    with Catalogue() as catalogue:
        assert {entry.name for entry in catalogue.find() if entry.path.parent == tmp_path} == {"spqr", "yes"}


@pytest.mark.parametrize("scheme", ["W3A16", "W2A16_ASYM"])
def test_layers_without_a_kernel_are_dequantized_when_asked_for(
    scheme: str, tiny_llama: Path, tmp_path: Path
) -> None:
    source = quantized(tiny_llama, tmp_path / "packed", scheme, "gptq", "32")
    with pytest.raises(ExportError, match="no kernel on cpu-avx512"):
        VllmExporter().export(source, tmp_path / "no", gpu="cpu-avx512")
    report = VllmExporter().export(source, tmp_path / "yes", gpu="cpu-avx512", reference=True)
    packed, dense = CheckpointReader(source), CheckpointReader(tmp_path / "yes")
    assert "quantization_config" not in dense.config
    for name, kind in module_schemes(packed.config, packed).items():
        weight = read_linear(packed, name, kind).dequantize()
        assert torch.equal(dense.get(f"{name}.weight").float(), weight.bfloat16().float())
    manifest = load_manifest(tmp_path / "yes")
    assert manifest is not None
    assert manifest.serving == "reference"
    assert all(module.scheme.endswith(", reference") for module in manifest.modules)
    check_integrity(tmp_path / "yes").require(tmp_path / "yes")
    assert json.loads((tmp_path / "yes" / "export.json").read_text())["source"] == str(source)
    assert report.kernels == {}
    assert not list(tmp_path.glob("*.reference*"))


def test_only_the_layers_without_a_kernel_are(tiny_llama: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "re:.*down_proj", "scheme": {"bits": 3, "group": 32}, "stages": ["rtn"]},
        {"match": "Linear", "scheme": {"bits": 4, "group": 32}, "stages": ["rtn"]},
    ]
    quantize(Recipe.model_validate({"model": str(tiny_llama), "rules": rules}), tmp_path / "mixed")
    report = VllmExporter().export(tmp_path / "mixed", tmp_path / "yes", gpu="cpu-avx512", reference=True)
    assert report.quantized_layers == 12
    assert sum(report.kernels.values()) == 6
    assert [f.problem for f in report.findings if "2 layers are dequantized" in f.problem]


def test_a_checkpoint_without_a_manifest_is_too(packed: Path, tmp_path: Path) -> None:
    (packed / "qdeploy.json").unlink(missing_ok=True)
    report = VllmExporter().export(packed, tmp_path / "yes", gpu="cpu-avx512", reference=True)
    assert report.kernels
