"""Channel scalings in the walk: chosen where a group of layers is solved, folded where the block is written.

The block that runs stays as it was: readers compute with the codes of W·S, divided by S again. All scales are
powers of two, so that the folded block computes the same to the last bit, and a run that resumes from it goes
on as one that was never interrupted. Where a norm multiplies by 1 + w, which 16 bits do not hold once it is
divided, S is near powers of two: what the stored w' makes of it. The readers are not rounded yet and take
what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qdeploy.distributed import Group
from qdeploy.methods.base import Quantized
from qdeploy.methods.hessian import Hessian
from qdeploy.methods.scaling import SMALLEST, ChannelProblem, Channels, channel_scales, powers_of_two
from qdeploy.modeling.feeds import Feed, find_feeds
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.norms import divided_plus_one, quotient
from qdeploy.modeling.parents import Parent
from qdeploy.planned import Plan, common_transforms

SMALLEST_GAIN = 2.0**-5
"""What 1 + w is left with at least: near 0 it is a multiple of 2^-8."""

Error = Callable[[Sequence[Tensor]], float]
"""See `ChannelProblem.error`."""


class Folding:
    """The scalings of one block.

    Args:
        call: how the block, which must hold its 16-bit weights, is called.
        batches: yields some of its inputs, float32 [B, T, D].
        groups: full names of the layers that read the same input, in order.
        plan: see `Plan`.
        processes: must agree.

    Attributes:
        divided: full name of a norm or linear → s [R], what its rows are to be divided by.
        plus_one: names of norms among them that multiply by 1 + w → the layers that read them.

    Raises:
        RecipeError: layers that read the same input have different transforms.
    """

    def __init__(
        self,
        call: BlockCall,
        batches: Callable[[], Iterable[Tensor]],
        groups: Sequence[Sequence[str]],
        plan: Plan,
        processes: Group,
    ) -> None:
        self._call, self._batches, self._plan, self._processes = call, batches, plan, processes
        self._transforms = {group[0]: common_transforms(group, plan) for group in groups}
        wanted = any(self._transforms.values())
        self._feeds: Mapping[str, Feed] = {}
        if wanted:
            states = next(iter(batches()))[:1]
            found = processes.share(find_feeds(call, states, groups))
            self._feeds = {
                name: replace(feed, rows=feed.rows.to(states.device))
                for name, feed in found.items()
                if feed.name not in plan or plan[feed.name].scheme.rows_scale_alone
            }
        self.divided: dict[str, Tensor] = {}
        self.plus_one: dict[str, list[str]] = {}

    def transforms(self, group: Sequence[str]) -> tuple[Any, ...]:
        """Configs of the transforms that layers which read the same input will have; none without a feed."""
        return self._transforms[group[0]] if group[0] in self._feeds else ()

    def left_out(self, group: Sequence[str]) -> str | None:
        """Why the transforms of a group are left out; None where they are not, or there are none."""
        if not self._transforms[group[0]] or group[0] in self._feeds:
            return None
        return "no norm or layer before it can take its channel scales over; its transforms were left out"

    def scale(
        self,
        group: Sequence[str],
        channels: Channels,
        hessian: Hessian,
        solved: Mapping[str, Quantized],
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
        linears, sizes = self._call.block.linears(), self._sizes(feed, solved)
        error, r = self._error(group, hessian), torch.ones_like(sizes)
        for config in self.transforms(group):
            s, possible = r[feed.rows], partial(powers_of_two, rows=feed.rows, sizes=sizes / r)
            problem = ChannelProblem(
                [linears[name].weight.detach() * s for name in group],
                channels.largest / s,
                channels.mean / s,
                channels.sample / s,
                self._plan[group[0]].scheme,
                partial(_by_channel, possible, feed.rows),
                partial(_unscaled, error, s),
            )
            r = r * possible(channel_scales(config, problem))
        if feed.plus_one:
            self.plus_one[feed.name] = list(group)
            w = self._weight(feed)
            r = quotient(w, divided_plus_one(w, r))
        self.divided[feed.name] = r
        return r[feed.rows]

    def _error(self, group: Sequence[str], hessian: Hessian) -> Error:
        """See `ChannelProblem.error`; of one layer it is known from H, for all tokens."""
        if len(group) == 1:
            weight = self._call.block.linears()[group[0]].weight.detach()
            return lambda others: hessian.energy(others[0] - weight)
        made: list[Parent] = []  # when it is first asked for

        def error(others: Sequence[Tensor]) -> float:
            if not made:
                made.append(Parent(self._call, group, self._batches()))
            return self._processes.totals(made[0].error(others))[0]

        return error

    def _sizes(self, feed: Feed, solved: Mapping[str, Quantized]) -> Tensor:
        """The magnitude of each row of a feed: of quantized ones that of their smallest scale."""
        if feed.name in solved:
            return solved[feed.name].row_sizes()
        weight = self._weight(feed)
        if feed.plus_one:
            return (weight + 1).abs() * (SMALLEST / SMALLEST_GAIN)
        return weight.abs().reshape(len(weight), -1).amax(1)

    def _weight(self, feed: Feed) -> Tensor:
        module = self._call.block.module.get_submodule(feed.name.removeprefix(f"{self._call.block.name}."))
        return next(module.parameters(recurse=False)).detach()


def _by_channel(possible: Callable[[Tensor], Tensor], rows: Tensor, wanted: Tensor) -> Tensor:
    return possible(wanted)[rows]


def _unscaled(error: Error, s: Tensor, weights: Sequence[Tensor]) -> float:
    """The error of weights whose columns are multiplied by s."""
    return error([weight / s for weight in weights])
