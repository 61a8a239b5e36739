"""How loaders get a packed layer wrong while every tensor still has the right shape.

Each misreading maps a layer to the one that such a loader computes with. The published formats differ in
these points: order of codes in a word (GPTQ, AWQ), zero points stored less one (GPTQ v1) or as they are (v2),
signed codes (ModelOpt) or offset ones, scales [G, N] (GPTQ) or [N, G] (compressed-tensors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

Misreading = Callable[[QuantizedLinear], QuantizedLinear]

NEIGHBOURS = (1, 0)
AWQ_FIELDS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Field of a 32-bit word in which AWQ's GEMM layout keeps its j-th code."""


def reorder_codes(q: QuantizedLinear, order: tuple[int, ...]) -> QuantizedLinear:
    """Take every `len(order)` neighbouring codes of a row in another order."""
    codes = q.codes.clone()
    whole = codes.shape[1] // len(order) * len(order)
    words = codes[:, :whole].reshape(len(codes), -1, len(order))
    codes[:, :whole] = words[..., list(order)].flatten(1)
    return replace(q, stored=codes)


def flip_sign_bit(q: QuantizedLinear) -> QuantizedLinear:
    """Take offset codes for two's complement, or the reverse."""
    return replace(q, stored=q.codes ^ q.scheme.zero)


def shift_zeros(q: QuantizedLinear, step: int) -> QuantizedLinear:
    """Add `step` to every zero point, modulo 2^bits."""
    zeros = torch.full_like(q.scales, q.scheme.zero, dtype=torch.uint8) if q.zeros is None else q.zeros
    return replace(q, zeros=(zeros + step) & q.scheme.qmax)


def ignore_zeros(q: QuantizedLinear) -> QuantizedLinear:
    """Take the grid for symmetric."""
    return replace(q, zeros=None)


def shift_scales(q: QuantizedLinear) -> QuantizedLinear:
    """Give each group the scale of the next, each row that of the next where a row is one group."""
    return replace(q, scales=q.scales.roll(-1, 1 if q.scales.shape[1] > 1 else 0))


def transpose_scales(q: QuantizedLinear) -> QuantizedLinear:
    """Read the memory of scales [N, G] as [G, N]."""
    n, groups = q.scales.shape
    return replace(q, scales=q.scales.reshape(groups, n).T)


def misreadings(scheme: Scheme) -> dict[str, Misreading]:
    """Those that are possible with `scheme`, keyed by what a person calls them."""
    found: dict[str, Misreading] = {}
    if scheme.bits == 4:
        found["neighbouring codes swapped"] = partial(reorder_codes, order=NEIGHBOURS)
        found["codes in AWQ order"] = partial(reorder_codes, order=AWQ_FIELDS)
    found["sign bit of codes flipped"] = flip_sign_bit
    found["zero points one too high"] = partial(shift_zeros, step=1)
    found["zero points one too low"] = partial(shift_zeros, step=-1)
    if not scheme.symmetric:
        found["zero points ignored"] = ignore_zeros
    if scheme.group_size is not None:
        found["scales transposed"] = transpose_scales
    found["scales shifted by one"] = shift_scales
    return found
