"""`qdeploy inspect` on folders of qdeploy, of other tools, and in 16 bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from qdeploy.checkpoint.inspection import served_by
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.cli.main import build
from qdeploy.conversion import convert
from qdeploy.errors import CheckpointError
from qdeploy.formats import compressed_tensors
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import PRESETS, Scheme

W4 = Scheme("W4A16", 4, 32)
LAYERS = 14
ASYMMETRIC = "transformers with CompressedTensorsConfig(dequantize=True)"


def manifest(modules: list[str]) -> dict[str, Any]:
    """A manifest in which the error grows with the layer's position."""
    return {
        "provenance": {
            "created": "2026-01-01",
            "qdeploy": "0.1.0",
            "packages": {"torch": "2.13.0"},
        },
        "recipe": {},
        "recipe_sha256": "f" * 64,
        "calibration": {
            "source": "novel.txt",
            "sha256": "c" * 64,
            "samples": 16,
            "sequence_length": 128,
            "seed": 7,
            "parts": [
                {"source": "novel.txt", "samples": 12, "documents": 1, "sha256": "a" * 64},
                {"source": "c4", "samples": 4, "documents": 9, "sha256": "b" * 64},
            ],
        },
        "warnings": ["16 samples [of novel.txt] are few."],
        "model": {
            "source": "tiny",
            "sha256": "d" * 64,
            "architecture": "LlamaForCausalLM",
            "model_type": "llama",
            "parameters": 1,
            "dtype": "bfloat16",
        },
        "modules": [
            {
                "name": name,
                "scheme": W4.describe(),
                "method": "gptq",
                "shape": [1, 1],
                "relative_error": i / 1000,
                "damp": 0.01,
            }
            for i, name in enumerate(modules)
        ],
        "totals": {"source_bytes": 400, "output_bytes": 100, "seconds": 12.0, "peak_rss_bytes": 1},
    }


@pytest.fixture
def packed(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """The tiny Llama in W4A16, all codes zero."""
    source = CheckpointReader(tiny_model("llama"))
    modules = [name.removesuffix(".weight") for name in source.names if name.endswith("_proj.weight")]
    tensors = {name: source.get(name) for name in source.names if not name.endswith("_proj.weight")}
    for module in modules:
        n, k = source.shape(f"{module}.weight")
        codes, scales = torch.zeros(n, k, dtype=torch.uint8), torch.ones(n, k // 32, dtype=torch.bfloat16)
        layer = compressed_tensors.pack(QuantizedLinear(codes, scales, None, W4))
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in layer.items()}
    block = compressed_tensors.quantization_config(dict.fromkeys(modules, W4), ["lm_head"])
    with ShardWriter(tmp_path / "packed", ["all"]) as writer:
        writer.add_shard("all", tensors)
        writer.finish(source.config | {"quantization_config": block}, manifest(modules), source.folder)
    return tmp_path / "packed"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(build(), ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_accounts_for_every_byte(packed: Path, tiny_model: Callable[[str], Path]) -> None:
    found = json.loads(run(packed, "--json"))
    (use,) = found["schemes"]
    assert (use["scheme"], use["modules"]) == ("W4A16 symmetric, group 32", LAYERS)
    assert use["bits_per_weight"] == pytest.approx(4 + 16 / 32, abs=0.1)  # a shape is 16 bytes a layer
    assert found["bytes"] == sum(found["bytes_by_part"].values())
    files = sum(path.stat().st_size for path in packed.glob("*.safetensors"))
    assert 0 < files - found["bytes"] < 10_000  # the header
    plain = json.loads(run(tiny_model("llama"), "--json"))
    assert plain["parameters"] == found["parameters"]
    assert plain["bits_per_weight"] == 16
    assert plain["schemes"] == [] and plain["manifest"] is None


def test_table_lists_the_worst_layers_first(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    text = run(packed)
    assert "16 × 128 tokens of novel.txt (12), c4 (4), seed 7" in text
    assert "16 samples [of novel.txt] are few." in text
    assert f"Worst 10 of {LAYERS} layers" in text
    errors = [line.split("│")[3].strip() for line in text.splitlines() if "gptq" in line]
    assert errors == [f"{i / 1000:.3g}" for i in range(LAYERS - 1, LAYERS - 11, -1)]
    assert sum("gptq" in line for line in run(packed, "--modules").splitlines()) == LAYERS


def test_the_tree_shows_where_a_folder_is_from(packed: Path, tmp_path: Path) -> None:
    convert(packed, tmp_path / "gptq", "gptq")
    lines = run(tmp_path / "gptq").splitlines()
    assert any(line.startswith("├── Model: LlamaForCausalLM, ") for line in lines)
    assert any(line.startswith("├── Quantization: gptq, ") for line in lines)
    start = lines.index("├── Lineage")
    assert [line[8:] for line in lines[start + 1 : start + 4]] == [
        f"tiny, sha256 {'d' * 12}",
        f"quantized, 4.00× smaller, recipe sha256 {'f' * 12}",
        f"compressed-tensors, sha256 {CheckpointReader(packed).sha256[:12]} → gptq",
    ]
    assert lines[start + 4] == "├── Run"
    assert "└── Served by" in lines


def test_a_folder_of_another_tool_needs_no_manifest(packed: Path) -> None:
    (packed / "qdeploy.json").unlink()
    assert "W4A16 symmetric, group 32" in run(packed)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        run(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        run(tmp_path / "absent")


@pytest.mark.parametrize(
    ("schemes", "engines"),
    [
        (
            {PRESETS["W4A16_ASYM"]},
            ["vLLM on CUDA", "vLLM on CPU", ASYMMETRIC],
        ),
        ({W4}, ["vLLM on CUDA", "vLLM on CPU", "transformers"]),
        ({PRESETS["W8A16"]}, ["vLLM on CUDA", "transformers"]),
        ({PRESETS["W8A8"], W4}, ["vLLM on CUDA", "vLLM on CPU", "transformers"]),
        ({PRESETS["W8A8"], PRESETS["W8A16"]}, ["vLLM on CUDA", "transformers"]),
        ({PRESETS["W3A16"], PRESETS["W2A16"]}, ["vLLM on CUDA", "transformers"]),
        ({Scheme("W8A16_ASYM", 8, 128, symmetric=False)}, ["vLLM on CUDA", ASYMMETRIC]),
    ],
)
def test_an_engine_must_run_every_scheme(schemes: set[Scheme], engines: list[str]) -> None:
    assert served_by(schemes) == engines


BOTH, ELSEWHERE = ["vLLM on CUDA", "vLLM on CPU"], "transformers with gptqmodel"


@pytest.mark.parametrize(
    ("format", "scheme", "engines"),
    [
        ("gptq", "W4A16", [*BOTH, ELSEWHERE]),
        ("gptq", "W8A16", ["vLLM on CUDA", ELSEWHERE]),
        ("gptq", "W3A16", [ELSEWHERE]),
        ("gptq_v2", "W4A16_ASYM", [ELSEWHERE]),
        ("awq", "W4A16_ASYM", [*BOTH, ELSEWHERE]),
        ("modelopt", "W4A16", ["TensorRT-LLM"]),
        ("modelopt", "FP8_DYNAMIC", [*BOTH, "TensorRT-LLM"]),
        ("modelopt", "NVFP4", ["vLLM on CUDA", "TensorRT-LLM"]),
        ("modelopt", "MXFP4", []),
        ("fbgemm_fp8", "FP8_DYNAMIC", ["transformers with fbgemm-gpu"]),
        ("modelopt", "W8A8_STATIC", []),
        ("fp8", "FP8", ["vLLM on CUDA"]),
        ("fp8", "FP8_DYNAMIC", ["vLLM on CUDA"]),
        ("fp8", "FP8_BLOCK", ["vLLM on CUDA", "TensorRT-LLM", "transformers"]),
    ],
)
def test_an_engine_must_read_the_format(format: str, scheme: str, engines: list[str]) -> None:
    assert served_by({PRESETS[scheme]}, format) == engines
