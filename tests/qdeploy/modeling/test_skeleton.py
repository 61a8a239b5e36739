"""Models without their weights, and parts of them with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from qdeploy.errors import CheckpointError
from qdeploy.modeling import products
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.modeling.skeleton import (
    build_skeleton,
    materialize,
    materialize_buffers,
    materialized,
    release,
)

CPU = torch.device("cpu")


@pytest.fixture
def broken(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(tiny_llama, tmp_path / "broken")


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_parts_equal_the_model_that_transformers_loads(tiny_family: Path) -> None:
    reader = CheckpointReader(tiny_family)
    skeleton = build_skeleton(reader)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    expected = AutoModelForCausalLM.from_pretrained(tiny_family, dtype=torch.float32)
    split_experts(expected)

    materialize_buffers(skeleton, reader, CPU)
    for name, buffer in expected.named_buffers():
        assert torch.equal(skeleton.get_buffer(name), buffer), name
    for block in find_blocks(skeleton):
        materialize(skeleton, block.parameters, reader, CPU)
        for name in block.parameters:
            assert torch.equal(skeleton.get_parameter(name), expected.get_parameter(name)), name
        release(skeleton, block.parameters)
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_a_block_has_weights_and_fast_products_for_the_time_of_a_with(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: True)
    reader = CheckpointReader(tiny_llama)
    skeleton = build_skeleton(reader)
    block = find_blocks(skeleton)[0]
    name, linear = next(iter(block.linears().items()))
    x = torch.randn(4, linear.in_features)
    with pytest.raises(ValueError, match="inside"), materialized(skeleton, block, reader, CPU):
        assert torch.equal(linear.weight, reader.get(f"{name}.weight").float())
        assert torch.equal(linear(x), (x.bfloat16() @ linear.weight.bfloat16().T).float())
        raise ValueError("inside")
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert "forward" not in linear.__dict__


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_damaged_weight_is_named_and_counted(broken: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(broken / SINGLE)
    tensors[name][3, :5] = value
    save_file(tensors, broken / SINGLE)
    reader = CheckpointReader(broken)
    skeleton = build_skeleton(reader)
    first, second = find_blocks(skeleton)
    materialize(skeleton, first.parameters, reader, CPU)
    with pytest.raises(CheckpointError, match=rf"{name} in {broken} holds 5 NaN or infinite values of 8192"):
        materialize(skeleton, second.parameters, reader, CPU)


def test_an_unknown_architecture(broken: Path) -> None:
    change_config(broken, model_type="palimpsest")
    with pytest.raises(CheckpointError, match="Unknown architecture 'palimpsest'"):
        build_skeleton(CheckpointReader(broken))


def test_an_architecture_that_generates_no_text(broken: Path) -> None:
    change_config(broken, model_type="vit")
    with pytest.raises(CheckpointError, match="Unknown architecture 'vit'"):
        build_skeleton(CheckpointReader(broken))


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": "sixty"}, {"vocab_size": -1}, {"num_attention_heads": 0, "head_dim": None}]
)
def test_a_config_that_no_model_can_have(broken: Path, wrong: dict[str, Any]) -> None:
    change_config(broken, **wrong)
    with pytest.raises(CheckpointError, match=r"config\.json holds a value that no model can have"):
        build_skeleton(CheckpointReader(broken))


def test_weights_of_another_model(broken: Path) -> None:
    change_config(broken, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"9 of 30 differ, the first model\.layers\.2.*absent"):
        build_skeleton(CheckpointReader(broken))


def test_weights_of_another_size(broken: Path) -> None:
    change_config(broken, intermediate_size=256)
    with pytest.raises(CheckpointError, match=r"6 of 21 differ, .*\[256, 64\] \(shape \[128, 64\]\)"):
        build_skeleton(CheckpointReader(broken))


def test_a_quantized_model_is_refused(broken: Path) -> None:
    change_config(broken, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="already quantized"):
        build_skeleton(CheckpointReader(broken))


def test_a_buffer_that_nobody_can_compute_is_refused(tiny_llama: Path) -> None:
    reader = CheckpointReader(tiny_llama)
    skeleton = build_skeleton(reader)
    mask = nn.Module()
    mask.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    skeleton.model.add_module("mask", mask)
    with pytest.raises(CheckpointError, match=r"its buffer model\.mask\.table"):
        materialize_buffers(skeleton, reader, CPU)
