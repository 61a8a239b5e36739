"""Dense bit streams: codes of b bits, least significant first, running across 32-bit words.

Code i takes bits [b·i, b·i + b) of the stream, so 32 codes fill exactly b words. This is the layout of
compressed-tensors ≥ 0.18 (and of every version for 1, 2, 4 and 8 bits) and of GPTQ's qweight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def words(count: int, bits: int) -> int:
    """Number of 32-bit words that `count` codes of `bits` bits take."""
    return -(-count * bits // 32)


def pack(codes: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Pack unsigned codes along `dim`.

    Args:
        codes: uint8, every value < 2^bits; any shape.
        bits: 1 to 8.
        dim: the dimension of size L that becomes ceil(L · bits / 32).

    Returns:
        int32 words (two's complement containers of unsigned patterns), contiguous; unused high bits are zero.
    """
    rows = codes.movedim(dim, -1)
    length = rows.shape[-1]
    rows = torch.nn.functional.pad(rows, (0, -length % 32)).reshape(*rows.shape[:-1], -1, 32)
    stream = torch.zeros(*rows.shape[:-1], bits, dtype=torch.int32, device=rows.device)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        code = rows[..., i].int()
        stream[..., word] |= code << shift
        if shift + bits > 32:
            stream[..., word + 1] |= code >> (32 - shift)
    return stream.flatten(-2)[..., : words(length, bits)].movedim(-1, dim).contiguous()


def unpack(packed: Tensor, bits: int, length: int, dim: int = -1) -> Tensor:
    """The inverse of `pack`.

    Args:
        packed: int32 words with ceil(length · bits / 32) of them along `dim`.
        bits: 1 to 8.
        length: number of codes along `dim`.

    Returns:
        uint8 codes, contiguous.
    """
    rows = packed.movedim(dim, -1)
    padding = -rows.shape[-1] % bits
    rows = torch.nn.functional.pad(rows, (0, padding)).reshape(*rows.shape[:-1], -1, bits)
    codes = torch.empty(*rows.shape[:-1], 32, dtype=torch.uint8, device=rows.device)
    mask = (1 << bits) - 1
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        code = rows[..., word] >> shift
        if shift + bits > 32:
            # >> copies the sign bit, so keep only the bits that came from this word.
            code = (code & ((1 << (32 - shift)) - 1)) | (rows[..., word + 1] << (32 - shift))
        codes[..., i] = (code & mask).to(torch.uint8)
    return codes.flatten(-2)[..., :length].movedim(-1, dim).contiguous()
