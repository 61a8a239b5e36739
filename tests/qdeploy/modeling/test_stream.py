"""Who reads and writes the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qdeploy.errors import QuantizationError
from qdeploy.memory import Budget
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import enter
from qdeploy.modeling.skeleton import build_skeleton, materialized
from qdeploy.modeling.stream import Ends, Heads, Stream, find_ends, find_stream
from tests.conftest import save_tiny

CPU = torch.device("cpu")


def stream_of(folder: Path, tokens: int = 24) -> Stream:
    """Of the first block."""
    reader = CheckpointReader(folder)
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    ids = torch.arange(tokens)[None]
    calls, _ = enter(model, blocks, ids, reader, CPU, folder, Budget(10**9))
    states = torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), materialized(model, blocks[0], reader, CPU):
        return find_stream(calls[0], states)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_norms_are_read_by_what_follows_and_two_layers_write(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    found = stream_of(tiny_model(family))
    before, after = "input_layernorm", "post_attention_layernorm"
    assert found.norms == {before: 1.0, after: 1.0}
    assert found.readers == {
        **{f"self_attn.{leaf}_proj": before for leaf in "qkv"},
        "mlp.gate_proj": after,
        "mlp.up_proj": after,
    }
    assert found.writers == ["self_attn.o_proj", "mlp.down_proj"]
    assert found.heads == Heads("self_attn.v_proj", 0, 16, "self_attn.o_proj")


def test_value_heads_may_be_the_last_rows_of_a_fused_layer(tiny_model: Callable[[str], Path]) -> None:
    found = stream_of(tiny_model("phi3"))
    assert set(found.readers) == {"self_attn.qkv_proj", "mlp.gate_up_proj"}
    assert found.heads == Heads("self_attn.qkv_proj", 16 * (4 + 2), 16, "self_attn.o_proj")


def test_norms_that_add_one_to_their_weights_are_known(tiny_model: Callable[[str], Path]) -> None:
    assert set(stream_of(tiny_model("gemma3_text")).norms.values()) == {0.0}


def test_routers_gates_and_all_experts_read_what_the_norm_puts_out(
    tiny_model: Callable[[str], Path],
) -> None:
    # Four tokens leave experts out.
    for tokens in (4, 24):
        found = stream_of(tiny_model("qwen2_moe"), tokens)
        experts = [f"mlp.experts.{i}" for i in range(4)] + ["mlp.shared_expert"]
        reading = {f"{expert}.{leaf}_proj" for expert in experts for leaf in ("gate", "up")}
        assert {name for name, norm in found.readers.items() if norm == "post_attention_layernorm"} == (
            reading | {"mlp.gate", "mlp.shared_expert_gate"}
        )
        assert set(found.writers) == {"self_attn.o_proj"} | {f"{expert}.down_proj" for expert in experts}


def test_ends_are_found_with_heads_tied_or_not(tiny_model: Callable[[str], Path]) -> None:
    for family, tied in (("llama", False), ("qwen2", True)):
        model = build_skeleton(CheckpointReader(tiny_model(family)))
        found = find_ends(model, find_blocks(model))
        assert found == Ends("model.embed_tokens", "model.norm", "lm_head", tied)


def test_a_model_that_has_more_around_its_blocks_is_refused(tmp_path: Path) -> None:
    model = build_skeleton(CheckpointReader(save_tiny(tmp_path, "opt", word_embed_proj_dim=64, ffn_dim=64)))
    with pytest.raises(
        QuantizationError, match=r"OPTForCausalLM has model\.decoder\.embed_positions\.weight"
    ):
        find_ends(model, find_blocks(model))
