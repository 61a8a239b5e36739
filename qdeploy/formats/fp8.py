"""The `fp8` format, in which DeepSeek and Qwen are published and vLLM reads: one layer's tensors, both ways.

For a layer of N × K: weight E4M3 [N, K] and, by what `quantization_config` says,

    activation_scheme static     weight_scale [], input_scale []
    activation_scheme dynamic    weight_scale []
    weight_block_size [128, 128] weight_scale_inv [⌈N/128⌉, ⌈K/128⌉]

All scales are float32 and factors, weight_scale_inv too; [1] stands for []. The second is FP8_DYNAMIC whose
rows happen to have one scale, since vLLM rounds inputs by token there where its kernels can; it is only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats.single import only_scheme
from qdeploy.formats.tensors import FLOATING, Layout, check, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import E4M3, PRESETS, Scheme

SCALE, BLOCK_SCALE, INPUT_SCALE = "weight_scale", "weight_scale_inv", "input_scale"
SUFFIXES = ("weight", SCALE, BLOCK_SCALE, INPUT_SCALE)
"""Every tensor that a quantized layer may own, its bias aside."""

TENSOR, DYNAMIC, BLOCKS = PRESETS["FP8"], PRESETS["FP8_DYNAMIC"], PRESETS["FP8_BLOCK"]
BLOCK = [128, 128]
"""Rows and columns that share a scale of the last."""


def shape(reader: CheckpointReader, module: str, _: Scheme) -> tuple[int, int]:
    """(N, K) of a module, from its header."""
    n, k = reader.shape(f"{module}.weight")
    return n, k


def layout(scheme: Scheme, n: int, k: int) -> Layout:
    """The tensors that a layer [N, K] must own."""
    weight: Layout = {"weight": ((torch.float8_e4m3fn,), (n, k))}
    if scheme == BLOCKS:
        return weight | {BLOCK_SCALE: (FLOATING, (-(-n // BLOCK[0]), scheme.groups(k)))}
    inputs: Layout = {INPUT_SCALE: (FLOATING, ())} if scheme.needs_data else {}
    return weight | {SCALE: (FLOATING, ())} | inputs


def refusal(scheme: Scheme, _n: int, _k: int) -> str | None:
    """Why the format cannot hold a layer of the scheme; None if it can."""
    if scheme in (TENSOR, BLOCKS):
        return None
    if scheme.element != E4M3:
        return f"fp8 holds weights in E4M3 alone, no {scheme.describe()}"
    return f"fp8 has a scale for a layer or for 128 × 128 of its weights, no {scheme.describe()}"


def schemes(block: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme: those that own a scale.

    Raises:
        CheckpointError: other blocks, inputs rounded in another way, or a weight in E4M3 without its scale.
    """
    scheme = _scheme(block, reader)
    suffix = BLOCK_SCALE if scheme == BLOCKS else SCALE
    found = {name.removesuffix(f".{suffix}"): scheme for name in reader.names if name.endswith(f".{suffix}")}
    for name in reader.names:
        module, _, last = name.rpartition(".")
        if last == "weight" and reader.dtype(name) == torch.float8_e4m3fn and module not in found:
            raise CheckpointError(
                f"{reader.folder}: {name} is E4M3, and there is no {module}.{suffix}, which by its config "
                "holds the scale. Download the folder again; scales of other names cannot be read."
            )
    return found


def _scheme(block: Mapping[str, Any], reader: CheckpointReader) -> Scheme:
    inputs, size = block.get("activation_scheme", "dynamic"), block.get("weight_block_size")
    if inputs not in ("static", "dynamic") or (inputs == "static" and size):
        raise CheckpointError(
            f"quantization_config in {reader.folder} is damaged: activation_scheme {inputs!r} with "
            f"weight_block_size {size}."
        )
    if size and list(size) != BLOCK:
        raise CheckpointError(f"fp8 in blocks of {list(size)} cannot be read, only of {BLOCK}.")
    return BLOCKS if size else TENSOR if inputs == "static" else DYNAMIC


def block(modules: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` for layers of one scheme, beside others that stay in 16 bits.

    Raises:
        ConversionError: there are several schemes.
    """
    scheme = only_scheme(modules, "fp8")
    size = {"weight_block_size": BLOCK} if scheme == BLOCKS else {}
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "static" if scheme == TENSOR else "dynamic",
        **size,
        "modules_to_not_convert": list(kept),
    }


def pack(q: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for `q`, by the suffix that follows the module's name.

    Raises:
        ValueError: what `refusal` refuses.
    """
    reason = refusal(q.scheme, *q.shape)
    if reason is not None:
        raise ValueError(reason)
    weight = {"weight": q.codes.view(torch.float8_e4m3fn)}
    if q.scheme == BLOCKS:
        return weight | {BLOCK_SCALE: q.scales[:: q.scheme.rows].float().contiguous()}
    assert q.input_scale is not None
    return weight | {SCALE: q.scales[0, 0].float().clone(), INPUT_SCALE: q.input_scale.float().reshape(())}


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """The inverse of `pack`.

    Raises:
        CheckpointError: a tensor is missing, or its dtype or shape does not fit the scheme.
    """
    weight = required(tensors, "weight")
    n, k = weight.shape
    check(tensors, "weight", torch.float8_e4m3fn, (n, k))
    inputs = _scalar(tensors, INPUT_SCALE) if scheme.needs_data else None
    return QuantizedLinear(
        weight.view(torch.uint8), _scales(tensors, scheme, n, k), None, scheme, None, inputs
    )


def _scales(tensors: Mapping[str, Tensor], scheme: Scheme, n: int, k: int) -> Tensor:
    if scheme != BLOCKS:
        return _scalar(tensors, SCALE).expand(n, 1)
    check(tensors, BLOCK_SCALE, None, (-(-n // BLOCK[0]), scheme.groups(k)))
    return tensors[BLOCK_SCALE].repeat_interleave(BLOCK[0], 0)[:n]


def _scalar(tensors: Mapping[str, Tensor], suffix: str) -> Tensor:
    tensor = required(tensors, suffix)
    if tensor.numel() != 1:
        raise CheckpointError(f"{suffix} has shape {list(tensor.shape)}, expected one number")
    return tensor.float().reshape(())
