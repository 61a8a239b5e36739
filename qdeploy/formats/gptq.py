"""GPTQ's own format, as AutoGPTQ began it and GPTQModel writes it: tensors of one layer, both ways.

For a layer of N × K with G groups: qweight int32 [K·b/32, N] and qzeros int32 [G, N·b/32], dense streams of
codes along the first and the second dimension; scales [G, N]; g_idx int32 [K], the group of each column.
Version 1 (`checkpoint_format: gptq`, or none) stores zero points less one, version 2 (`gptq_v2`) as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import bits
from qdeploy.formats.tensors import FLOATING, Layout, check, check_layout, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

Version = Literal[1, 2]

BITS = (2, 3, 4, 8)
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
"""Every tensor that a quantized layer may own, its bias aside."""


def shape(reader: CheckpointReader, module: str, scheme: Scheme) -> tuple[int, int]:
    """(N, K) of a module, from its header."""
    words, n = reader.shape(f"{module}.qweight")
    return n, words * 32 // scheme.bits


def layout(scheme: Scheme, n: int, k: int) -> Layout:
    """The tensors that a layer [N, K] must own; g_idx may be there too."""
    b, g = scheme.bits, scheme.groups(k)
    return {
        "qweight": ((torch.int32,), (bits.words(k, b), n)),
        "qzeros": ((torch.int32,), (g, bits.words(n, b))),
        "scales": (FLOATING, (g, n)),
    }


def refusal(scheme: Scheme, n: int, k: int) -> str | None:
    """Why the format cannot hold a layer [N, K]; None if it can."""
    if scheme.element is not None or scheme.activations is not None:
        return "GPTQ holds integer weights alone, and no rounding of activations"
    if scheme.bits not in BITS:
        return f"GPTQ packs 2, 3, 4 or 8 bits, not {scheme.bits}"
    if n % 32 or k % 32:
        return f"GPTQ packs layers whose sides 32 divides, not [{n}, {k}]"
    return None


def pack(q: QuantizedLinear, version: Version) -> dict[str, Tensor]:
    """The tensors that stand for `q`, by the suffix that follows the module's name.

    Its groups are runs of columns.

    Readers of version 1 disagree on what a stored zero point of all ones means, which is what 0 becomes
    there: see `needs_version_2`.

    Raises:
        ValueError: version 1 for a zero point of 0, or what `refusal` refuses.
    """
    n, k = q.shape
    reason = refusal(q.scheme, n, k)
    if reason is not None:
        raise ValueError(reason)
    if version == 1 and needs_version_2(q):
        raise ValueError(
            "version 1 of GPTQ's format has no zero point of 0 that all readers know; gptq_v2 has"
        )
    zeros = torch.full_like(q.scales, q.scheme.zero, dtype=torch.uint8) if q.zeros is None else q.zeros
    return {
        "qweight": q.stream.T.contiguous(),
        "qzeros": bits.pack(zeros.T - int(version == 1), q.scheme.bits),
        "scales": q.scales.T.contiguous(),
        "g_idx": _groups_of_columns(k, q.scheme.group_size),
    }


def needs_version_2(q: QuantizedLinear) -> bool:
    """Whether version 1 cannot hold its zero points so that all readers agree."""
    return q.zeros is not None and bool((q.zeros == 0).any())


def _groups_of_columns(k: int, size: int | None) -> Tensor:
    """g_idx int32 [K] of groups of adjacent columns; of one for all where there is no size."""
    return torch.arange(k, dtype=torch.int32) // (size or k)


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme, version: Version) -> QuantizedLinear:
    """The inverse of `pack`; scales keep the dtype that they are stored in.

    Args:
        tensors: by suffix; g_idx may be absent.
        scheme: as the checkpoint's config has it. A symmetric one is checked against the zero points.
        version: of the zero points; the fields of version 1 are read modulo 2^bits.

    Raises:
        CheckpointError: a tensor is missing or misshapen, columns have groups that are not there, or zero
            points are not those of the symmetric grid.
    """
    b = scheme.bits
    words, n = required(tensors, "qweight").shape
    k = words * 32 // b
    check_layout(tensors, layout(scheme, n, k))
    of_runs, of_columns = _read_groups(tensors, k, scheme)
    zeros = bits.unpack(tensors["qzeros"], b, n).T
    if version == 1:
        zeros = (zeros + 1) & scheme.qmax
    if scheme.symmetric and not (zeros == scheme.zero).all():
        found = int((zeros != scheme.zero).sum())
        raise CheckpointError(
            f"{found} of {zeros.numel()} zero points are not {scheme.zero}, that of the symmetric grid, if "
            f"they are stored as version {version} does; is checkpoint_format right?"
        )
    kept = None if scheme.symmetric else zeros[:, of_runs].contiguous()
    scales = tensors["scales"].T[:, of_runs].contiguous()
    return QuantizedLinear(tensors["qweight"].T.contiguous(), scales, kept, scheme, column_groups=of_columns)


def _read_groups(tensors: Mapping[str, Tensor], k: int, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Which of the stored groups each run of columns has; and each column, if some run has several.

    Groups that are only numbered in another order leave runs whole.
    """
    groups, size = scheme.groups(k), scheme.group_size or k
    if "g_idx" not in tensors:
        return torch.arange(groups), None
    check(tensors, "g_idx", torch.int32, (k,))
    found = tensors["g_idx"]
    if not 0 <= int(found.min()) <= int(found.max()) < groups:
        raise CheckpointError(f"g_idx is from {int(found.min())} to {int(found.max())}, of {groups} groups")
    of_runs = found[::size].long()
    if torch.equal(found, of_runs.repeat_interleave(size)[:k]):
        return of_runs, None
    return torch.arange(groups), found


def out_of_order(column_groups: Tensor, scheme: Scheme) -> int:
    """How many columns are in another group than that of their place."""
    return int((column_groups != _groups_of_columns(len(column_groups), scheme.group_size)).sum())
