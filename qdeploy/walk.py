"""Quantizing one block: its linear layers in the order in which they run, each on what it will really read.

With true-sequential order (GPTQ, arXiv 2210.17323) o_proj is calibrated on what quantized q, k and v make of
the text. Layers that read the same tensor share one Hessian. Activations are float32 throughout: the int8
activations of W8A8 are quantized by the engine per token, and have no statistics to gather here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from qdeploy.halting import Halting, halting
from qdeploy.methods.base import LinearProblem, Solution, solve
from qdeploy.methods.hessian import Hessian
from qdeploy.modeling.activations import MEMORY_SHARE, Activations
from qdeploy.modeling.blocks import Block, shared_inputs
from qdeploy.modeling.inputs import BlockCall, stopped
from qdeploy.schemes import Scheme

Plan = Mapping[str, tuple[Scheme, Any]]
"""Module name → its scheme and its method's config; layers that stay in 16 bit are left out."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A solution, the seconds it took, and how many calibration tokens it saw: None without data."""

    solution: Solution
    seconds: float
    tokens: int | None


def quantize_without_data(block: Block, plan: Plan) -> dict[str, Solved]:
    """Solve the layers of a materialized block whose methods look at weights alone."""
    return {
        name: _solve(name, module, None, plan) for name, module in block.linears().items() if name in plan
    }


def quantize_with_data(
    call: BlockCall, activations: Activations, plan: Plan, *, true_sequential: bool, outputs: bool
) -> dict[str, Solved]:
    """Solve the layers of a materialized block and put the quantized weights in place.

    Args:
        call: how the block is called.
        activations: the block's inputs.
        plan: see `Plan`.
        true_sequential: let each layer see the quantized layers before it, not the 16-bit ones.
        outputs: replace `activations` with the quantized block's outputs.
    """
    run = _Run(call, activations, plan)
    if true_sequential and _halted_bytes(call.block, activations) <= _free_bytes():
        run.solve_halting(outputs=outputs)
        return run.solved
    if true_sequential:
        run.solve_rerunning()
    else:
        run.solve_together()
    if outputs:
        propagate(call, activations)
    return run.solved


def propagate(call: BlockCall, activations: Activations) -> None:
    """Run the block and put its outputs in the place of its inputs."""
    device = _device(call.block)
    for samples in activations.batches():
        activations[samples] = call(activations[samples].to(device)).cpu()


def set_weight(module: nn.Linear, weight: Tensor) -> None:
    """Give `module` another weight [N, K]."""
    module.weight = nn.Parameter(weight.to(module.weight.device), requires_grad=False)


class _Run:
    """One block being quantized: ways to get at the inputs of its layers, and what is solved so far."""

    def __init__(self, call: BlockCall, activations: Activations, plan: Plan) -> None:
        self.call, self.activations, self.plan = call, activations, plan
        self.device = _device(call.block)
        self.linears = call.block.linears()
        self.solved: dict[str, Solved] = {}
        groups = shared_inputs(call.block, lambda: call(activations[:1].to(self.device)))
        called = {name for group in groups for name in group}
        self.groups = [group for group in groups if any(name in plan for name in group)]
        self.idle = [name for name in self.linears if name not in called]

    def solve_halting(self, *, outputs: bool) -> None:
        """From one forward that halts at each group of layers until they are quantized."""
        hessians: list[Hessian] = []

        def observe(_: int, x: Tensor) -> None:
            hessians[-1].add(x)
            Halting.halt()

        with self._watched(self.groups, observe), halting(self._forwards()) as forwards:
            for group in self.groups:
                # One at a time: a block has thousands of them where it has hundreds of experts.
                hessians[:] = self._hessians([group])
                for forward in forwards:
                    forward.advance()
                self._solve(group, hessians[-1])
            self._solve(self.idle, None)
            if outputs:
                for forward in forwards:
                    forward.advance()

    def solve_rerunning(self) -> None:
        """From one forward for each group of layers, up to that group: slow, but keeps nothing alive."""
        for group in self.groups:
            self._solve(group, *self._second_moments([group]))
        self._solve(self.idle, None)

    def solve_together(self) -> None:
        """From one forward of the 16-bit block."""
        for group, hessian in zip(self.groups, self._second_moments(self.groups), strict=True):
            self._solve(group, hessian)
        self._solve(self.idle, None)

    def _second_moments(self, groups: Sequence[Sequence[str]]) -> list[Hessian]:
        """One Hessian a group; the block runs only as far as the last group."""
        hessians = self._hessians(groups)
        for samples in self.activations.batches():
            with stopped() as stop:

                def observe(group: int, x: Tensor, stop: Callable[[], None] = stop) -> None:
                    hessians[group].add(x)
                    if group == len(hessians) - 1:
                        stop()

                with self._watched(groups, observe):
                    self.call(self.activations[samples].to(self.device))
        return hessians

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

    def _forwards(self) -> list[Callable[[], None]]:
        """One forward for each micro-batch, which puts its output in the place of its input."""

        def forward(samples: slice) -> None:
            states = self.activations[samples].to(self.device)
            self.activations[samples] = self.call(states).cpu()

        return [partial(forward, samples) for samples in self.activations.batches()]

    def _solve(self, names: Iterable[str], hessian: Hessian | None) -> None:
        for name in names:
            if name in self.plan:
                self.solved[name] = _solve(name, self.linears[name], hessian, self.plan)
                set_weight(self.linears[name], self.solved[name].solution.quantized.dequantize())


def _solve(name: str, module: nn.Linear, hessian: Hessian | None, plan: Plan) -> Solved:
    scheme, config = plan[name]
    start = time.perf_counter()
    solution = solve(config, LinearProblem(name, module.weight.detach(), hessian, scheme))
    return Solved(solution, time.perf_counter() - start, hessian.tokens if hessian else None)


def _halted_bytes(block: Block, activations: Activations) -> int:
    """About what halted forwards keep alive: the residual and its descendants, the widest layer's input."""
    samples, tokens, width = activations.shape
    widest = max(module.in_features for module in block.linears().values())
    return 4 * samples * tokens * (4 * width + widest)


def _free_bytes() -> float:
    """Memory that halted forwards may take."""
    # On a GPU its own memory is what counts: activations are moved there before they run.
    if torch.cuda.is_available():
        return MEMORY_SHARE * torch.cuda.mem_get_info()[0]
    return MEMORY_SHARE * psutil.virtual_memory().available


def _device(block: Block) -> torch.device:
    return next(block.module.parameters()).device
