"""Quantizing one block: its linear layers in the order in which they run, each on what it will really read.

With true-sequential order (GPTQ, arXiv 2210.17323) the layers that share an input are quantized together and
the block runs again before the next group, so that o_proj sees what quantized q, k and v make of the text.
Activations are float32 throughout: the int8 activations of W8A8 are quantized by the engine per token, and
have no statistics to gather here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.methods.base import LinearProblem, Solution, needs_hessian, solve
from qdeploy.methods.hessian import Hessian
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import Block, shared_inputs
from qdeploy.modeling.inputs import BlockCall, stopped
from qdeploy.schemes import Scheme

Plan = Mapping[str, tuple[Scheme, Any]]
"""Module name → its scheme and its method's config; layers that stay in 16 bit are left out."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A solution and the seconds it took."""

    solution: Solution
    seconds: float


def quantize_without_data(block: Block, plan: Plan) -> dict[str, Solved]:
    """Solve the layers of a materialized block whose methods look at weights alone."""
    return {
        name: _solve(name, module, None, plan) for name, module in block.linears().items() if name in plan
    }


def quantize_with_data(
    call: BlockCall, activations: Activations, plan: Plan, *, true_sequential: bool
) -> dict[str, Solved]:
    """Solve the layers of a materialized block and put the quantized weights in place.

    Args:
        call: how the block is called.
        activations: the block's inputs; left as they are.
        plan: see `Plan`.
        true_sequential: run the block again before each group of layers instead of once before the first.
    """
    linears = call.block.linears()
    solved: dict[str, Solved] = {}
    groups = _input_groups(call, activations)
    for step in [[group] for group in groups] if true_sequential else [groups]:
        moments = second_moments(call, activations, [group for group in step if _wants_data(group, plan)])
        for name in (name for group in step for name in group if name in plan):
            solved[name] = _solve(name, linears[name], moments.get(name), plan)
            set_weight(linears[name], solved[name].solution.quantized.dequantize())
    return {name: solved[name] for name in linears if name in solved}


def _input_groups(call: BlockCall, activations: Activations) -> list[list[str]]:
    """Layers grouped by shared input, in order of first call; those that are never called come last."""
    device = _device(call.block)
    groups = shared_inputs(call.block, lambda: call(activations[:1].to(device)))
    called = {name for group in groups for name in group}
    return groups + [[name] for name in call.block.linears() if name not in called]


def _wants_data(group: Iterable[str], plan: Plan) -> bool:
    return any(name in plan and needs_hessian(plan[name][1]) for name in group)


def _solve(name: str, module: nn.Linear, hessian: Hessian | None, plan: Plan) -> Solved:
    scheme, config = plan[name]
    start = time.perf_counter()
    solution = solve(config, LinearProblem(name, module.weight.detach(), hessian, scheme))
    return Solved(solution, time.perf_counter() - start)


def second_moments(
    call: BlockCall, activations: Activations, groups: Sequence[Sequence[str]]
) -> dict[str, Hessian]:
    """Layer → second moment of its inputs; one object for the layers of a group.

    The block runs only as far as the last group.
    """
    if not groups:
        return {}
    linears = call.block.linears()
    device = _device(call.block)
    hessians = [Hessian(linears[group[0]].in_features, device) for group in groups]
    for samples in activations.batches():
        with stopped() as stop, _watched([linears[group[0]] for group in groups], hessians, stop):
            call(activations[samples].to(device))
    return {name: hessian for group, hessian in zip(groups, hessians, strict=True) for name in group}


@contextmanager
def _watched(modules: Sequence[nn.Linear], hessians: Sequence[Hessian], stop: Any) -> Iterator[None]:
    """Add what the modules read to their Hessians; stop when the last one is reached."""

    def watch(hessian: Hessian) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            hessian.add(args[0])
            if hessian is hessians[-1]:
                stop()

        return hook

    handles = [
        module.register_forward_pre_hook(watch(hessian))
        for module, hessian in zip(modules, hessians, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def propagate(call: BlockCall, activations: Activations) -> None:
    """Run the block and put its outputs in the place of its inputs."""
    device = _device(call.block)
    for samples in activations.batches():
        activations[samples] = call(activations[samples].to(device)).to("cpu")


def set_weight(module: nn.Linear, weight: Tensor) -> None:
    """Give `module` another weight [N, K]."""
    module.weight = nn.Parameter(weight.to(module.weight.device), requires_grad=False)


def _device(block: Block) -> torch.device:
    return next(block.module.parameters()).device
