"""Experts with layers of their own compute what transformers' fused ones do, under the checkpoint's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from qdeploy.errors import CheckpointError
from qdeploy.modeling.blocks import find_blocks, shared_inputs
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.modeling.experts import matrices, split_experts
from qdeploy.modeling.skeleton import build_skeleton, materialize, materialize_buffers
from tests.conftest import EXPERT_FAMILIES, SHARED

CPU = torch.device("cpu")
TOKENS = torch.arange(48).reshape(2, 24)
LEAVES = {"mixtral": ("w1", "w3", "w2")}
ATTENTION = [["q_proj", "k_proj", "v_proj"], ["o_proj"]]

families = pytest.mark.parametrize("family", EXPERT_FAMILIES)


def load(folder: Path) -> tuple[CheckpointReader, Any]:
    reader = CheckpointReader(folder)
    model = build_skeleton(reader)
    materialize_buffers(model, reader, CPU)
    materialize(model, [name for name, _ in model.named_parameters()], reader, CPU)
    return reader, model


@pytest.fixture
def fused(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """family → folder of the tiny model with fused experts, as transformers names them."""

    def save(family: str) -> Path:
        folder = tmp_path / family
        model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype="auto")
        model.save_pretrained(folder, save_original_format=False)
        return folder

    return save


@families
@torch.no_grad()
def test_the_logits_are_those_of_transformers(tiny_model: Callable[[str], Path], family: str) -> None:
    reader, model = load(tiny_model(family))
    assert {name for name, _ in model.named_parameters()} == set(reader.names)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    torch.testing.assert_close(model(TOKENS).logits, expected(TOKENS).logits)


@families
def test_fused_checkpoints_are_read_as_if_they_were_not(
    tiny_model: Callable[[str], Path], fused: Callable[[str], Path], family: str
) -> None:
    folder = fused(family)
    assert any(name.endswith("experts.down_proj") for name in load_file(folder / SINGLE))
    split, _ = load(tiny_model(family))
    reader, _ = load(folder)
    assert set(reader.names) == set(split.names)
    for name in split.names:
        assert torch.equal(reader.get(name), split.get(name)), name
        assert reader.shape(name) == split.shape(name)


@families
@torch.no_grad()
def test_a_loaded_model_can_be_split(tiny_model: Callable[[str], Path], family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    before = model(TOKENS).logits
    split_experts(model)
    stored = load_file(tiny_model(family) / SINGLE)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name].float()), name
    torch.testing.assert_close(model(TOKENS).logits, before)


def test_weights_of_another_size_are_refused(fused: Callable[[str], Path]) -> None:
    folder = fused("mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 5}))
    with pytest.raises(CheckpointError, match=r"32 of 47 differ, .*block_sparse_moe\.gate"):
        build_skeleton(CheckpointReader(folder))


def test_experts_of_another_layout_are_refused(tmp_path: Path) -> None:
    """GPT-OSS has biases, and gate and up interleaved."""
    config = AutoConfig.for_model(
        "gpt_oss", **SHARED, num_local_experts=4, layer_types=["full_attention"] * 2
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert split_experts(model) == {}
    with pytest.raises(CheckpointError, match=r"only .*% of model\.layers\.1 is in linear layers"):
        find_blocks(model)


@families
@torch.no_grad()
def test_layers_of_one_expert_share_its_input_whether_tokens_choose_it_or_not(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    _, model = load(tiny_model(family))
    gate, up, down = LEAVES.get(family, ("gate_proj", "up_proj", "down_proj"))
    count = EXPERT_FAMILIES[family].get("num_experts", 4)
    block = find_blocks(model)[0]
    # Two tokens reach four experts at most.
    found = shared_inputs(block, lambda: model(torch.tensor([[1, 2]]), use_cache=False))
    groups = [[name.removeprefix(f"{block.name}.") for name in group] for group in found]
    assert [[name.rpartition(".")[2] for name in group] for group in groups[:2]] == ATTENTION
    experts = [group for group in groups if ".experts." in group[0]]
    path = experts[0][0].rsplit(".", 2)[0]
    assert experts == [
        group
        for i in range(count)
        for group in ([f"{path}.{i}.{gate}", f"{path}.{i}.{up}"], [f"{path}.{i}.{down}"])
    ]


@families
def test_routers_stay_in_16_bit(tiny_model: Callable[[str], Path], family: str) -> None:
    model = build_skeleton(CheckpointReader(tiny_model(family)))
    linears = {name for block in find_blocks(model) for name in block.linears()}
    kept = matrices(model).keys() - linears - {"lm_head"}
    moe = "block_sparse_moe" if family == "mixtral" else "mlp"
    layers = [0, 2] if family == "qwen3_moe" else [0, 1]
    gates = ("gate", "shared_expert_gate") if family == "qwen2_moe" else ("gate",)
    assert kept == {f"model.layers.{layer}.{moe}.{gate}" for layer in layers for gate in gates}
