"""Tensors of one layer, by suffix, looked at before they are decoded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError


def attention_of(module: str) -> str:
    """The attention that a scale belongs to, which may stand beside the layer that makes keys or values."""
    return module.removesuffix(".k_proj").removesuffix(".v_proj")


FLOATING = (torch.bfloat16, torch.float16, torch.float32)
"""What scales may be stored in, where a format leaves that open."""

Layout = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
"""Suffix of a tensor that a layer must own → dtypes that it may have, and shape; [] stands for [1] too."""


def check_layout(tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """Refuse a layer whose tensors are not those of its format; scales may be of any dtype.

    Raises:
        CheckpointError: one is missing, or of another dtype or shape.
    """
    for suffix, (dtypes, shape) in layout.items():
        check(tensors, suffix, None if dtypes == FLOATING else dtypes[0], shape)


def required(tensors: Mapping[str, Tensor], suffix: str) -> Tensor:
    """The tensor of that suffix.

    Raises:
        CheckpointError: there is none.
    """
    if suffix not in tensors:
        raise CheckpointError(f"tensor {suffix} is missing; the layer has {', '.join(sorted(tensors))}")
    return tensors[suffix]


def check(
    tensors: Mapping[str, Tensor], suffix: str, dtype: torch.dtype | None, shape: tuple[int, ...]
) -> None:
    """Refuse a tensor of another dtype (None for any) or shape.

    Raises:
        CheckpointError: with both.
    """
    tensor = required(tensors, suffix)
    if dtype not in (None, tensor.dtype):
        raise CheckpointError(f"{suffix} is {tensor.dtype}, expected {dtype}")
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{suffix} has shape {list(tensor.shape)}, expected {list(shape)}")
