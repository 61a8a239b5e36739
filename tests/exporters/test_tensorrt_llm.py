import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from qdeploy.cli.main import build
from qdeploy.errors import ExportError, OutputError, UsageError
from qdeploy.exporters.reference import write_dequantized
from qdeploy.exporters.tensorrt_llm import TensorRTLLMExporter
from qdeploy.formats.dequantize import dequantized_state
from qdeploy.formats.packed import Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.schemes import PRESETS, Scheme, preset
from tests.conftest import save_tiny
from tests.packed import edit_tensors
from tests.qdeploy.test_pipeline import recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that groups of 64 and blocks of 128 divide."""
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", hidden_size=128, head_dim=32)


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., Path]:
    def quantized(scheme: str = "W4A16", group: str | None = "64", **more: Any) -> Path:
        size = group if scheme.startswith("W4A16") else None
        quantize(recipe(model, scheme=scheme, method="rtn", group_size=size, **more), tmp_path / "packed")
        return tmp_path / "packed"

    return quantized


def export(source: Path, output: Path, gpu: str = "h100", **more: Any) -> Any:
    return TensorRTLLMExporter().export(source, output, gpu=gpu, **more)


@pytest.mark.parametrize(
    ("scheme", "gpu", "algorithm"),
    [
        ("W4A16", "a100", "W4A16_AWQ"),
        ("W4A16", "h100", "W4A16_AWQ"),
        ("FP8", "l40s", "FP8"),
        ("FP8", "b200", "FP8"),
        ("FP8_DYNAMIC", "h100", "FP8_PER_CHANNEL_PER_TOKEN"),
        ("FP8_BLOCK", "h200", "fp8_pb_wo"),
    ],
)
def test_what_it_runs_is_written_in_its_format(
    make: Callable[..., Path], tmp_path: Path, scheme: str, gpu: str, algorithm: str
) -> None:
    source, output = make(scheme), tmp_path / "deploy"
    report = export(source, output, gpu)
    assert report.kernels == {algorithm: 14}
    file = json.loads((output / "hf_quant_config.json").read_text())
    assert file["quantization"]["quant_algo"] == algorithm
    before, after = dict(dequantized_state(source)), dict(dequantized_state(output))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=output, check=True)
    assert "deploy/serve.sh    # needs trtllm-serve; not run by" in (output / "README.md").read_text()
    told = [finding.problem for finding in report.findings if finding.severity == "info"]
    assert told == ["follows TensorRT-LLM's loader by its source; this project has not run it"]


@pytest.mark.parametrize(
    ("scheme", "group", "gpu", "told"),
    [
        ("W4A16", "64", "b200", r"W4A16_AWQ runs on sm80 to sm90, not on b200 \(sm100\)"),
        ("W4A16", "64", "t4", "not on t4"),
        ("W4A16", "32", "h100", "takes groups of 64 or 128, not of 32"),
        ("W4A16_ASYM", "64", "h100", "no zero points; W4A16 goes without"),
        ("W8A8", None, "h100", "ModelOpt has no W8A8"),
        ("FP8_DYNAMIC", None, "l4", "FP8_PER_CHANNEL_PER_TOKEN runs on sm90 to sm90, not on l4"),
        ("NVFP4", None, "h100", "NVFP4 runs on sm100 and later, not on h100"),
        ("MXFP8", None, "b200", "no release of TensorRT-LLM up to .* has MXFP8"),
        ("MXFP4", None, "b200", "TensorRT-LLM does not load ModelOpt's mxfp4"),
        ("FP8", None, "cpu-avx512", "NVIDIA GPUs alone, not on cpu-avx512. Give --gpu"),
    ],
)
def test_what_it_does_not_run(
    make: Callable[..., Path], tmp_path: Path, scheme: str, group: str | None, gpu: str, told: str
) -> None:
    source = make(scheme, group)
    with pytest.raises(ExportError, match=told):
        export(source, tmp_path / "deploy", gpu)
    assert not list(tmp_path.glob("deploy*"))


def test_layers_without_a_kernel_can_be_dequantized(make: Callable[..., Path], tmp_path: Path) -> None:
    report = export(make("W4A16_ASYM"), tmp_path / "deploy", reference=True)
    assert report.quantized_layers == 0
    assert not Packed(CheckpointReader(tmp_path / "deploy")).schemes
    assert not list(tmp_path.glob("*.reference"))


def test_sixteen_bits_are_linked(model: Path, tmp_path: Path) -> None:
    report = export(model, tmp_path / "deploy")
    assert report.scheme == "16-bit"
    weights = "model.safetensors"
    assert (tmp_path / "deploy" / weights).samefile(model / weights)
    with pytest.raises(ExportError, match="NVIDIA GPUs alone"):
        export(model, tmp_path / "cpu", "cpu-avx512")


def test_fused_layers_must_agree_on_their_divisor(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make("NVFP4")
    shards = [
        f
        for f in source.glob("*.safetensors")
        if "model.layers.0.self_attn.q_proj.weight_packed" in _names(f)
    ]
    (shard,) = shards
    shard.rename(source / "model.safetensors")  # where edit_tensors looks
    name = "model.layers.0.self_attn.q_proj.weight_global_scale"
    edit_tensors(source, {name: torch.tensor([7.0])})
    (source / "model.safetensors").rename(shard)
    with pytest.raises(ExportError, match=r"qkv_proj: .* weight_global_scale differs: q_proj 7, k_proj \d"):
        export(source, tmp_path / "deploy", "b200")


def test_fused_layers_must_have_one_scheme(make: Callable[..., Path], tmp_path: Path) -> None:
    write_dequantized(make(), tmp_path / "mixed", {"model.layers.0.self_attn.q_proj": "for this test"})
    told = r"qkv_proj: run as one matrix, but their schemes differ: q_proj 16-bit, k_proj W4A16"
    with pytest.raises(ExportError, match=told):
        export(tmp_path / "mixed", tmp_path / "deploy", reference=True)


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def test_the_split_over_devices_is_checked(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make()
    export(source, tmp_path / "two", tensor_parallel=2)
    with pytest.raises(ExportError, match="cannot be split over 3 devices"):
        export(source, tmp_path / "three", tensor_parallel=3)
    with pytest.raises(UsageError, match="at least 1"):
        export(source, tmp_path / "none", tensor_parallel=0)


def test_launch_files(make: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "a folder"
    export(make(kv_cache="fp8"), output, tensor_parallel=2)
    echo = tmp_path / "trtllm-serve"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PORT": "9000"}
    script = [str(output / "serve.sh"), "--max_batch_size", "8"]
    told = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert told[:6] == ["serve", str(output), "--host", "127.0.0.1", "--port", "9000"]
    assert told[6:8] == ["--extra_llm_api_options", str(output / "llm_args.yaml")]
    assert told[8:14] == ["--backend", "pytorch", "--tp_size", "2", "--max_batch_size", "8"]
    options = yaml.safe_load((output / "llm_args.yaml").read_text())
    assert options["kv_cache_config"]["dtype"] == "fp8"
    service = yaml.safe_load((output / "compose.yaml").read_text())["services"]["tensorrt-llm"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["volumes"][0]["read_only"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == 2
    assert json.loads((output / "export.json").read_text())["engine"] == "tensorrt-llm"


def test_a_cache_in_fp8_runs_from_sm80_on(make: Callable[..., Path], tmp_path: Path) -> None:
    export(make(kv_cache="fp8"), tmp_path / "deploy", "a100")
    with pytest.raises(ExportError, match=r"on t4 .* there is no cache in FP8"):
        export(tmp_path / "packed", tmp_path / "older", "t4")


def test_a_used_folder_is_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        export(make(), tmp_path / "deploy")


def test_support_is_told_for_a_scheme() -> None:
    ask = TensorRTLLMExporter().support
    assert ask(preset("W4A16"), 4096, 4096, gpu="h100").kind == "converted"
    assert ask(preset("W4A16_ASYM"), 4096, 4096, gpu="h100").kind == "reference"
    assert all(ask(scheme, 4096, 4096, gpu="cpu").kind == "reference" for scheme in PRESETS.values())
    assert "groups of 64 or 128" in ask(Scheme("W4A16", 4, 32), 4096, 4096, gpu="h100").reason
    smooth = ask(preset("W8A8_STATIC"), 4096, 4096, gpu="a100")
    assert smooth.kind == "reference"
    assert smooth.reason.endswith("W8A8_SQ_PER_CHANNEL; --backend tensorrt does, up to 1.2.x")


def test_the_command(make: Callable[..., Path], tmp_path: Path) -> None:
    asked = [
        "export",
        str(make()),
        "--engine",
        "tensorrt-llm",
        "--gpu",
        "h100",
        "-o",
        str(tmp_path / "deploy"),
    ]
    result = CliRunner().invoke(build(), asked)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "deploy" / "serve.sh").stat().st_mode & 0o100
