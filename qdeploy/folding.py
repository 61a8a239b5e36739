"""Channel scalings in the walk: chosen where a group of layers is solved, folded where the block is written.

The block that runs stays as it was: readers compute with the codes of W·S, divided by S again. All scales are
powers of two, so that the folded block computes the same to the last bit, and a run that resumes from it goes
on as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qdeploy.distributed import Group
from qdeploy.errors import RecipeError
from qdeploy.methods.scaling import ChannelProblem, Channels, channel_scales, powers_of_two
from qdeploy.modeling.feeds import Feed, find_feeds
from qdeploy.modeling.inputs import BlockCall
from qdeploy.planned import Plan
from qdeploy.quantized import QuantizedLinear


class Folding:
    """The scalings of one block.

    Args:
        call: how the block, which must hold its 16-bit weights, is called.
        states: hidden states [B, T, D] to find feeds with.
        groups: full names of the layers that read the same input, in order.
        plan: see `Plan`.
        processes: must agree.

    Attributes:
        divided: full name of a norm or linear → s [R], what its rows are to be divided by.

    Raises:
        RecipeError: layers that read the same input have different transforms.
    """

    def __init__(
        self, call: BlockCall, states: Tensor, groups: Sequence[Sequence[str]], plan: Plan, processes: Group
    ) -> None:
        self._block, self._plan = call.block, plan
        self._transforms = {group[0]: _common(group, plan) for group in groups}
        wanted = any(self._transforms.values())
        self._feeds: Mapping[str, Feed] = processes.share(find_feeds(call, states, groups)) if wanted else {}
        self.divided: dict[str, Tensor] = {}

    def transforms(self, group: Sequence[str]) -> tuple[Any, ...]:
        """Configs of the transforms of layers that read the same input."""
        return self._transforms[group[0]]

    def left_out(self, group: Sequence[str]) -> str | None:
        """Why the transforms of a group are left out; None where they are not, or there are none."""
        if not self.transforms(group) or group[0] in self._feeds:
            return None
        return "no norm or layer before it can take its channel scales over; its transforms were left out"

    def scale(
        self, group: Sequence[str], channels: Channels, solved: Mapping[str, QuantizedLinear]
    ) -> Tensor | None:
        """Choose the scales of a group, s [K], and remember what its feed is to be divided by.

        Args:
            solved: what is quantized so far.

        Returns:
            None where there is nothing to scale with.
        """
        feed = self._feeds.get(group[0])
        if feed is None:
            return None
        linears, sizes = self._block.linears(), self._sizes(feed, solved)
        r = torch.ones_like(sizes)
        for config in self.transforms(group):
            s = r[feed.rows]
            problem = ChannelProblem(
                [linears[name].weight.detach() * s for name in group],
                channels.largest / s,
                channels.sample / s,
                self._plan[group[0]].scheme,
            )
            r = r * powers_of_two(channel_scales(config, problem), feed.rows, sizes / r)
        self.divided[feed.name] = r
        return r[feed.rows]

    def _sizes(self, feed: Feed, solved: Mapping[str, QuantizedLinear]) -> Tensor:
        """The magnitude of each row of a feed: of quantized ones that of their smallest scale."""
        if feed.name in solved:
            return solved[feed.name].scales.float().amin(1)
        module = self._block.module.get_submodule(feed.name.removeprefix(f"{self._block.name}."))
        weight = next(module.parameters(recurse=False))
        return weight.detach().abs().reshape(len(weight), -1).amax(1)


def divided_by(layer: QuantizedLinear, s: Tensor) -> QuantizedLinear:
    """The layer with its rows [N, K] divided by powers of two s [N]; exact."""
    scales = layer.scales.float() / s.unsqueeze(1)
    return replace(layer, scales=scales.to(torch.bfloat16))


def _common(group: Sequence[str], plan: Plan) -> tuple[Any, ...]:
    found = {name: plan[name].transforms if name in plan else () for name in group}
    if len(set(found.values())) > 1:
        told = ", ".join(
            f"{name}: {'+'.join(type(config).__name__.lower() for config in transforms) or 'none'}"
            for name, transforms in found.items()
        )
        raise RecipeError(
            f"Layers that read the same input need the same transforms; got {told}. Give them one rule."
        )
    return found[group[0]]
