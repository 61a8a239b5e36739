"""The arithmetic that a run cannot avoid, and how fast this machine does arithmetic.

floor = (forward FLOPs of the blocks' linear layers + 2·K² per token for each distinct linear input) ÷ FLOP/s

FLOP/s in float32. Attention's own products are left out, so that the floor is rather too low. A symmetric
product needs only half of 2·K², and runs multiply in bfloat16 where the processor does that faster: they may
come below the floor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qdeploy.modeling.activations import BATCH_TOKENS
from qdeploy.modeling.checkpoint import CheckpointReader

FUSED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Layers that read what another reads already."""

REPEATS = 5
SQUARES = (1024, 2048, 3072)


@dataclass(frozen=True, slots=True)
class Rate:
    """FLOP/s of a float32 product [m, k] × [k, n] on all cores of torch."""

    flops: float
    shape: tuple[int, int, int]


def floor_flops(model: Path, tokens: int) -> float:
    """FLOPs of the floor of a run over `tokens` calibration tokens."""
    forward = hessians = 0
    for name, (n, k) in linear_shapes(model).items():
        forward += 2 * n * k
        if name.split(".")[-2] not in FUSED:
            hessians += 2 * k * k
    return float(tokens * (forward + hessians))


def linear_shapes(model: Path) -> dict[str, tuple[int, int]]:
    """Weight → its (N, K), for the linear layers of all blocks."""
    reader = CheckpointReader(model)
    shapes = {name: reader.shape(name) for name in reader.names if ".layers." in name}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def products(model: Path) -> list[tuple[int, int, int]]:
    """(m, k, n) of the products that are timed: squares, and those that the walk over `model` makes."""
    linears = set(linear_shapes(model).values())
    forwards = {(BATCH_TOKENS, k, n) for n, k in linears}
    hessians = {(k, BATCH_TOKENS, k) for _, k in linears}
    return [*((size, size, size) for size in SQUARES), *sorted(forwards | hessians)]


def measure_rate(shapes: Sequence[tuple[int, int, int]]) -> Rate:
    """The best rate over all shapes: the floor shall not gain from a product that the machine is bad at."""
    return max((Rate(_flops(shape), shape) for shape in shapes), key=lambda rate: rate.flops)


def _flops(shape: tuple[int, int, int]) -> float:
    m, k, n = shape
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - start)
    return 2 * m * k * n / min(times)
