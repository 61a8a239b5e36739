"""AutoAWQ's "GEMM" format: tensors of one layer, both ways.

For a layer of N × K with G groups: qweight int32 [K, N/8] and qzeros int32 [G, N/8], eight codes of 4 bits to
a word along N in the order ORDER; scales [G, N]. Zero points are always stored: engines that find none take
8, or fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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

PAIRS = tuple(zip(ORDER[::2], ORDER[1::2], strict=True))
"""The two columns in each byte."""


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
        "qweight": _interleave(q.codes),
        "qzeros": _interleave(zeros),
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
    zeros = _deinterleave(tensors["qzeros"])
    if scheme.symmetric and not (zeros == scheme.zero).all():
        found = int((zeros != scheme.zero).sum())
        raise CheckpointError(
            f"{found} of {zeros.numel()} zero points are not {scheme.zero}; its grid is asymmetric"
        )
    codes = _deinterleave(tensors["qweight"])
    return QuantizedLinear(
        codes, tensors["scales"].T.contiguous(), None if scheme.symmetric else zeros, scheme
    )


def _interleave(codes: Tensor) -> Tensor:
    """uint8 [N, R] to int32 [R, N/8]."""
    eights = codes.reshape(-1, 8, codes.shape[1])
    packed = torch.empty(len(eights), codes.shape[1], dtype=torch.int32)
    for block in bits.blocks(len(eights), 8 * codes.shape[1]):
        part, word = eights[block], packed[block].zero_()
        for i, (low, high) in enumerate(PAIRS):
            word += (part[:, low] | part[:, high] << BITS).int() << 8 * i
    return packed.T.contiguous()


def _deinterleave(words: Tensor) -> Tensor:
    """int32 [R, N/8] to uint8 [N, R]."""
    packed = words.T.contiguous()
    codes = torch.empty(len(packed), 8, packed.shape[1], dtype=torch.uint8)
    for block in bits.blocks(len(packed), 8 * packed.shape[1]):
        for i, (low, high) in enumerate(PAIRS):
            byte = (packed[block] >> 8 * i).to(torch.uint8)
            codes[block, low], codes[block, high] = byte & 15, byte >> BITS
    return codes.flatten(0, 1)
