"""VllmEngine around a server that prints what vLLM prints."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.bench.records import Engine
from qdeploy.engines import logs
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.environment import Device, Environment
from qdeploy.engines.vllm import VllmEngine
from qdeploy.errors import CheckpointError, EngineError, UsageError

Folder = Callable[..., Path]
QUANTIZED = {"quantization_config": {"quant_method": "compressed-tensors"}}
CONFIGURED = "(EngineCore pid=1) INFO Initializing a V1 LLM engine (v0) with config: quantization={},\n"
WEIGHT_ONLY = "INFO [compressed_tensors_wNa16.py:138] Using CPUWNA16LinearKernel for CompressedTensorsWNA16\n"
INT8 = "INFO [__init__.py:847] Selected CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8\n"


def test_a_16_bit_folder_is_served_and_described(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder(log=CONFIGURED.format("None"))
    with VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log") as engine:
        record = Engine(**engine.describe())
        assert engine.alive()
        assert Endpoint(engine.base_url).models() == [engine.model] == ["model"]
    assert not engine.alive()
    assert (record.kernel, record.quantization, record.local) == (None, None, True)
    assert record.checkpoint == str(folder)
    assert "--max-logprobs" in record.arguments


@pytest.mark.parametrize(
    ("version", "device", "host", "opened"),
    [
        ("0.32.0", "cuda", "127.0.0.1", True),
        ("0.33.1rc1.dev2+cu129", "cuda", "127.0.0.1", True),
        ("0.31.9", "cuda", "127.0.0.1", False),
        ("0.32.0", "cpu", "127.0.0.1", True),
        ("0.32.0", "cuda", "0.0.0.0", False),
    ],
)
def test_paths_for_scoring_are_open_to_this_machine_alone(
    model_folder: Folder,
    tiny_environment: Environment,
    tmp_path: Path,
    version: str,
    device: Device,
    host: str,
    opened: bool,
) -> None:
    environment = replace(tiny_environment, version=version, device=device)
    with VllmEngine(environment).launch(model_folder(), log=tmp_path / "log", host=host) as engine:
        for argument in ("--enable-scale-out", "--enable-prompt-tokens-details"):
            assert (argument in engine.arguments) is opened


def test_the_kernel_and_method_come_from_the_log(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder(QUANTIZED, log=CONFIGURED.format("compressed-tensors") + WEIGHT_ONLY)
    with VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log") as engine:
        assert engine.kernel == "CPUWNA16LinearKernel"
        assert engine.quantization == "compressed-tensors"


def test_a_quantized_model_served_unquantized_fails(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder(QUANTIZED, log=CONFIGURED.format("None"))
    with pytest.raises(EngineError, match="was served unquantized"):
        VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log")


def test_arguments_of_the_folder_come_before_those_of_the_call(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder()
    written = {"engine": "vllm", "arguments": ["--served-model-name", "mine", "--dtype", "bfloat16"]}
    (folder / "engine_args.json").write_text(json.dumps(written))
    with VllmEngine(tiny_environment).launch(
        folder, log=tmp_path / "log", arguments=["--dtype", "float16"]
    ) as engine:
        assert engine.model == "mine"
        assert engine.arguments[-4:] == ["--dtype", "bfloat16", "--dtype", "float16"]


def test_a_folder_exported_for_another_engine_is_refused(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder()
    (folder / "engine_args.json").write_text('{"engine": "tensorrt-llm", "arguments": []}')
    with pytest.raises(EngineError, match="exported for 'tensorrt-llm'"):
        VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log")


def test_what_is_no_model_folder_is_refused(tiny_environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        VllmEngine(tiny_environment).launch(tmp_path, log=tmp_path / "log")


def test_a_taken_port_is_refused_before_anything_starts(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(UsageError, match=f":{port}: Address already in use"):
            VllmEngine(tiny_environment).launch(model_folder(), log=tmp_path / "log", port=port)
    assert not (tmp_path / "log").exists()


def test_an_engine_that_loads_but_cannot_answer_fails(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdeploy.engines.transport.BACKOFF_S", 0.01)
    crash = "AttributeError: '_C' object has no attribute 'cpu_gemm_wna16'"
    folder = model_folder(QUANTIZED, log=WEIGHT_ONLY, crash=crash)
    with pytest.raises(EngineError, match=r"fails on the first request\.\n  AttributeError: .*gemm_wna16"):
        VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log")


@pytest.mark.parametrize("argument", ["--port", "--api-key=secret"])
def test_arguments_that_belong_elsewhere_are_refused(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path, argument: str
) -> None:
    with pytest.raises(UsageError, match="cannot be given to vLLM") as caught:
        VllmEngine(tiny_environment).launch(model_folder(), log=tmp_path / "log", arguments=[argument, "1"])
    assert "secret" not in str(caught.value)


def test_an_engine_that_dies_names_the_cause(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder(die="ValueError: head size 7 is not supported")
    with pytest.raises(EngineError, match=r"died while starting.*\n.*head size 7"):
        VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log")


def test_a_server_with_a_key_of_its_own_gets_ready(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with VllmEngine(tiny_environment).launch(model_folder(key="secret"), log=tmp_path / "log") as engine:
        assert engine.model == "model"


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("Using MarlinLinearKernel for AutoGPTQLinearMethod", "MarlinLinearKernel"),
        (INT8 + INT8 + WEIGHT_ONLY, "CPUInt8ScaledMMLinearKernel, CPUWNA16LinearKernel"),
        ("Using CutlassNvFp4LinearKernel for NVFP4 GEMM", "CutlassNvFp4LinearKernel"),
        ("Using 'MARLIN' Mxfp4 MoE backend.", "MARLIN"),
        ("Using TRITON Unquantized MoE backend out of potential backends: []", None),
        ("Using Flash Attention backend. Using LBHNC KV cache layout.", None),
    ],
)
def test_kernel_lines(log: str, found: str | None) -> None:
    assert logs.kernels(log) == found


def test_a_damaged_shard_is_found_before_the_engine_starts(
    model_folder: Folder, tiny_environment: Environment, tmp_path: Path
) -> None:
    folder = model_folder()
    (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        VllmEngine(tiny_environment).launch(folder, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()
