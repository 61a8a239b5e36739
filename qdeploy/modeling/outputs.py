"""What the model makes of the hidden states that leave its last block: logits.

The model's own forward does it, with blocks that hand these states on, so that final norms, soft caps and
scales of logits are as the model has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import replaced_forwards
from qdeploy.modeling.skeleton import materialize, materialize_buffers, release

Head = Callable[[Tensor], Tensor]
"""Hidden states [B, T, D] → logits [B, T, V]; gradients flow through it."""


@contextmanager
def output_head(
    model: Any, blocks: Sequence[Block], reader: CheckpointReader, device: torch.device
) -> Iterator[Head]:
    """What follows the blocks, with its weights in float32 for the time of a `with`.

    Raises:
        CheckpointError: a weight is not finite.
    """
    model.tie_weights()  # releasing what a head shares with the embedding parts them
    names = outside(model, blocks)
    materialize_buffers(model, reader, device)
    materialize(model, names, reader, device)
    model.tie_weights()
    try:
        yield lambda states: _logits(model, blocks, states)
    finally:
        release(model, names)
        model.tie_weights()


def outside(model: Any, blocks: Sequence[Block]) -> list[str]:
    """Names of the parameters that are in no block."""
    inside = {name for block in blocks for name in block.parameters}
    return [name for name, _ in model.named_parameters() if name not in inside]


def _logits(model: Any, blocks: Sequence[Block], states: Tensor) -> Tensor:
    def stand_in(block: Block) -> Callable[..., Tensor]:
        return lambda handed, *_, **__: states if block is blocks[-1] else handed

    # The tokens only say how many there are.
    tokens = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
    with replaced_forwards(blocks, stand_in):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
