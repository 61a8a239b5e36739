"""Stacks of methods, served by the real engine and verified."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.engines.vllm import VllmEngine
from qdeploy.provenance import cpu_flags
from tests.e2e.conftest import qdeploy

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        ("W8A8", "smoothquant+gptq"),
        ("W8A8_STATIC", "smoothquant+rtn"),
        ("W4A8", "smoothquant+gptq"),
        ("W4A16_ASYM", "awq+gptq"),
        ("FP8_DYNAMIC", "gptq"),
    ],
)
def test_a_stack_is_served_and_computes_what_the_checkpoint_says(
    model: Path, tmp_path: Path, scheme: str, method: str
) -> None:
    quantized, deploy = tmp_path / "quantized", tmp_path / "deploy"
    data = ["--samples", "8", "--sequence-length", "256"]
    how = ["--scheme", scheme, "--group-size", "auto", "--method", method]
    qdeploy("quantize", model, *how, *data, "-o", quantized)
    manifest = load_manifest(quantized)
    assert manifest is not None
    assert {module.method for module in manifest.modules} == {method}
    qdeploy("export", quantized, "--engine", "vllm", "-o", deploy)
    log = tmp_path / "engine.log"
    with VllmEngine().launch(deploy, log=log, arguments=["--max-model-len", "1024"]) as engine:
        result = json.loads(qdeploy("verify", deploy, "--url", engine.base_url, "--json").stdout)
    assert result["verify"]["verdict"] == "pass"
    assert result["verify"]["layers_checked"] == len(manifest.modules)


MIXED = """
model: {model}
calibration: {{samples: 8, sequence_length: 256}}
rules:
  - match: "re:model\\\\.layers\\\\.0\\\\..*"
    scheme: none
  - match: "re:.*mlp.*"
    scheme: {{bits: 4, group: 64, symmetric: true}}
    stages: [gptq]
  - match: Linear
    scheme: W8A8
    stages: [smoothquant, rtn]
"""


def test_several_schemes_in_one_model_are_served(model: Path, tmp_path: Path) -> None:
    quantized, deploy, file = tmp_path / "quantized", tmp_path / "deploy", tmp_path / "recipe.yaml"
    file.write_text(MIXED.format(model=model))
    qdeploy("quantize", "--recipe", file, "-o", quantized)
    manifest = load_manifest(quantized)
    assert manifest is not None
    assert {module.method for module in manifest.modules} == {"gptq", "smoothquant+rtn"}
    qdeploy("export", quantized, "--engine", "vllm", "-o", deploy)
    with VllmEngine().launch(deploy, log=tmp_path / "log", arguments=["--max-model-len", "1024"]) as engine:
        result = json.loads(qdeploy("verify", deploy, "--url", engine.base_url, "--json").stdout)
    assert result["verify"]["verdict"] == "pass"
    assert result["verify"]["layers_checked"] == 29 * 7


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="vLLM's cache in FP8 takes AVX-512")
def test_a_cache_in_fp8_is_read_by_the_scales_of_the_checkpoint(model: Path, tmp_path: Path) -> None:
    """And by no others: with keys read by scales that are not theirs, verify says so."""
    quantized, deploy = tmp_path / "quantized", tmp_path / "deploy"
    data = ["--samples", "8", "--sequence-length", "256", "--group-size", "auto", "--method", "rtn"]
    qdeploy("quantize", model, *data, "--kv-cache", "fp8", "-o", quantized)
    qdeploy("export", quantized, "--engine", "vllm", "-o", deploy)
    log = tmp_path / "engine.log"
    with VllmEngine().launch(deploy, log=log, arguments=["--max-model-len", "1024"]) as engine:
        asked = ["verify", "--url", engine.base_url, "--json"]
        result = json.loads(qdeploy(*asked, deploy).stdout)
        assert result["verify"]["verdict"] == "pass"
        assert "fp8" in log.read_text()
        for shard in quantized.glob("*.safetensors"):
            tensors = load_file(shard)
            clipped = {n: t / 4 if n.endswith("k_scale") else t for n, t in tensors.items()}
            save_file(clipped, shard, metadata={"format": "pt"})
        qdeploy(*asked, quantized, expect=1)
