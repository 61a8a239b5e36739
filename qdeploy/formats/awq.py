"""AutoAWQ's "GEMM" format: tensors of one layer, both ways.

For a layer of N × K with G groups: qweight int32 [K, N/8] and qzeros int32 [G, N/8], eight codes of 4 bits to
a word along N in the order ORDER; scales [G, N]. Zero points are always stored: engines that find none take
8, or fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import bits
from qdeploy.formats.single import only_scheme
from qdeploy.formats.tensors import FLOATING, Layout, check_layout, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme, identify

SUFFIXES = ("qweight", "qzeros", "scales")
"""Every tensor that a quantized layer owns, its bias aside."""

BITS = 4
SYMMETRIC = -0x77777778
"""Eight zero points of 8 in a word, 0x88888888."""

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns is in each field of a word, from the lowest."""

BLOCK = 1 << 19
"""Words that are worked on at a time: few enough to stay in the processor's cache, enough for long rows."""

Words = NDArray[np.uint32]

FIELDS = {4: 0x0000FFFF, 2: 0x00FF00FF, 1: 0x0F0F0F0F}
"""The fields of a word whose number lacks this bit."""


def shape(reader: CheckpointReader, module: str, _: Scheme) -> tuple[int, int]:
    """(N, K) of a module, from its header."""
    k, words = reader.shape(f"{module}.qweight")
    return 8 * words, k


def layout(scheme: Scheme, n: int, k: int) -> Layout:
    """The tensors that a layer [N, K] must own."""
    g, words = scheme.groups(k), n // 8
    return {
        "qweight": ((torch.int32,), (k, words)),
        "qzeros": ((torch.int32,), (g, words)),
        "scales": (FLOATING, (g, n)),
    }


def refusal(scheme: Scheme, n: int, k: int) -> str | None:
    """Why the format cannot hold a layer [N, K]; None if it can."""
    if scheme.element is not None or scheme.activations is not None:
        return "AWQ holds integer weights alone, and no rounding of activations"
    if scheme.bits != BITS:
        return f"AWQ packs 4 bits, not {scheme.bits}"
    if n % 32 or k % 32:
        return f"AWQ packs layers whose sides 32 divides, not [{n}, {k}]"
    if scheme.group_size and k % scheme.group_size:
        return f"AWQ packs whole groups, and {scheme.group_size} does not divide {k} columns"
    return None


def schemes(block: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme: those that own a qweight; symmetric where all zero points are 8.

    Raises:
        CheckpointError: another packing than GEMM, or a damaged block.
    """
    if str(block.get("version", "gemm")).lower() != "gemm":
        raise CheckpointError(f"AWQ's {block['version']!r} packing cannot be read, only 'gemm'.")
    bits = block.get("bits", block.get("w_bit", BITS))
    size = block.get("group_size", block.get("q_group_size", 128))
    if bits != BITS or not isinstance(size, int):
        raise CheckpointError(f"quantization_config in {reader.folder}: bits {bits!r}, group size {size!r}.")
    found = {}
    for name in reader.names:
        if name.endswith(".qzeros"):
            symmetric = bool((reader.get(name) == SYMMETRIC).all())
            scheme = Scheme("", BITS, None if size == -1 else size, symmetric)
            found[name.removesuffix(".qzeros")] = identify(scheme) or scheme
    return found


def block(modules: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
    """The block for layers of one scheme, beside others that stay in 16 bits.

    Raises:
        ConversionError: there are several schemes.
    """
    scheme = only_scheme(modules, "AWQ")
    # Readers look for them anywhere in a name, as a router's is in `gate_proj`; without a list, at dtypes.
    misread = any(name in module for name in kept for module in modules)
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": scheme.group_size or -1,
        "zero_point": True,  # they are there, though of the symmetric grid all are 8
        "version": "gemm",
        "modules_to_not_convert": None if misread else list(kept),
    }


def pack(q: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for `q`, by the suffix that follows the module's name.

    Raises:
        ValueError: what `refusal` refuses.
    """
    reason = refusal(q.scheme, *q.shape)
    if reason is not None:
        raise ValueError(reason)
    zeros = torch.full_like(q.scales, q.scheme.zero, dtype=torch.uint8) if q.zeros is None else q.zeros
    return {
        "qweight": _interleave(q.stream, q.shape[1]),
        "qzeros": _interleave(bits.pack(zeros, BITS), zeros.shape[1]),
        "scales": q.scales.T.contiguous(),
    }


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """The inverse of `pack`; scales keep the dtype that they are stored in.

    Args:
        tensors: by suffix.
        scheme: as the checkpoint's config has it. A symmetric one is checked against the zero points.

    Raises:
        CheckpointError: a tensor is missing or misshapen, or zero points are not those of the symmetric grid.
    """
    k, words = required(tensors, "qweight").shape
    check_layout(tensors, layout(scheme, 8 * words, k))
    zeros = bits.unpack(_deinterleave(tensors["qzeros"]), BITS, scheme.groups(k))
    if scheme.symmetric and not (zeros == scheme.zero).all():
        found = int((zeros != scheme.zero).sum())
        raise CheckpointError(
            f"{found} of {zeros.numel()} zero points are not {scheme.zero}; its grid is asymmetric"
        )
    stored = bits.stored(_deinterleave(tensors["qweight"]), BITS, k)
    return QuantizedLinear(
        stored, tensors["scales"].T.contiguous(), None if scheme.symmetric else zeros, scheme
    )


def _interleave(stream: Tensor, columns: int) -> Tensor:
    """Streams of rows, int32 [N, ceil(C/8)], to int32 [C, N/8]."""
    count, eights = stream.shape[1], len(stream) // 8
    words = torch.empty(8 * count, eights, dtype=torch.int32)
    rows = stream.reshape(eights, 8 * count)
    for block in _blocks(eights, count):
        planes = rows[block].T.contiguous()
        for bit, before, after in _exchanges(planes, words[:, block]):
            _exchange(before, after, bit)
    return words[:columns]


def _deinterleave(words: Tensor) -> Tensor:
    """int32 [C, N/8] to streams of rows, int32 [N, ceil(C/8)], padded with zeros."""
    padded = bits.padded(words.T, 8).T.contiguous()
    count, eights = len(padded) // 8, words.shape[1]
    rows = torch.empty(eights, 8 * count, dtype=torch.int32)
    for block in _blocks(eights, count):
        planes = torch.empty(8 * count, len(rows[block]), dtype=torch.int32)
        for bit, before, after in reversed(_exchanges(planes, padded[:, block])):
            _exchange(after, before, bit)
        rows[block] = planes.T
    return rows.view(8 * eights, count)


def _blocks(eights: int, count: int) -> Iterator[slice]:
    """Eights of rows of so many words, in blocks of about BLOCK words."""
    step = max(1, BLOCK // (8 * count))
    return (slice(start, start + step) for start in range(0, eights, step))


def _exchanges(planes: Tensor, words: Tensor) -> list[tuple[int, Words, Words]]:
    """From planes [8·R, C], all words of the first of eight rows, then of the second, to words [8·R, C].

    Field i of word j becomes field j of word i, as Warren has it for bits (Hacker's Delight, 2nd edition,
    section 7-3), but for ORDER: the last bit of a row's number becomes the first of a field's.

    Returns:
        What to do: a bit of a field's number, and words before and after it is exchanged for a bit of theirs,
        their first axis.
    """
    rows = planes.numpy().view(np.uint32).reshape(2, 2, 2, -1, planes.shape[1])
    fields = words.numpy().view(np.uint32).reshape(-1, 2, 2, 2, planes.shape[1])
    last = rows.transpose(2, 0, 1, 3, 4)
    return [
        (4, last, last),
        (2, rows, rows),
        (1, rows.transpose(1, 2, 0, 3, 4), fields.transpose(3, 1, 2, 0, 4)),
    ]


def _exchange(source: Words, target: Words, bit: int) -> None:
    """The fields with a bit of `source[0]` change places with those without it of `source[1]`."""
    low, high = source
    changed = low >> bit * BITS
    changed ^= high
    changed &= np.uint32(FIELDS[bit])
    np.bitwise_xor(high, changed, out=target[1])
    changed <<= bit * BITS
    np.bitwise_xor(low, changed, out=target[0])
