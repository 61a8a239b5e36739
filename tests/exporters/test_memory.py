import re
from pathlib import Path

import pytest

from qdeploy.engines.vllm import CPU_KV_CACHE_GIB
from qdeploy.exporters.memory import CPU_CACHE_GIB, TENSORRT_LLM, VLLM, Engine, Fit, weights_per_device
from qdeploy.exporters.targets import GIB, TARGETS, Target
from qdeploy.formats.ct_config import KV_CACHE
from qdeploy.modeling.checkpoint import CheckpointReader
from tests.exporters.sparse import LLAMA3_8B, SMOLLM2, text_config, write_sparse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> CheckpointReader:
    return CheckpointReader(write_sparse(tmp_path_factory.mktemp("memory") / "llama", LLAMA3_8B))


def fit(reader: CheckpointReader, target: Target, engine: Engine = VLLM, devices: int = 1) -> Fit:
    return Fit(reader, text_config(LLAMA3_8B), engine, target, devices)


def test_weights_are_those_that_vllm_measures(llama: CheckpointReader) -> None:
    """14.96 and 7.48 GiB: https://github.com/vllm-project/vllm/pull/10511."""
    assert weights_per_device(llama, 1) == 2 * 8_030_261_248
    assert round(weights_per_device(llama, 1) / GIB, 2) == 14.96
    assert round(weights_per_device(llama, 2) / GIB, 2) == 7.48


def test_what_is_on_every_device_and_what_is_dealt_out(llama: CheckpointReader) -> None:
    norms = 2 * 65 * 4096
    heads = 32 * 2 * 2 * 4096 * 1024
    rest = 2 * 8_030_261_248 - norms - heads
    assert weights_per_device(llama, 8) == norms + heads // 8 + rest // 8
    assert weights_per_device(llama, 32) == norms + heads // 8 + rest // 32


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    reader = CheckpointReader(write_sparse(tmp_path / "smollm2", SMOLLM2))
    assert weights_per_device(reader, 1) == 2 * 134_515_008
    untied = write_sparse(tmp_path / "untied", SMOLLM2 | {"tie_word_embeddings": False})
    assert weights_per_device(CheckpointReader(untied), 1) == 2 * (134_515_008 + 49152 * 576)
    config = (untied / "config.json").read_text()
    (untied / "config.json").write_text(
        re.sub('"tie_word_embeddings": false', '"tie_word_embeddings": true', config)
    )
    assert weights_per_device(CheckpointReader(untied), 1) == 2 * 134_515_008


def test_float32_becomes_16_bits(tmp_path: Path) -> None:
    reader = CheckpointReader(write_sparse(tmp_path / "smollm2", SMOLLM2, dtype="F32"))
    assert weights_per_device(reader, 1) == 2 * 134_515_008


def test_what_vllm_has_for_its_cache(llama: CheckpointReader) -> None:
    h100 = TARGETS["h100"]
    assert h100.memory is not None
    found = fit(llama, h100)
    assert found.overhead == 2 * GIB + int(0.05 * h100.memory)
    assert found.cache == int(0.92 * h100.memory - found.weights - found.overhead)
    assert 51 * GIB < found.cache < 53 * GIB
    assert fit(llama, TARGETS["t4"]).cache == 0
    assert fit(llama, h100, devices=2).cache > found.cache + 7 * GIB


def test_tensorrt_llm_divides_what_is_free(llama: CheckpointReader) -> None:
    h100 = TARGETS["h100"]
    assert h100.memory is not None
    found = fit(llama, h100, TENSORRT_LLM)
    assert found.cache == int(0.9 * (h100.memory - found.weights - found.overhead))


def test_a_cache_in_fp8_is_half(llama: CheckpointReader, tmp_path: Path) -> None:
    block = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": KV_CACHE}
    folder = write_sparse(tmp_path / "fp8", LLAMA3_8B, quantization_config=block)
    assert fit(llama, TARGETS["h100"]).size.per_token == 131_072
    assert fit(CheckpointReader(folder), TARGETS["h100"]).size.per_token == 65_536


def test_windows_are_vllm_s_alone(llama: CheckpointReader) -> None:
    mistral = text_config(LLAMA3_8B | {"model_type": "mistral", "sliding_window": 4096})
    assert Fit(llama, mistral, VLLM, TARGETS["h100"], 1).size.windowed == 131_072
    assert Fit(llama, mistral, TENSORRT_LLM, TARGETS["h100"], 1).size.whole == 131_072


@pytest.mark.parametrize(
    ("target", "tokens"), [("t4", 4096), ("a100", 4096), ("h100", 16_384), ("h200", 16_384), ("b200", 32_768)]
)
def test_tokens_in_flight_are_two_batches(llama: CheckpointReader, target: str, tokens: int) -> None:
    assert fit(llama, TARGETS[target]).in_flight == tokens
    assert fit(llama, TARGETS[target], TENSORRT_LLM).in_flight == 0


def test_a_cpu_has_the_cache_that_it_is_told(llama: CheckpointReader) -> None:
    found = fit(llama, TARGETS["cpu-avx512"])
    assert (found.cache, found.overhead) == (2 * GIB, 0)
    # In float32, in which qdeploy serves where bfloat16 would be slow.
    assert found.size.per_token == 2 * 131_072


def test_the_cache_of_a_cpu_is_the_same_everywhere() -> None:
    image = (ROOT / "docker" / "vllm-cpu.Dockerfile").read_text()
    assert f"VLLM_CPU_KVCACHE_SPACE={CPU_CACHE_GIB}\n" in image
    assert str(CPU_CACHE_GIB) == CPU_KV_CACHE_GIB


@pytest.mark.parametrize("target", [target for target in TARGETS.values() if target.capability is not None])
def test_every_gpu_has_a_memory(target: Target) -> None:
    sold = {"t4": 16, "a100": 80, "a10": 24, "l4": 24, "l40s": 48, "rtx4090": 24, "h100": 80, "h200": 141}
    assert target.memory is not None
    # What CUDA gives out is between 85 % of what the card is sold with, in GiB, and all of it.
    gigabytes = sold.get(target.name, 192)
    assert 0.85 * gigabytes * GIB < target.memory <= gigabytes * GIB
