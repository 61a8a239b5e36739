"""Where compressed-tensors puts what: the format of a scheme, and the tensors that a layer of it owns."""

from __future__ import annotations

import torch

from qdeploy.formats import bits, tensors
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import E2M1, Codebook, Scheme

PACKED, INT8, FLOAT8, FLOAT8_ALONE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
NVFP4, MXFP4, MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"

SUFFIXES = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_global_scale",
    "input_scale",
    "input_global_scale",
)
"""Every tensor that a quantized layer may own, its bias aside."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Suffix that follows the module's name → dtype and shape."""


def storage_format(scheme: Scheme) -> str:
    """The compressed-tensors name of how `scheme` is stored."""
    if scheme.element is None:
        return PACKED if scheme.activations is None else INT8
    if scheme.element == E2M1:
        return NVFP4 if scheme.steps == "e4m3" else MXFP4
    if scheme.steps == "e8m0":
        return MXFP8
    return FLOAT8_ALONE if scheme.activations is None else FLOAT8


def refusal(scheme: Scheme, _n: int, _k: int) -> str | None:
    """Why the format cannot hold a layer of the scheme; None if it can."""
    unknown = isinstance(scheme.element, Codebook) or scheme.product is not None
    return f"it has no {scheme.describe()}" if unknown else None


def shape(reader: CheckpointReader, module: str, scheme: Scheme) -> tuple[int, int]:
    """(N, K) of a module; of packed integers from `weight_shape`, of others from a header."""
    if storage_format(scheme) == PACKED:
        n, k = (int(size) for size in reader.get(f"{module}.weight_shape"))
        return n, k
    if scheme.bits == 4 and scheme.element is not None:
        n, half = reader.shape(f"{module}.weight_packed")
        return n, 2 * half
    n, k = reader.shape(f"{module}.weight")
    return n, k


def layout(scheme: Scheme, n: int, k: int) -> Layout:
    """The tensors of a layer [N, K] as qdeploy writes them.

    Scales may be of another floating type where others wrote them.
    """
    name = storage_format(scheme)
    found = _codes(scheme, name, n, k) | {"weight_scale": _scales(scheme, name, n, k)}
    if name == PACKED:
        found["weight_shape"] = torch.int64, (2,)
        if not scheme.symmetric:
            words = bits.words(n, scheme.bits)
            found["weight_zero_point"] = torch.int32, (words, scheme.groups(k))
    if name == NVFP4:
        found["weight_global_scale"] = torch.float32, (1,)
        if scheme.needs_data:
            found["input_global_scale"] = torch.float32, (1,)
    elif scheme.needs_data:
        found["input_scale"] = torch.bfloat16, (1,)
    return found


def stored(scheme: Scheme, n: int, k: int) -> tensors.Layout:
    """The tensors that a layer [N, K] must own, whoever wrote it."""
    return {
        suffix: (tensors.FLOATING if dtype == torch.bfloat16 else (dtype,), shape)
        for suffix, (dtype, shape) in layout(scheme, n, k).items()
    }


def _codes(scheme: Scheme, name: str, n: int, k: int) -> Layout:
    if name == PACKED:
        return {"weight_packed": (torch.int32, (n, bits.words(k, scheme.bits)))}
    if name in (NVFP4, MXFP4):
        return {"weight_packed": (torch.uint8, (n, k // 2))}
    return {"weight": (torch.int8 if name == INT8 else torch.float8_e4m3fn, (n, k))}


def _scales(scheme: Scheme, name: str, n: int, k: int) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype = {NVFP4: torch.float8_e4m3fn, MXFP4: torch.uint8, MXFP8: torch.uint8}.get(name, torch.bfloat16)
    if scheme.rows is None:
        return dtype, (1,)
    return dtype, (-(-n // scheme.rows), scheme.groups(k))
