from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import shapes
from tests.qdeploy.sensitivity.problems import units_of


def test_every_layer_is_in_one_unit(tiny_family: Path) -> None:
    linears = shapes(find_blocks(build_skeleton(CheckpointReader(tiny_family))))
    units = units_of(tiny_family)
    assert Counter(name for unit in units for name in unit.layers) == Counter([*linears])
    assert {name: shape for unit in units for name, shape in unit.layers.items()} == linears
    assert len({unit.name for unit in units}) == len(units)
    assert sum(unit.weights for unit in units) == sum(n * k for n, k in linears.values())


def test_what_engines_fuse_is_one_unit(tiny_llama: Path) -> None:
    names = [unit.name.removeprefix("model.layers.1.") for unit in units_of(tiny_llama)][4:]
    assert names == [
        "self_attn.q_proj+k_proj+v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj+up_proj",
        "mlp.down_proj",
    ]
    qkv = units_of(tiny_llama)[0]
    assert qkv.kernel_shape == (64 + 32 + 32, 64)


@pytest.mark.parametrize(("family", "leaf", "experts"), [("mixtral", "w1", 4), ("qwen3_moe", "gate_proj", 8)])
def test_the_experts_of_a_block_are_one_unit(
    tiny_model: Callable[[str], Path], family: str, leaf: str, experts: int
) -> None:
    unit, *_ = [unit for unit in units_of(tiny_model(family)) if unit.experts]
    assert len(unit.layers) == 3 * experts
    assert sum(name.endswith(leaf) for name in unit.layers) == experts
    # The layers that put hidden states out are as wide as these.
    assert unit.kernel_shape[0] == 64


def test_a_shared_expert_is_no_expert(tiny_model: Callable[[str], Path]) -> None:
    names = [unit.name for unit in units_of(tiny_model("qwen2_moe")) if "shared_expert" in unit.name]
    assert "model.layers.0.mlp.shared_expert.gate_proj+up_proj" in names
