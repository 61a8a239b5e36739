"""Dense bit streams: codes of b bits, least significant first, running across 32-bit words.

Code i takes bits [b·i, b·i + b) of the stream, so 32 codes fill exactly b words. This is the layout of
compressed-tensors ≥ 0.18 (and of every version for 1, 2, 4 and 8 bits) and of GPTQ's qweight.

Codes lie in bytes. Neighbours are pushed together, two to a field of twice the width, until a field is whole
bytes: with 1, 2 and 4 bits one byte, with others the b bytes of eight codes. Rows go through in blocks that
stay in the processor's cache, which is five times as fast as whole matrices.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Codes that are worked on at a time: with what is made of them, no more than a core's cache holds."""


def words(count: int, bits: int) -> int:
    """Number of 32-bit words that `count` codes of `bits` bits take."""
    return -(-count * bits // 32)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a matrix in blocks of about BLOCK elements."""
    step = max(1, BLOCK // max(columns, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def pack(codes: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Pack unsigned codes along `dim`.

    Args:
        codes: uint8, every value < 2^bits; any shape.
        bits: 1 to 8.
        dim: the dimension of size L that becomes ceil(L · bits / 32).

    Returns:
        int32 words (two's complement containers of unsigned patterns), contiguous; unused high bits are zero.
    """
    moved = codes.movedim(dim, -1)
    shape, length = moved.shape[:-1], moved.shape[-1]
    rows = moved.reshape(shape.numel(), length)
    stream = torch.empty(len(rows), words(length, bits), dtype=torch.int32, device=codes.device)
    for block in blocks(*rows.shape):
        stream[block] = _joined(padded(rows[block], 32), bits).view(torch.int32)[:, : stream.shape[1]]
    return stream.reshape(*shape, -1).movedim(-1, dim).contiguous()


def unpack(packed: Tensor, bits: int, length: int, dim: int = -1) -> Tensor:
    """The inverse of `pack`.

    Args:
        packed: int32 words with ceil(length · bits / 32) of them along `dim`.
        bits: 1 to 8.
        length: number of codes along `dim`.

    Returns:
        uint8 codes, contiguous.
    """
    moved = packed.movedim(dim, -1)
    shape = moved.shape[:-1]
    rows = moved.reshape(shape.numel(), moved.shape[-1])
    codes = torch.empty(len(rows), length, dtype=torch.uint8, device=packed.device)
    for block in blocks(*codes.shape):
        stream = padded(rows[block].contiguous(), bits)
        codes[block] = _split(stream.view(torch.uint8), bits)[:, :length]
    return codes.reshape(*shape, length).movedim(-1, dim).contiguous()


def stored(streams: Tensor, bits: int, length: int) -> Tensor:
    """What a QuantizedLinear holds: streams of rows where their codes fill whole words, else the codes."""
    return unpack(streams, bits, length) if length * bits % 32 else streams


def padded(rows: Tensor, multiple: int) -> Tensor:
    """[R, L] with zeros up to a multiple of columns; itself where there is nothing to add."""
    missing = -rows.shape[1] % multiple
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows


def _joined(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [R, L], 8 dividing L, to the bytes of their stream, uint8 [R, L·bits/8]."""
    while bits in (1, 2, 4):
        pairs = codes.contiguous().view(torch.int16)
        codes, bits = (pairs | pairs >> (8 - bits)).to(torch.uint8), 2 * bits
    if bits == 8:
        return codes.contiguous()
    eights = codes.contiguous().view(torch.int64)
    for pitch, width in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        low = _fields(2 * pitch, width)
        eights = (eights & low) | (eights >> (pitch - width)).bitwise_and_(low << width)
    return eights.view(torch.uint8).reshape(len(codes), -1, 8)[..., :bits].flatten(1)


def _split(stream: Tensor, bits: int) -> Tensor:
    """The inverse of `_joined`."""
    if bits == 8:
        return stream
    if bits in (1, 2, 4):
        for width in (width for width in (4, 2, 1) if width >= bits):
            fields = stream.short()
            stream = (fields | fields << (8 - width)).bitwise_and_(_fields(8, width, 16)).view(torch.uint8)
        return stream
    eights = stream.new_zeros(len(stream), stream.shape[1] // bits, 8)
    eights[..., :bits] = stream.reshape(len(stream), -1, bits)
    spread = eights.view(torch.int64)[..., 0]
    for pitch, width in ((32, 4 * bits), (16, 2 * bits), (8, bits)):
        low = _fields(2 * pitch, width)
        spread = (spread & low) | (spread << (pitch - width)).bitwise_and_(low << pitch)
    return spread.contiguous().view(torch.uint8)


def _fields(pitch: int, width: int, size: int = 64) -> int:
    """The mask of fields of `width` bits that begin every `pitch` bits."""
    return sum(((1 << width) - 1) << start for start in range(0, size, pitch))
