"""Who feeds whom: the layer whose rows are the channels that other layers read.

Where such a layer is known, its rows can be divided by what the columns of its readers are multiplied by,
and the model stays what it is. In most decoder blocks a norm feeds q, k and v, v feeds o_proj through
attention, another norm feeds gate and up, and up feeds down_proj through a product. It is found by running
the block with a candidate's rows divided by powers of two, and the readers' columns multiplied: what it
puts out must be the same to the last bit, or nearly where a norm multiplies by 1 + w. So architectures need
no table, and where a router is in the way, no feed is found rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdeploy.modeling.blocks import same_memory
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.norms import divided_plus_one, neutral
from qdeploy.modeling.parameters import replaced


@dataclass(frozen=True, slots=True)
class Feed:
    """Where K channels come from.

    Attributes:
        name: full name of a norm or of a linear layer.
        rows: int64 [K] in main memory, its row that each channel is; several channels may be one row (grouped
            queries).
        plus_one: it is a norm that multiplies by 1 + w.
    """

    name: str
    rows: Tensor
    plus_one: bool = False


def find_feeds(call: BlockCall, states: Tensor, groups: Sequence[Sequence[str]]) -> dict[str, Feed]:
    """The feeds of a block, found by running it on hidden states [B, T, D].

    Args:
        groups: full names of linear layers that read the same tensor, in order; see `shared_inputs`.

    Returns:
        First name of a group → its feed; groups without one are left out.
    """
    linears, found = call.block.linears(), {}
    with _norms_before(call, groups) as norms:
        expected = call(states)
    for position, group in enumerate(groups):
        readers = [linears[name] for name in group]
        # Elsewhere there is none, and a mixture of experts has hundreds of layers to try in vain.
        siblings = group[0].rpartition(".")[0]
        earlier = [
            name
            for names in reversed(groups[:position])
            for name in reversed(names)
            if name.rpartition(".")[0] == siblings
        ]
        for feed in _candidates(call, group[0], norms.get(group[0]), earlier):
            if _holds(call, states, expected, feed, readers):
                found[group[0]] = feed
                break
    return found


@contextmanager
def _norms_before(call: BlockCall, groups: Sequence[Sequence[str]]) -> Iterator[dict[str, str]]:
    """First name of a group → full name of the norm that puts out what it reads, filled as the block runs."""
    found: dict[str, str] = {}
    outputs: list[tuple[str, Tensor]] = []  # held, so that no memory is used twice

    def record(name: str, y: object) -> None:
        if isinstance(y, Tensor):
            outputs.append((name, y))

    def look(group: str, x: Tensor) -> None:
        for name, y in outputs:
            if same_memory(x, y):
                found[group] = name

    linears, handles = call.block.linears(), []
    for name, module in call.block.module.named_modules():
        if {parameter.dim() for parameter in module.parameters(recurse=False)} == {1}:
            full = f"{call.block.name}.{name}"
            handles.append(module.register_forward_hook(lambda _, __, y, full=full: record(full, y)))
    for first, *_ in groups:
        handles.append(
            linears[first].register_forward_pre_hook(lambda _, args, first=first: look(first, args[0]))
        )
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _candidates(call: BlockCall, reader: str, norm: str | None, earlier: Sequence[str]) -> Iterator[Feed]:
    linears = call.block.linears()
    channels = linears[reader].in_features
    if norm is not None:
        module = call.block.module.get_submodule(norm.removeprefix(f"{call.block.name}."))
        device = next(module.parameters(recurse=False)).device
        yield Feed(norm, torch.arange(channels), plus_one=not neutral(module, channels, device))
        return
    repeated, width = _heads(call, reader)
    for name in earlier:
        last = linears[name].out_features
        for times in dict.fromkeys((1, repeated)):
            count = channels // times
            if count > last or count * times != channels or (times > 1 and count % width):
                continue
            # Where matrices are stored as one, v and up are its last rows.
            rows = torch.arange(last - count, last)
            if times > 1:
                rows = rows.view(-1, width).repeat_interleave(times, 0).flatten()
            yield Feed(name, rows)


def _heads(call: BlockCall, reader: str) -> tuple[int, int]:
    """How many query heads share a value head around this layer, and a head's width; else (1, 1)."""
    path = reader.removeprefix(f"{call.block.name}.").rpartition(".")[0]
    module = call.block.module.get_submodule(path)
    shared, width = (getattr(module, name, 1) for name in ("num_key_value_groups", "head_dim"))
    return (shared, width) if isinstance(shared, int) and isinstance(width, int) else (1, 1)


def _holds(
    call: BlockCall, states: Tensor, expected: Tensor, feed: Feed, readers: Sequence[nn.Linear]
) -> bool:
    """Whether the block computes the same when scales move from the feed to its readers."""
    module = call.block.module.get_submodule(feed.name.removeprefix(f"{call.block.name}."))
    count = len(next(module.parameters(recurse=False)))
    s = torch.exp2(torch.arange(count, device=states.device) % 5 - 2.0)
    used = torch.zeros(count, dtype=torch.bool, device=states.device)
    used[feed.rows] = True
    s = torch.where(used, s, 1.0)
    others: dict[nn.Module, Mapping[str, Tensor]] = {
        reader: {"weight": reader.weight * s[feed.rows]} for reader in readers
    }
    parameters = dict(module.named_parameters(recurse=False))
    if feed.plus_one:
        others[module] = {name: (w + 1) / s - 1 for name, w in parameters.items()}
    else:
        others[module] = divided_rows(parameters, s)
    with replaced(others):
        found = call(states)
    return torch.allclose(found, expected, rtol=1e-3) if feed.plus_one else torch.equal(found, expected)


def divided_rows(parameters: Mapping[str, Tensor], s: Tensor, *, plus_one: bool = False) -> dict[str, Tensor]:
    """The parameters [R, …] of a feed with their rows divided by s [R], in their own number format.

    Args:
        plus_one: they are weights of a norm that multiplies by 1 + w; see `divided_plus_one`.
    """
    if plus_one:
        return {name: divided_plus_one(w, s).to(w.dtype) for name, w in parameters.items()}
    return {
        name: (tensor / s.view(-1, *[1] * (tensor.dim() - 1)).to(tensor.device)).to(tensor.dtype)
        for name, tensor in parameters.items()
    }
