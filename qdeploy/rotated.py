"""A 16-bit checkpoint in another basis of its residual stream; see `qdeploy.methods.rotation`.

The files stay as they are: tensors are turned as they are read, one at a time, in float64, and rounded to
their dtype once. Whatever runs on a checkpoint runs on this one, and nothing else needs to know of rotations.
Before that, one block of each kind and what is around the blocks are run as they are and turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import QuantizationError
from qdeploy.methods.hadamard import Orthogonal, random_hadamard
from qdeploy.methods.rotation import Rotation
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader, Edit
from qdeploy.modeling.inputs import BlockCall, record_calls, replaced_forwards
from qdeploy.modeling.norms import neutral
from qdeploy.modeling.parameters import replaced
from qdeploy.modeling.skeleton import COMPUTE_DTYPE, finite, materialize, materialize_buffers, release
from qdeploy.modeling.stream import Stream, find_ends, find_stream
from qdeploy.progress import warn

TOKENS = torch.arange(24)[None]
"""What a block and its turned self are compared on: 24 positions, so that an expert is chosen at least."""

TOLERANCE = 1e-3
"""Largest relative difference. Float32 leaves 1e-6; a norm or bias that does not turn along 1e-2 and more."""

PIECE = 1 << 22
"""Elements that are turned at once where rows are independent: embeddings in float64 are large."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Turn:
    """An edit of a matrix [N, K] or, rows alone, of a bias [N].

    Attributes:
        gain: float64 [K], what columns are multiplied by first; None for 1.
        columns: matrices that the columns are turned with, in order.
        rows: first row, and the matrix that rows from there on are turned with; in order.
    """

    gain: Tensor | None = None
    columns: tuple[Orthogonal, ...] = ()
    rows: tuple[tuple[int, Orthogonal], ...] = ()

    def __call__(self, tensor: Tensor) -> Tensor:
        """The turned tensor, computed in float64 and rounded once."""
        matrix = tensor.reshape(len(tensor), -1)
        size = len(matrix) if self.rows else max(1, PIECE // matrix.shape[1])
        turned = torch.empty_like(matrix)
        for piece, place in zip(torch.split(matrix, size), torch.split(turned, size), strict=True):
            place.copy_(self._turned(piece.double()))
        return turned.view_as(tensor)

    def _turned(self, x: Tensor) -> Tensor:
        if self.gain is not None:
            x = x * self.gain
        for q in self.columns:
            x = q.turn(x)
        for first, q in self.rows:
            x = torch.cat([x[:first], q.turn_rows(x[first:])])
        return x


def rotated(
    reader: CheckpointReader, model: Any, blocks: Sequence[Block], config: Rotation
) -> CheckpointReader:
    """The checkpoint that `reader` reads, turned; the head has weights of its own then.

    Args:
        model: its skeleton.
        blocks: its decoder blocks.

    Raises:
        QuantizationError: it would not compute the same.
    """
    with torch.no_grad():
        return _Rotating(reader, model, blocks, config).run()


class _Rotating:
    """Finding out what is to be turned, and proving it, for one model."""

    def __init__(
        self, reader: CheckpointReader, model: Any, blocks: Sequence[Block], config: Rotation
    ) -> None:
        self.reader, self.model, self.blocks, self.config = reader, model, blocks, config
        self.ends = find_ends(model, blocks)
        self.width = model.get_input_embeddings().embedding_dim
        self.generator = torch.Generator().manual_seed(config.seed)
        self.r1 = random_hadamard(self.width, self.generator)

    def run(self) -> CheckpointReader:
        """The turned checkpoint."""
        materialize_buffers(self.model, self.reader, CPU)
        states = torch.randn(1, TOKENS.shape[1], self.width, generator=torch.Generator().manual_seed(0))
        edits = self._prove_ends(states[0, :1])
        with self._embedding(states[0, :1]):
            calls = record_calls(self.model, self.blocks, TOKENS, CPU)
        streams: dict[object, Stream] = {}
        for call in calls:
            kind = _kind(call.block)
            if kind in streams:
                edits |= self._edits(call.block, streams[kind])
                continue
            with self._loaded(call.block):
                streams[kind] = stream = find_stream(call, states)
                if self.config.r2 and stream.heads is None:
                    warn(f"rotation: no value heads were found in {call.block.name}; R2 is left out there.")
                found = self._edits(call.block, stream)
                self._prove(call, states, found)
            edits |= found
        embeddings, head = f"{self.ends.embeddings}.weight", f"{self.ends.head}.weight"
        copies = {head: embeddings} if self.ends.tied else {}
        return self.reader.edited(edits, copies, {"tie_word_embeddings": False})

    def _edits(self, block: Block, stream: Stream) -> dict[str, Edit]:
        """Tensor → edit, for one block."""
        turns: dict[str, Turn] = {}
        gains = {norm: self._gain(f"{block.name}.{norm}.weight", one) for norm, one in stream.norms.items()}
        for name, norm in stream.readers.items():
            turns[f"{name}.weight"] = Turn(gains[norm], (self.r1,))
        for name in stream.writers:
            turns[f"{name}.weight"] = turns[f"{name}.bias"] = Turn(rows=((0, self.r1),))
        if self.config.r2 and stream.heads is not None:
            heads, r2 = stream.heads, random_hadamard(stream.heads.width, self.generator)
            for part in ("weight", "bias"):
                value = turns.get(f"{heads.value}.{part}", Turn())
                turns[f"{heads.value}.{part}"] = replace(value, rows=(*value.rows, (heads.first, r2)))
            read = f"{heads.reader}.weight"
            turns[read] = replace(turns[read], columns=(r2, *turns[read].columns))
        edits: dict[str, Edit] = {f"{norm}.weight": _filled(one) for norm, one in stream.norms.items()}
        full = {f"{block.name}.{name}": edit for name, edit in (edits | turns).items()}
        return {name: edit for name, edit in full.items() if name in self.reader}

    def _gain(self, norm: str, one: float) -> Tensor:
        """What a norm multiplies by, float64 [D]."""
        return finite(norm, self.reader).double() + (1 - one)

    @contextmanager
    def _loaded(self, block: Block) -> Iterator[None]:
        materialize(self.model, block.parameters, self.reader, CPU)
        try:
            yield
        finally:
            release(self.model, block.parameters)

    def _prove(self, call: BlockCall, states: Tensor, edits: Mapping[str, Edit]) -> None:
        """Run the block, whose weights are loaded, as it is and turned."""
        block, expected = call.block, call(states)
        for name, weight in block.module.named_parameters():
            if (edit := edits.get(f"{block.name}.{name}")) is not None:
                # One at a time: two blocks in float32 may be more than the walk ever holds.
                block.module.load_state_dict({name: edit(weight)}, strict=False, assign=True)
        found = call(self._turn(states))
        _compare(block.name, self._turn(expected - states), found - self._turn(states))

    def _prove_ends(self, embedding: Tensor) -> dict[str, Edit]:
        """The edits of what is around the blocks, tried with an embedding [1, D] and a head of four rows."""
        ends, norm = self.ends, self.model.get_submodule(self.ends.norm)
        one = neutral(norm, self.width)
        weight = f"{ends.norm}.weight"
        edits: dict[str, Edit] = {
            f"{ends.embeddings}.weight": Turn(columns=(self.r1,)),
            weight: _filled(one),
            f"{ends.head}.weight": Turn(self._gain(weight, one), (self.r1,)),
        }
        rows = torch.randn(4, self.width, generator=torch.Generator().manual_seed(1))
        state = {
            f"{ends.embeddings}.weight": embedding,
            weight: finite(weight, self.reader).to(COMPUTE_DTYPE),
            f"{ends.head}.weight": rows,
        }
        turned = {name: edits[name](tensor) for name, tensor in state.items()}
        _compare("what is around the blocks", self._logits(state), self._logits(turned))
        return edits

    def _logits(self, state: Mapping[str, Tensor]) -> Tensor:
        """What the model puts out when its blocks hand on what they get, for these weights around them."""
        embedding, norm, head = state.values()
        modules = [self.model.get_submodule(name) for name in (self.ends.norm, self.ends.head)]
        others = {modules[0]: {"weight": norm}, modules[1]: {"weight": head}}
        with self._embedding(embedding), replaced(others), replaced_forwards(self.blocks, _handing_on):
            logits: Tensor = self.model(input_ids=TOKENS, use_cache=False).logits
        return logits

    def _embedding(self, row: Tensor) -> Any:
        """Let all tokens have one embedding [1, D], which takes no memory."""
        module = self.model.get_input_embeddings()
        return replaced({module: {"weight": row.expand(module.num_embeddings, -1)}})

    def _turn(self, states: Tensor) -> Tensor:
        return self.r1.turn(states.double()).to(states.dtype)


def _handing_on(_: Block) -> Callable[..., Tensor]:
    return lambda states, *_, **__: states


def _filled(value: float) -> Edit:
    return partial(torch.full_like, fill_value=value)


def _kind(block: Block) -> object:
    """The same for blocks of which one is enough to look at."""
    return tuple((name, parameter.shape) for name, parameter in block.module.named_parameters())


def _compare(what: str, expected: Tensor, found: Tensor) -> None:
    difference = float((found - expected).norm() / expected.norm())
    # Written so that NaN is refused as well.
    if not difference <= TOLERANCE:
        raise QuantizationError(
            f"rotation: {what} computes something else once it is turned (relative difference "
            f"{difference:.2g}, {TOLERANCE:g} is allowed). A norm that takes off a mean, or stands behind a "
            "layer which writes to the residual stream, cannot be turned. Leave rotation out, or try it with "
            "r2: false."
        )
