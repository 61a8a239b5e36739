"""What reads the residual stream and what writes to it, found by running a block: no table per architecture.

What reads is known by value: each row of its input is a row that some norm has put out, in order or picked
out for an expert. Whatever else puts out vectors as wide as the stream is taken to write to it, scaled or
chosen among as may be. `qdeploy.rotated` proves, by turning all of it, that nothing is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qdeploy.errors import QuantizationError
from qdeploy.modeling.blocks import Block, shared_inputs
from qdeploy.modeling.experts import matrices
from qdeploy.modeling.feeds import find_feeds
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.norms import neutral

Rows = frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Ends:
    """What is before and after the blocks, by module names.

    Attributes:
        embeddings: puts the first hidden states out.
        norm: reads the last.
        head: reads what the norm puts out.
        tied: whether the head computes with the embeddings' weight.
    """

    embeddings: str
    norm: str
    head: str
    tied: bool


@dataclass(frozen=True, slots=True)
class Heads:
    """Value heads that attention adds up, and the layer that reads them.

    Attributes:
        value: layer that puts them out, by its name within the block.
        first: its row where they begin; they go on to the last.
        width: of a head.
        reader: name of the layer that reads as many heads, or more where queries are grouped.
    """

    value: str
    first: int
    width: int
    reader: str


@dataclass(frozen=True, slots=True)
class Stream:
    """Who reads and writes the stream of D channels in one block, by names within it.

    Attributes:
        norms: norm → the value of its weights with which it multiplies by 1.
        readers: layer or router [N, D] → the norm that puts out what it reads.
        writers: layers [D, K].
        heads: None where value heads do not reach a layer as they are.
    """

    norms: dict[str, float]
    readers: dict[str, str]
    writers: list[str]
    heads: Heads | None


def find_ends(model: Any, blocks: Sequence[Block]) -> Ends:
    """What is around the blocks.

    Raises:
        QuantizationError: other than embeddings, a norm without bias, and a head.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    inside = {name for block in blocks for name in block.parameters}
    ours = {id(embeddings.weight), id(head.weight)} if head is not None else set()
    others = [n for n, p in model.named_parameters() if n not in inside and id(p) not in ours]
    if head is None or len(others) != 1:
        raise QuantizationError(
            f"rotation: {type(model).__name__} has {', '.join(others) or 'no norm with weights'} around its "
            "blocks, beside embeddings and head. Only a model that ends in one RMSNorm can be turned. Leave "
            "rotation out."
        )
    tied = head.weight is embeddings.weight
    return Ends(names[id(embeddings)], others[0].rpartition(".")[0], names[id(head)], tied)


def find_stream(call: BlockCall, states: Tensor) -> Stream:
    """The stream of a block, seen when it runs on hidden states [B, T, D] no two of which are the same.

    Raises:
        QuantizationError: no token chose any of the experts, so nothing is known of them.
    """
    norms, inputs = _watch(call, states)
    shapes = matrices(call.block.module)
    # Experts are alike, and not all of them are chosen.
    read = {_kind(name): rows for name, rows in inputs.items() if rows}
    unknown = [name for name in shapes if _kind(name) not in read]
    if unknown:
        raise QuantizationError(f"rotation: {call.block.name} never calls {unknown[0]}. Leave rotation out.")
    norm_of = {
        kind: next((norm for norm, output in norms.items() if rows <= output), None)
        for kind, rows in read.items()
    }
    readers = {name: norm for name in shapes if (norm := norm_of[_kind(name)]) is not None}
    width = states.shape[-1]
    return Stream(
        {norm: neutral(call.block.module.get_submodule(norm), width) for norm in readers.values()},
        readers,
        [name for name, (rows, _) in shapes.items() if rows == width and name not in readers],
        _find_heads(call, states),
    )


def _watch(call: BlockCall, states: Tensor) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """The rows that each norm of the stream puts out, and those that each matrix reads."""
    norms: dict[str, Rows] = {}
    inputs: dict[str, Rows] = {}

    def reads(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: inputs.update({name: _rows(args[0])})

    def puts_out(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, y: norms.update({name: _rows(y)})

    width, handles = states.shape[-1], []
    for name, module in call.block.module.named_modules():
        if {tuple(parameter.shape) for parameter in module.parameters(recurse=False)} == {(width,)}:
            handles.append(module.register_forward_hook(puts_out(name)))
    for name in matrices(call.block.module):
        handles.append(call.block.module.get_submodule(name).register_forward_pre_hook(reads(name)))
    try:
        call(states)
    finally:
        for handle in handles:
            handle.remove()
    return norms, inputs


def _rows(x: Tensor) -> Rows:
    return frozenset(row.tobytes() for row in x.reshape(-1, x.shape[-1]).numpy())


def _kind(name: str) -> str:
    """The name with * for an expert's number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _find_heads(call: BlockCall, states: Tensor) -> Heads | None:
    """A layer whose rows are the channels that another reads, in a module that knows how wide heads are."""
    prefix, linears = f"{call.block.name}.", call.block.linears()
    groups = [
        group
        for group in shared_inputs(call.block, lambda: call(states))
        if _head_width(call.block, group[0].removeprefix(prefix))
    ]
    for reader, feed in find_feeds(call, states, groups).items():
        if feed.name in linears:
            inner = reader.removeprefix(prefix)
            width, first = _head_width(call.block, inner), int(feed.rows.min())
            return Heads(feed.name.removeprefix(prefix), first, width, inner)
    return None


def _head_width(block: Block, name: str) -> int:
    """The `head_dim` of the module that a layer belongs to; 0 where it has none."""
    width = getattr(block.module.get_submodule(name.rpartition(".")[0]), "head_dim", 0)
    return width if isinstance(width, int) else 0
