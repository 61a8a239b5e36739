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
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Of a block."""
OF_ZEROS = 2.0**-14
"""The scale of a block of zeros, whose d is 0: float16's least that is not denormal."""


def inexact(kind: str, blocks: Tensor) -> int:
    """How many blocks no grid of the type's scheme says.

    Args:
        kind: one of SCHEMES.
        blocks: uint8 [N, bytes of a row], as they lie in the file.
    """
    d, minima, _ = _fields(kind, blocks)
    wrong = ~d.isfinite()
    if minima is not None:
        zeros = _zeros(d, minima)
        wrong |= (zeros != zeros.round().clamp(0, 15)) | (zeros * d.float() != -minima)
    return int(wrong.sum())


def unpack(kind: str, blocks: Tensor) -> QuantizedLinear:
    """A layer; its scales are float16 and may be negative.

    Args:
        kind: one of SCHEMES.
        blocks: as above, none of them `inexact`.
    """
    d, minima, codes = _fields(kind, blocks)
    scheme, empty = SCHEMES[kind], d == 0
    zeros = torch.full(d.shape, scheme.zero) if minima is None else _zeros(d, minima)
    zeros = zeros.to(torch.uint8)
    codes = torch.where(empty[..., None], zeros[..., None], codes)
    scales = d.masked_fill(empty, OF_ZEROS)
    return QuantizedLinear(codes.flatten(1), scales, None if scheme.symmetric else zeros, scheme)


def _fields(kind: str, blocks: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """d float16 [N, G], m float32 [N, G] where there is one, and unsigned codes uint8 [N, G, 32]."""
    parts = blocks.reshape(len(blocks), -1, BYTES[kind])
    d = _halves(parts[..., :2])
    if kind == "Q8_0":
        return d, None, parts[..., 2:] ^ 128
    packed = parts[..., -16:]
    codes = torch.cat([packed & 15, packed >> 4], -1)
    return d, _halves(parts[..., 2:4]).float() if kind == "Q4_1" else None, codes


def _halves(pairs: Tensor) -> Tensor:
    """uint8 […, 2] to float16 […]."""
    return pairs.contiguous().view(torch.float16)[..., 0]


def _zeros(d: Tensor, minima: Tensor) -> Tensor:
    """z of m = −z · d, float32: whole or not, and of a block that is alike, whose d is 0, infinite."""
    return torch.where(minima == 0, 0.0, -minima / d.float())
