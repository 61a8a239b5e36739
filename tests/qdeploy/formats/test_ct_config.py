"""The `quantization_config` block: valid for compressed-tensors, and read back to the same schemes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import save_file

from qdeploy.errors import CheckpointError
from qdeploy.files import write_json
from qdeploy.formats.ct_config import module_schemes, quantization_config
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import PRESETS, Scheme

W4, W4_ASYM, W8A8 = PRESETS["W4A16"], PRESETS["W4A16_ASYM"], PRESETS["W8A8"]
MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]


def reader_of(folder: Path, block: Any, modules: list[str] = MODULES) -> CheckpointReader:
    """A checkpoint whose layers have scales, which is what makes them quantized."""
    tensors = {f"{module}.weight_scale": torch.ones(1) for module in modules}
    save_file(tensors | {"lm_head.weight": torch.ones(1)}, folder / "model.safetensors")
    write_json(folder / "config.json", {"quantization_config": block} if block else {})
    return CheckpointReader(folder)


def schemes_of(folder: Path, block: Any) -> dict[str, Scheme]:
    reader = reader_of(folder, block)
    return module_schemes(reader.config, reader)


@pytest.mark.parametrize(
    "schemes",
    [
        [W4, W4, W4],
        [replace(W4, group_size=None)] * 3,
        [W4_ASYM, W4_ASYM, W4_ASYM],
        [W8A8, W8A8, W8A8],
        [W8A8, W4, W4],
        [PRESETS["W3A16"], PRESETS["W3A16_ASYM"], PRESETS["W2A16_ASYM"]],
        [PRESETS["W8A16"], W4_ASYM, replace(W4, group_size=32)],
    ],
)
def test_block_is_valid_and_reads_back(schemes: list[Scheme], tmp_path: Path) -> None:
    assigned = dict(zip(MODULES, schemes, strict=True))
    block = quantization_config(assigned, ["lm_head"])
    parsed = QuantizationConfig.model_validate(block)
    assert len(parsed.config_groups) == len(set(schemes))
    assert parsed.quantization_status == "compressed"
    assert schemes_of(tmp_path, block) == assigned


def test_one_scheme_targets_every_linear_and_several_name_their_modules() -> None:
    one = quantization_config(dict.fromkeys(MODULES, W4), ["lm_head"])
    assert one["format"] == "pack-quantized"
    assert one["config_groups"]["group_0"]["targets"] == ["Linear"]
    two = quantization_config(dict(zip(MODULES, [W8A8, W4, W4], strict=True)), [])
    assert two["format"] == "mixed-precision"
    assert [group["targets"] for group in two["config_groups"].values()] == [MODULES[:1], MODULES[1:]]
    assert [group["format"] for group in two["config_groups"].values()] == ["int-quantized", "pack-quantized"]


def test_w8a8_rounds_activations_per_token() -> None:
    block = quantization_config(dict.fromkeys(MODULES, W8A8), [])
    inputs = QuantizationConfig.model_validate(block).config_groups["group_0"].input_activations
    assert (inputs.num_bits, inputs.strategy, inputs.dynamic, inputs.symmetric) == (8, "token", True, True)


def test_reads_the_block_that_llm_compressor_writes(tmp_path: Path) -> None:
    weights = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": 128,
        "num_bits": 4,
        "observer": "memoryless_minmax",
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": "group",
        "symmetric": True,
        "type": "int",
        "zp_dtype": None,
    }
    group = {"format": "pack-quantized", "targets": ["Linear"], "weights": weights, "input_activations": None}
    block = {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": "0.17.0",
    }
    assert schemes_of(tmp_path, block) == dict.fromkeys(MODULES, W4)


def test_the_narrowest_target_wins(tmp_path: Path) -> None:
    block = quantization_config(dict.fromkeys(MODULES, W4), [])
    regex = quantization_config(dict.fromkeys(MODULES, W8A8), [])["config_groups"]["group_0"]
    exact = quantization_config(dict.fromkeys(MODULES, W4_ASYM), [])["config_groups"]["group_0"]
    block["config_groups"] |= {
        "a": regex | {"targets": ["re:.*mlp.*"]},
        "b": exact | {"targets": [MODULES[2]]},
    }
    assert schemes_of(tmp_path, block) == dict(zip(MODULES, [W4, W8A8, W4_ASYM], strict=True))


def test_a_16_bit_checkpoint_has_no_schemes(tmp_path: Path) -> None:
    assert schemes_of(tmp_path, None) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quantized with 'gptq'"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "preset 'W4A16'"),
        (
            {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
            r"config\.json is damaged .*'targets'",
        ),
        ({"config_groups": None}, r"config\.json is damaged"),
        ({"config_groups": {}}, "has packed weights, but no group"),
    ],
)
def test_refuses_what_it_cannot_read(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    block = quantization_config(dict.fromkeys(MODULES, W4), []) | changes
    with pytest.raises(CheckpointError, match=message):
        schemes_of(tmp_path, block)


@pytest.mark.parametrize(
    "weights",
    [
        {"type": "float"},
        {"num_bits": 8, "type": "float"},
        {"strategy": "tensor"},
        {"actorder": "group"},
        {"strategy": "block"},
        {"strategy": "attn_head"},
    ],
)
def test_refuses_other_number_formats(weights: dict[str, Any], tmp_path: Path) -> None:
    block = quantization_config(dict.fromkeys(MODULES, W4), [])
    block["config_groups"]["group_0"]["weights"] |= weights
    with pytest.raises(CheckpointError, match="group 'group_0' is none of"):
        schemes_of(tmp_path, block)
