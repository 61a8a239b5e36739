"""Blocks called on their own compute what they compute inside the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qdeploy.errors import CheckpointError
from qdeploy.memory import Budget
from qdeploy.modeling import activations
from qdeploy.modeling.activations import states_bytes
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import embed, record_calls
from qdeploy.modeling.skeleton import build_skeleton, materialize, materialize_buffers

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(0))
"""Longer than Gemma's sliding window of 8."""


def load(folder: Path) -> Any:
    """The whole model, built as the walk builds it."""
    reader = CheckpointReader(folder)
    model = build_skeleton(reader)
    materialize_buffers(model, reader, CPU)
    materialize(model, [name for name, _ in model.named_parameters()], reader, CPU)
    return model


@torch.no_grad()
def test_block_by_block_equals_the_full_forward(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "BATCH_TOKENS", 48)
    reference = AutoModelForCausalLM.from_pretrained(tiny_family, dtype=torch.float32)
    inputs: list[Tensor] = []
    for layer in reference.model.layers:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    reference(TOKENS, use_cache=False)

    model = load(tiny_family)
    blocks = find_blocks(model)
    calls = record_calls(model, blocks, TOKENS, CPU)
    states = embed(model, blocks, TOKENS, CPU, tmp_path, Budget(10**9))
    assert len(calls) == len(inputs)
    for call, expected in zip(calls, inputs, strict=True):
        torch.testing.assert_close(states[:], expected)
        for samples in states.batches():
            states[samples] = call(states[samples])


@torch.no_grad()
def test_sliding_and_full_layers_keep_their_own_masks(tiny_model: Callable[[str], Path]) -> None:
    model = load(tiny_model("gemma3_text"))
    sliding, full, again = record_calls(model, find_blocks(model), TOKENS, CPU)
    assert torch.equal(sliding.kwargs["attention_mask"], again.kwargs["attention_mask"])
    states = torch.randn(2, 24, 64)
    other = full.block.module(states, *sliding.args, **sliding.kwargs)
    assert not torch.allclose(full(states), other, atol=1e-3)


@torch.no_grad()
def test_a_recorded_model_still_runs(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    before = model(TOKENS).logits
    record_calls(model, find_blocks(model), TOKENS, CPU)
    assert torch.equal(model(TOKENS).logits, before)


@torch.no_grad()
def test_arguments_that_depend_on_tokens_are_refused(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    forward = model.model.forward
    model.model.forward = lambda input_ids, **kwargs: forward(input_ids, extra=input_ids, **kwargs)
    with pytest.raises(CheckpointError, match="depend on the tokens"):
        record_calls(model, find_blocks(model), TOKENS, CPU)


@torch.no_grad()
def test_states_that_change_between_blocks_are_refused(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    with pytest.raises(CheckpointError, match=r"changes the hidden states before model\.layers\.1"):
        record_calls(model, find_blocks(model), TOKENS, CPU)


@torch.no_grad()
def test_states_spill_where_they_and_the_references_are_too_many(tiny_llama: Path, tmp_path: Path) -> None:
    model, shape = load(tiny_llama), (*TOKENS.shape, 64)
    blocks = find_blocks(model)
    enough = Budget(4 * states_bytes(shape))  # of which states get a quarter
    alone, shared = (embed(model, blocks, TOKENS, CPU, tmp_path, enough, every=every) for every in (None, 2))
    assert (alone.resident_bytes, shared.resident_bytes) == (states_bytes(shape), 0)
