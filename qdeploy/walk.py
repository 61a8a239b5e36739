"""Quantizing one block: its linear layers in the order in which they run, each on what it will really read.

With true-sequential order (GPTQ, arXiv 2210.17323) o_proj is calibrated on what quantized q, k and v make of
the text. Layers that read the same tensor share one Hessian. Activations are float32, though products may be
rounded to bfloat16 (`qdeploy.modeling.products`): the int8 activations of W8A8 are quantized by the engine
per token, and have no statistics to gather here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.distributed import ALONE, Group
from qdeploy.halting import Halting, halting
from qdeploy.methods.base import LinearProblem, Solution, solve
from qdeploy.methods.hessian import Hessian
from qdeploy.modeling.activations import Activations, footprint
from qdeploy.modeling.blocks import Block, shared_inputs
from qdeploy.modeling.inputs import BlockCall, stopped
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme
from qdeploy.stopwatch import part

Plan = Mapping[str, tuple[Scheme, Any]]
"""Module name → its scheme and its method's config; layers that stay in 16 bit are left out."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A solution, the seconds it took, and how many calibration tokens it saw: None without data."""

    solution: Solution
    seconds: float
    tokens: int | None


@part("solve")
def quantize_without_data(block: Block, plan: Plan, *, group: Group = ALONE) -> dict[str, Solved]:
    """Solve the layers of a materialized block whose methods look at weights alone."""
    return {
        name: _solve(name, module, None, plan, group)
        for name, module in block.linears().items()
        if name in plan
    }


def quantize_with_data(
    call: BlockCall,
    activations: Activations,
    plan: Plan,
    *,
    true_sequential: bool,
    outputs: bool,
    group: Group = ALONE,
) -> dict[str, Solved]:
    """Solve the layers of a materialized block and put the quantized weights in place.

    Args:
        call: how the block is called.
        activations: the block's inputs for this process's samples.
        plan: see `Plan`.
        true_sequential: let each layer see the quantized layers before it, not the 16-bit ones.
        outputs: replace `activations` with the quantized block's outputs.
        group: the processes that have the other samples.
    """
    run = _Run(call, activations, plan, group)
    if true_sequential:
        run.solve_in_order(_halting(call.block, activations), outputs=outputs)
        return run.solved
    run.solve_together()
    if outputs:
        propagate(call, activations)
    return run.solved


@part("forward")
def propagate(call: BlockCall, activations: Activations, batches: Iterable[slice] | None = None) -> None:
    """Run the block and put its outputs in the place of its inputs, in some micro-batches or all."""
    device = _device(call.block)
    for samples in activations.batches() if batches is None else batches:
        activations[samples] = call(activations[samples].to(device)).cpu()


def set_weight(module: nn.Linear, weight: Tensor) -> None:
    """Give `module` another weight [N, K]."""
    module.weight = nn.Parameter(weight.to(module.weight.device), requires_grad=False)


class _Run:
    """One block being quantized: ways to get at the inputs of its layers, and what is solved so far."""

    def __init__(self, call: BlockCall, activations: Activations, plan: Plan, processes: Group) -> None:
        self.call, self.activations, self.plan, self.processes = call, activations, plan, processes
        self.device = _device(call.block)
        self.linears = call.block.linears()
        self.solved: dict[str, Solved] = {}
        with part("forward"):
            seen = shared_inputs(call.block, lambda: call(activations[:1].to(self.device)))
        groups = processes.share(seen)
        called = {name for group in groups for name in group}
        self.groups = [group for group in groups if any(name in plan for name in group)]
        self.idle = [name for name in self.linears if name not in called]

    def solve_in_order(self, halting_batches: int, *, outputs: bool) -> None:
        """Group after group of layers, each seeing the quantized ones before it.

        As many micro-batches as there is memory for run once, halting at each group until it is quantized;
        the others run again for each group, up to it. Either way a Hessian takes in the same inputs in the
        same order, so that the codes do not depend on the memory.
        """
        batches = list(self.activations.batches())
        again = batches[halting_batches:]
        with halting(self._forwards(batches[:halting_batches])) as forwards:
            for group in self.groups:
                hessians = self._hessians([group])
                self._advance(forwards, group, hessians[0])
                self._take_in([group], hessians, again)
                self._solve(group, hessians[0])
            self._solve(self.idle, None)
            if outputs:
                self._end(forwards)
                propagate(self.call, self.activations, again)

    @staticmethod
    @part("forward")
    def _end(forwards: Sequence[Halting]) -> None:
        """Let each forward go on to the block's output."""
        for forward in forwards:
            forward.advance()

    @part("forward")
    def _advance(self, forwards: Sequence[Halting], group: Sequence[str], hessian: Hessian) -> None:
        """Let each forward go on to `group` and halt there."""

        def observe(_: int, x: Tensor) -> None:
            hessian.add(x)
            Halting.halt()

        with self._watched([group], observe):
            for forward in forwards:
                forward.advance()

    def solve_together(self) -> None:
        """From one forward of the 16-bit block."""
        hessians = self._hessians(self.groups)
        self._take_in(self.groups, hessians, self.activations.batches())
        for group, hessian in zip(self.groups, hessians, strict=True):
            self._solve(group, hessian)
        self._solve(self.idle, None)

    @part("forward")
    def _take_in(
        self, groups: Sequence[Sequence[str]], hessians: Sequence[Hessian], batches: Iterable[slice]
    ) -> None:
        """Add what the groups read to their Hessians; the block runs only as far as the last group."""
        for samples in batches:
            with stopped() as stop:

                def observe(group: int, x: Tensor, stop: Callable[[], None] = stop) -> None:
                    hessians[group].add(x)
                    if group == len(hessians) - 1:
                        stop()

                with self._watched(groups, observe):
                    self.call(self.activations[samples].to(self.device))

    def _hessians(self, groups: Sequence[Sequence[str]]) -> list[Hessian]:
        return [Hessian(self.linears[group[0]].in_features, self.device) for group in groups]

    @contextmanager
    def _watched(
        self, groups: Sequence[Sequence[str]], observe: Callable[[int, Tensor], None]
    ) -> Iterator[None]:
        """Call `observe` with the position of a group and its input before its first layer runs."""

        def watch(group: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, args: observe(group, args[0])

        handles = [
            self.linears[names[0]].register_forward_pre_hook(watch(group))
            for group, names in enumerate(groups)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forwards(self, batches: Iterable[slice]) -> list[Callable[[], None]]:
        """One forward for each micro-batch, which puts its output in the place of its input."""

        def forward(samples: slice) -> None:
            states = self.activations[samples].to(self.device)
            self.activations[samples] = self.call(states).cpu()

        return [partial(forward, samples) for samples in batches]

    @part("solve")
    def _solve(self, names: Iterable[str], hessian: Hessian | None) -> None:
        if hessian is not None:
            hessian.merge(self.processes)
        for name in names:
            if name in self.plan:
                self.solved[name] = _solve(name, self.linears[name], hessian, self.plan, self.processes)
                set_weight(self.linears[name], self.solved[name].solution.quantized.dequantize())


def _solve(name: str, module: nn.Linear, hessian: Hessian | None, plan: Plan, group: Group) -> Solved:
    """Each process solves its part of the rows; all get the whole."""
    scheme, config = plan[name]
    start = time.perf_counter()
    weight = module.weight.detach()
    own = solve(config, LinearProblem(name, weight[group.part(len(weight))], hessian, scheme, group))
    solution = replace(own, quantized=_whole(own.quantized, len(weight), group))
    return Solved(solution, time.perf_counter() - start, hessian.tokens if hessian else None)


def _whole(part: QuantizedLinear, rows: int, group: Group) -> QuantizedLinear:
    """The layer whose rows the processes have solved in parts."""
    zeros = None if part.zeros is None else group.join(part.zeros, rows)
    return replace(
        part, codes=group.join(part.codes, rows), scales=group.join(part.scales, rows), zeros=zeros
    )


def _halting(block: Block, activations: Activations) -> int:
    """How many micro-batches may halt inside the block within the budget."""
    room = activations.budget.inside(activations.resident_bytes)
    batches = sum(1 for _ in activations.batches())
    return footprint(block.features, activations.shape).halting(batches, room)


def _device(block: Block) -> torch.device:
    return next(block.module.parameters()).device
