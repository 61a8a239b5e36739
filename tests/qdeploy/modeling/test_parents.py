"""What layers make together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdeploy.memory import Budget
from qdeploy.modeling.blocks import find_blocks, set_weight
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import enter
from qdeploy.modeling.parents import Parent
from qdeploy.modeling.skeleton import build_skeleton, materialized

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layers", "parent"),
    [
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn"),
        (("mlp.gate_proj", "mlp.up_proj"), "mlp"),
        (("mlp.down_proj",), "mlp.down_proj"),
        (("self_attn.q_proj", "mlp.up_proj"), ""),
    ],
)
def test_the_error_is_that_of_what_they_make_together(
    tiny_llama: Path, layers: Sequence[str], parent: str
) -> None:
    reader = CheckpointReader(tiny_llama)
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    calls, states = enter(model, blocks, tokens, reader, CPU, tiny_llama, Budget(10**9))
    block, call = blocks[0], calls[0]
    outputs: list[Tensor] = []

    def keep(_: object, __: object, y: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(y[0] if isinstance(y, tuple) else y)

    with torch.no_grad(), materialized(model, block, reader, CPU):
        linears = [block.linears()[f"{block.name}.{name}"] for name in layers]
        others = [1.1 * linear.weight for linear in linears]
        made = Parent(call, [f"{block.name}.{name}" for name in layers], [states[:1], states[1:]])
        assert made.error([linear.weight for linear in linears]) == 0
        found = made.error(others)
        assert made.error([linear.weight for linear in linears]) == 0  # they are as they were

        module = block.module.get_submodule(parent) if parent else block.module
        module.register_forward_hook(keep)
        call(states[:2])
        for linear, other in zip(linears, others, strict=True):
            set_weight(linear, other)
        call(states[:2])
    before, after = outputs
    assert found == pytest.approx(float((after - before).square().sum()), rel=1e-3)
