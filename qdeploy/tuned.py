"""The layers of a block, tuned together by the methods that do so, and what errors are left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdeploy.distributed import Group
from qdeploy.methods.tuning import BlockProblem, TunedLayer, tune
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.inputs import BlockCall
from qdeploy.planned import Plan
from qdeploy.quantized import QuantizedLinear
from qdeploy.solved import Solved


def tuned(
    call: BlockCall,
    inputs: Activations,
    outputs: Activations,
    layers: Mapping[str, TunedLayer],
    solved: Mapping[str, Solved],
    plan: Plan,
    group: Group,
) -> dict[str, Solved]:
    """What `solved` becomes for these layers; the block runs with it from then on.

    Args:
        call: how the block is called.
        inputs: what enters it, for this process's samples.
        outputs: what the 16-bit model's block puts out for them.
        layers: those to tune, as they were solved.
        solved: their solutions.
        plan: says which method tunes which layer.
        group: the processes that have the other samples.
    """
    found: dict[str, QuantizedLinear] = {}
    for config in dict.fromkeys(plan[name].rounder for name in layers):
        own = {name: layer for name, layer in layers.items() if plan[name].rounder == config}
        problem = BlockProblem(call.block.name, call, inputs, outputs, own, group)
        found |= tune(config, problem)
    energies = _energies(call, inputs, layers, found, group)
    return {
        name: _with(solved[name], quantized, energies[name], plan[name].method)
        for name, quantized in found.items()
    }


def _with(before: Solved, quantized: QuantizedLinear, energies: tuple[float, float], method: str) -> Solved:
    """What was solved, with other codes; `energies` as of `_energies`."""
    lost, whole = energies
    solution = replace(before.solution, quantized=quantized)
    if not math.isfinite(lost / whole if whole else math.nan):
        reason = (
            "nothing but zeros reached it" if whole == 0 else "its calibration inputs hold NaN or infinity"
        )
        return replace(before, solution=solution).with_word(f"{method}: {reason}; rounded to nearest")
    return replace(before, solution=replace(solution, relative_error=lost / whole))


def _energies(
    call: BlockCall,
    inputs: Activations,
    layers: Mapping[str, TunedLayer],
    found: Mapping[str, QuantizedLinear],
    group: Group,
) -> dict[str, tuple[float, float]]:
    """Σ‖(W − Ŵ)x‖² and Σ‖Wx‖² of each layer, over all that it reads."""
    sums = {name: [0.0, 0.0] for name in found}

    def watch(name: str, whole: Tensor, delta: Tensor) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            for i, weight in enumerate((delta, whole)):
                sums[name][i] += float(F.linear(args[0], weight).square().sum())

        handles.append(layers[name].linear.register_forward_pre_hook(hook))

    handles: list[RemovableHandle] = []
    try:
        for name, quantized in found.items():
            whole, s = layers[name].weight, layers[name].columns
            delta = whole - quantized.dequantize()
            watch(name, *((whole, delta) if s is None else (whole / s, delta / s)))
        for batch in inputs.batches():
            call(inputs[batch].to(next(call.block.module.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    totals = {name: group.totals(*both) for name, both in sums.items()}
    return {name: (lost, whole) for name, (lost, whole) in totals.items()}
