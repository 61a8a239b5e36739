"""Who feeds whom, found by running blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qdeploy.memory import Budget
from qdeploy.modeling.blocks import find_blocks, shared_inputs
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.feeds import Feed, find_feeds
from qdeploy.modeling.inputs import BlockCall, enter
from qdeploy.modeling.skeleton import build_skeleton, materialized
from tests.conftest import EXPERT_FAMILIES, FAMILIES

CPU = torch.device("cpu")
PLAIN = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.o_proj": "self_attn.v_proj",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.down_proj": "mlp.up_proj",
}
ATTENTION = {reader: feed for reader, feed in PLAIN.items() if reader.startswith("self_attn")}
EXPECTED = {
    **dict.fromkeys(FAMILIES, PLAIN),
    **dict.fromkeys(EXPERT_FAMILIES, ATTENTION),
    "gemma3_text": PLAIN | {"mlp.gate_proj": "pre_feedforward_layernorm"},
    "phi3": {
        "self_attn.qkv_proj": "input_layernorm",
        "self_attn.o_proj": "self_attn.qkv_proj",
        "mlp.gate_up_proj": "post_attention_layernorm",
        "mlp.down_proj": "mlp.gate_up_proj",
    },
}


def feeds(folder: Path) -> dict[str, Feed]:
    """Of the first block, by names within it."""
    reader = CheckpointReader(folder)
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    tokens = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(0))
    calls, states = enter(model, blocks, tokens, reader, CPU, folder, Budget(10**9))
    with torch.no_grad(), materialized(model, blocks[0], reader, CPU):
        groups = shared_inputs(blocks[0], lambda: calls[0](states[:1]))
        found = find_feeds(calls[0], states[:1], groups)
    prefix = f"{blocks[0].name}."
    return {
        reader.removeprefix(prefix): Feed(feed.name.removeprefix(prefix), feed.rows)
        for reader, feed in found.items()
    }


@pytest.mark.parametrize("family", EXPECTED)
def test_what_feeds_the_layers_of_each_family(tiny_model: Callable[[str], Path], family: str) -> None:
    found = {reader: feed.name for reader, feed in feeds(tiny_model(family)).items()}
    expected = EXPECTED[family]
    assert {reader: feed for reader, feed in found.items() if reader in expected} == expected
    assert all("expert" in reader for reader in found.keys() - expected.keys())


def test_channels_of_heads_that_share_a_value_head_are_one_row(tiny_llama: Path) -> None:
    rows = feeds(tiny_llama)["self_attn.o_proj"].rows.view(4, 16)  # query heads, width
    assert torch.equal(rows[0], torch.arange(16))
    assert torch.equal(rows[1], rows[0])
    assert torch.equal(rows[2], 16 + rows[0])
    assert torch.equal(rows[3], rows[2])


def test_in_matrices_stored_as_one_the_feed_is_the_last_rows(tiny_model: Callable[[str], Path]) -> None:
    found = feeds(tiny_model("phi3"))
    assert sorted(set(found["self_attn.o_proj"].rows.tolist())) == [*range(64 + 32, 64 + 64)]
    assert found["mlp.down_proj"].rows.tolist() == [*range(128, 256)]


def test_a_mixture_of_experts_is_not_run_for_every_two_layers(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    call = BlockCall.__call__

    def counted(self: BlockCall, states: torch.Tensor) -> torch.Tensor:
        runs.append(self)
        return call(self, states)

    monkeypatch.setattr(BlockCall, "__call__", counted)
    assert "mlp.experts.0.down_proj" in feeds(tiny_model("qwen3_moe"))
    # Twice to begin with, then q, o (v, at the first try) and down_proj of each of 8 experts.
    assert len(runs) == 2 + 2 + 8


def test_the_block_is_left_as_it_was(tiny_llama: Path) -> None:
    reader = CheckpointReader(tiny_llama)
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    tokens = torch.randint(0, 256, (1, 24))
    calls, states = enter(model, blocks, tokens, reader, CPU, tiny_llama, Budget(10**9))
    with torch.no_grad(), materialized(model, blocks[0], reader, CPU):
        before = dict(blocks[0].module.named_parameters())
        groups = shared_inputs(blocks[0], lambda: calls[0](states[:1]))
        find_feeds(calls[0], states[:1], groups)
        after = dict(blocks[0].module.named_parameters())
        assert all(after[name] is parameter for name, parameter in before.items())
        assert not any(module._forward_hooks for module in blocks[0].module.modules())
        assert not any(module._forward_pre_hooks for module in blocks[0].module.modules())
