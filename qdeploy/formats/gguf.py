"""Blocks of GGUF files that are integers on a grid: codes and scales as they are, one way.

Of a layer of N × K, rows of blocks of 32 weights; d and m are float16, little-endian:

    Q4_0   d, 16 bytes: codes 0 … 15, of elements i (low) and i + 16 (high)    w = d · (q − 8)
    Q4_1   d, m, 16 bytes as above                                             w = d · q + m
    Q8_0   d, 32 signed bytes                                                  w = d · q

The first and the last are symmetric grids in groups of 32, d of Q4_0 as often negative as not. Q4_1 is an
asymmetric one where each m is −z · d for a zero point z of 0 … 15, which no encoder sees to.

Source: llama.cpp, `ggml/src/ggml-quants.c` (dequantize_row_q4_0 and so on).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

BLOCK = 32
SCHEMES = {
    "Q4_0": Scheme("W4A16", 4, BLOCK),
    "Q4_1": Scheme("W4A16_ASYM", 4, BLOCK, symmetric=False),
    "Q8_0": Scheme("W8A16", 8, BLOCK),
}
"""Type → what its blocks are, if they are."""
OF_ZEROS = 2.0**-14
"""The scale of a block of zeros, whose d is 0: float16's least that is not denormal."""


def inexact(kind: str, blocks: Tensor) -> int:
    """How many blocks no grid of the type's scheme says.

    Args:
        kind: one of SCHEMES.
        blocks: uint8 [N, bytes of a row], as they lie in the file.
    """
    d, zeros, _ = _fields(kind, blocks)
    wrong = ~d.isfinite()
    if zeros is not None:
        m = _halves(_split(kind, blocks)[..., 2:4]).float()
        wrong |= ~((zeros >= 0) & (zeros <= 15) & (zeros == zeros.round())) | (zeros * d.float() != -m)
    return int(wrong.sum())


def unpack(kind: str, blocks: Tensor) -> QuantizedLinear:
    """A layer; its scales are float16 and may be negative.

    Args:
        kind: one of SCHEMES.
        blocks: as above, none of them `inexact`.
    """
    d, zeros, codes = _fields(kind, blocks)
    scheme, empty = SCHEMES[kind], d == 0
    if zeros is not None:
        zeros = zeros.where(~empty, 0)
    nothing = scheme.zero if zeros is None else zeros.to(torch.uint8)[..., None]
    codes = torch.where(empty[..., None], nothing, codes).to(torch.uint8)
    scales = d.where(~empty, torch.tensor(OF_ZEROS, dtype=d.dtype))
    kept = None if zeros is None else zeros.to(torch.uint8)
    return QuantizedLinear(codes.flatten(1), scales, kept, scheme)


def _split(kind: str, blocks: Tensor) -> Tensor:
    """uint8 [N, G, bytes of a block]."""
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    return blocks.unflatten(1, (-1, size))


def _halves(pairs: Tensor) -> Tensor:
    """uint8 […, 2] to float16 […]."""
    return pairs.contiguous().view(torch.float16)[..., 0]


def _fields(kind: str, blocks: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """d [N, G], what zero points would be, float32 [N, G] or None, and unsigned codes uint8 [N, G, 32]."""
    parts = _split(kind, blocks)
    d = _halves(parts[..., :2])
    if kind == "Q8_0":
        return d, None, parts[..., 2:] ^ 128
    packed = parts[..., -16:]
    codes = torch.cat([packed & 15, packed >> 4], -1)
    if kind == "Q4_0":
        return d, None, codes
    m = _halves(parts[..., 2:4]).float()
    # Of a block of zeros d and m are 0; of one in which all weights are alike d alone is.
    zeros = torch.where(m == 0, 0.0, -m / d.float())
    return d, zeros, codes
