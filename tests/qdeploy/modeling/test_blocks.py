"""Structure found in the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qdeploy.errors import CheckpointError
from qdeploy.modeling.blocks import Block, find_blocks, shared_inputs

SPLIT = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
GROUPS = {
    "llama": SPLIT,
    "mistral": SPLIT,
    "qwen2": SPLIT,
    "qwen3": SPLIT,
    "gemma3_text": SPLIT,
    "phi3": [["qkv_proj"], ["o_proj"], ["gate_up_proj"], ["down_proj"]],
}


@pytest.mark.parametrize("family", GROUPS)
def test_layers_that_share_an_input_are_found_in_running_order(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    blocks = find_blocks(model)
    assert [block.name for block in blocks] == [f"model.layers.{i}" for i in range(len(model.model.layers))]
    for block in blocks:
        groups = shared_inputs(block, lambda: model(torch.arange(12)[None], use_cache=False))
        assert [[name.rpartition(".")[2] for name in group] for group in groups] == GROUPS[family]
        assert {name for group in groups for name in group} == set(block.linears())


class Toy(nn.Module):
    """Two layers on one tensor that is changed in place between them, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        x.mul_(2)
        return y + self.second(x) + self.first(y)


def test_the_same_memory_with_other_content_is_another_input() -> None:
    toy = Toy()
    with torch.no_grad():
        groups = shared_inputs(Block("toy", toy), lambda: toy(torch.ones(1, 4)))
    assert groups == [["toy.first"], ["toy.second"]]


def test_the_longest_outermost_list_is_the_decoder() -> None:
    expert = [nn.ModuleList(nn.Linear(2, 2) for _ in range(8)) for _ in range(3)]
    model = nn.ModuleDict({"adapters": nn.ModuleList([Toy()]), "layers": nn.ModuleList(expert)})
    assert [block.name for block in find_blocks(model)] == ["layers.0", "layers.1", "layers.2"]


def test_a_model_without_blocks() -> None:
    with pytest.raises(CheckpointError, match="Unknown architecture: Linear has no list of decoder blocks"):
        find_blocks(nn.Linear(2, 2))


def test_blocks_whose_weights_are_elsewhere_are_refused() -> None:
    block = Toy()
    block.experts = nn.Parameter(torch.zeros(8, 16, 4))
    with pytest.raises(CheckpointError, match=r"only 8% of layers\.0 .* experts \[8, 16, 4\]"):
        find_blocks(nn.ModuleDict({"layers": nn.ModuleList([block])}))
