"""What every decoder block is called with, recorded from the model's own forward.

The blocks' forwards are replaced by recorders that hand the hidden states on, so the model itself makes the
masks and rotary embeddings, and each block keeps its own: models with sliding windows call their layers with
different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.errors import CheckpointError
from qdeploy.memory import Budget
from qdeploy.modeling.activations import Activations, micro_batches
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.followed import states_together
from qdeploy.modeling.skeleton import materialize, materialize_buffers, release


@dataclass(frozen=True, slots=True)
class BlockCall:
    """The arguments of a block after its hidden states: the same for all samples of one length.

    They are recorded with a batch of one and broadcast over larger ones.
    """

    block: Block
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, states: Tensor) -> Tensor:
        """Run the block on hidden states [B, T, D]."""
        output: Tensor | tuple[Tensor, ...] = self.block.module(states, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class _Stop(Exception):
    """Ends a forward whose rest is of no use."""


@contextmanager
def stopped() -> Iterator[Callable[[], None]]:
    """Yields a function that, called anywhere inside, ends the block at once."""

    def stop() -> None:
        raise _Stop

    with suppress(_Stop):
        yield stop


def enter(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    reader: CheckpointReader,
    device: torch.device,
    spill: Path,
    budget: Budget,
    *,
    every: int | None = None,
) -> tuple[list[BlockCall], Activations]:
    """The call of every block and the hidden states that enter the first one, for tokens int64 [S, T].

    What lies before the blocks is in memory meanwhile, the output head is not. `spill` and `budget` are as in
    `Activations`, which a `Reference` is to share that follows one in `every` samples; None if there is
    none.

    Raises:
        CheckpointError: a weight is not finite, or the blocks do not form a plain stack.
        OutputError: the disk is full.
    """
    inside = {id(parameter) for block in blocks for parameter in block.module.parameters()}
    before = {id(parameter) for parameter in model.base_model.parameters()} - inside
    names = [name for name, parameter in model.named_parameters() if id(parameter) in before]
    materialize_buffers(model, reader, device)
    materialize(model, names, reader, device)
    calls = record_calls(model, blocks, tokens, device)
    activations = embed(model, blocks, tokens, device, spill, budget, every=every)
    release(model, names)
    return calls, activations


def record_calls(
    model: Any, blocks: Sequence[Block], tokens: Tensor, device: torch.device
) -> list[BlockCall]:
    """The call of every block. The parameters outside the blocks must be materialized.

    Args:
        tokens: int64 [S, T]. The first two samples are used: arguments that differ between them belong to
            tokens and not to positions, and could not be shared.

    Raises:
        CheckpointError: the blocks do not form a plain stack.
    """
    first, second = (
        _record(model, blocks, tokens[i : i + 1].to(device)) for i in (0, min(1, len(tokens) - 1))
    )
    for a, b in zip(first, second, strict=True):
        if not _equal((a.args, a.kwargs), (b.args, b.kwargs)):
            raise CheckpointError(
                f"Unknown architecture: {type(model).__name__} calls {a.block.name} with more than hidden "
                "states that depend on the tokens, so it cannot be run block by block."
            )
    return first


def _record(model: Any, blocks: Sequence[Block], tokens: Tensor) -> list[BlockCall]:
    calls: list[BlockCall] = []
    handed: list[Tensor] = []
    with stopped() as stop:

        def recorder(block: Block) -> Callable[..., Tensor]:
            def forward(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                if handed and handed[-1] is not states:
                    raise CheckpointError(
                        f"Unknown architecture: {type(model).__name__} changes the hidden states before "
                        f"{block.name}, so it cannot be run block by block."
                    )
                handed.append(states)
                calls.append(BlockCall(block, args, kwargs))
                if block is blocks[-1]:
                    stop()
                return states

            return forward

        with replaced_forwards(blocks, recorder):
            model.base_model(input_ids=tokens, use_cache=False)
    return calls


def embed(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    device: torch.device,
    spill: Path,
    budget: Budget,
    *,
    every: int | None = None,
) -> Activations:
    """The hidden states that enter the first block, for tokens int64 [S, T].

    `spill`, `budget` and `every` are as in `enter`.
    """
    activations: Activations | None = None
    for samples in micro_batches(*tokens.shape):
        states = _first_states(model, blocks, tokens[samples].to(device))
        if activations is None:
            shape = (len(tokens), *states.shape[1:])
            together = states_together(shape, every)
            activations = Activations(shape, spill, budget, together)
        activations[samples] = states
    assert activations is not None, "no calibration samples"
    return activations


def _first_states(model: Any, blocks: Sequence[Block], tokens: Tensor) -> Tensor:
    received: list[Tensor] = []
    with stopped() as stop:

        def receiver(_: Block) -> Callable[..., None]:
            def forward(states: Tensor, *_: Any, **__: Any) -> None:
                received.append(states)
                stop()

            return forward

        with replaced_forwards(blocks[:1], receiver):
            model.base_model(input_ids=tokens, use_cache=False)
    return received[0]


@contextmanager
def replaced_forwards(blocks: Sequence[Block], make: Callable[[Block], Callable[..., Any]]) -> Iterator[None]:
    """Let `make(block)` run in the place of each block's forward for the time of a `with`."""
    # On the instance, so that attributes of the block that the model reads stay where they are.
    modules: list[nn.Module] = [block.module for block in blocks]
    try:
        for block in blocks:
            block.module.forward = make(block)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
