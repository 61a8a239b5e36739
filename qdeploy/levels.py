"""Levels: the multiples of a step that codes stand for, and rounding to them.

Of integers a level is q − z; of minifloats it is the number whose bits the code holds, of codebooks any.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qdeploy.schemes import Codebook, Minifloat, Scheme


def nearest(x: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
    """The levels nearest to weights in steps, float32; changes `x`.

    Args:
        x: float32, weights divided by their step.
        zeros: float32 zero points, broadcast to `x`.
        scheme: the number format.
    """
    if scheme.element is not None:
        return nearest_float(x, scheme.minifloat)
    return x.round_().add_(zeros).clamp_(0, scheme.qmax).sub_(zeros)


def encode(levels: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
    """The codes of levels, uint8."""
    if scheme.element is None:
        return (levels + zeros).to(torch.uint8)
    magnitudes = values(scheme.minifloat)[: scheme.zero].nan_to_num(torch.inf).to(levels.device)
    codes = torch.searchsorted(magnitudes, levels.abs().contiguous()).to(torch.uint8)
    return codes | (levels.signbit().to(torch.uint8) << (scheme.bits - 1))


def decode(codes: Tensor, zeros: Tensor | int, scheme: Scheme) -> Tensor:
    """The levels of codes, float32."""
    if scheme.element is None:
        return codes.float() - zeros
    return values(scheme.element).to(codes.device)[codes.int()]


def nearest_float(x: Tensor, element: Minifloat) -> Tensor:
    """The minifloats nearest to float32 `x`, ties to even, no further than the largest."""
    _, exponent = torch.frexp(x)
    spacing = torch.ldexp(
        torch.ones_like(x), (exponent - 1).clamp_min(element.least_exponent) - element.mantissa
    )
    return (x / spacing).round_().mul_(spacing).clamp_(-element.largest, element.largest)


@cache
def values(element: Minifloat | Codebook) -> Tensor:
    """What each code stands for, float32 [2^bits].

    Of minifloats first those without the sign, ascending; NaN for none.
    """
    if isinstance(element, Codebook):
        return torch.tensor(element.numbers)
    codes = torch.arange(1 << (element.bits - 1))
    exponent, fraction = codes >> element.mantissa, codes & ((1 << element.mantissa) - 1)
    # Without an exponent a number has no leading one.
    significand = fraction + (exponent > 0) * (1 << element.mantissa)
    powers = exponent.clamp_min(1) - 1 + element.least_exponent - element.mantissa
    positive = torch.ldexp(significand.float(), powers)
    positive[positive > element.largest] = torch.nan
    return torch.cat([positive, -positive])
