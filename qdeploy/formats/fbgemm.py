"""FBGEMM's FP8, in which Meta published Llama 3.1 405B: tensors of one layer, read only.

For a layer of N × K: weight E4M3 [N, K], weight_scale float32 [N, 1]; inputs are rounded by token, which is
FP8_DYNAMIC. The largest magnitude that a token's scale is made from is bounded (`activation_scale_ub` in
config.json, 1200 by default), which FP8_DYNAMIC has no word for: there larger inputs are not cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qdeploy.formats.tensors import FLOATING, Layout, check_layout, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import PRESETS, Scheme

SUFFIXES = ("weight", "weight_scale")
"""Every tensor that a quantized layer owns, its bias aside."""


def schemes(_: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme: those that own a weight_scale."""
    names = [name.removesuffix(".weight_scale") for name in reader.names if name.endswith(".weight_scale")]
    return dict.fromkeys(names, PRESETS["FP8_DYNAMIC"])


def shape(reader: CheckpointReader, module: str, _: Scheme) -> tuple[int, int]:
    """(N, K) of a module, from its header."""
    n, k = reader.shape(f"{module}.weight")
    return n, k


def layout(n: int, k: int) -> Layout:
    """The tensors that a layer [N, K] must own."""
    return {"weight": ((torch.float8_e4m3fn,), (n, k)), "weight_scale": (FLOATING, (n, 1))}


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """A layer from its tensors, by suffix.

    Raises:
        CheckpointError: one is missing, or its dtype or shape is another.
    """
    weight = required(tensors, "weight")
    n, k = weight.shape
    check_layout(tensors, layout(n, k))
    return QuantizedLinear(weight.view(torch.uint8), tensors["weight_scale"].float(), None, scheme)
