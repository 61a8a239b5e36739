"""bitsandbytes' NF4, in which QLoRA keeps its base model: tensors of one layer, read only.

For a layer of N × K, its weights row after row in blocks (of 64, unless it says otherwise):

    weight                                uint8 [N·K/2, 1]: two codes a byte, the first one high; other
                                          dtypes hold the same bytes
    weight.absmax                         float32 [N·K/64], the scale of each block
    weight.quant_map                      float32 [16], the numbers that codes stand for
    weight.quant_state.bitsandbytes__nf4  uint8, JSON: shape, blocksize, dtype and more

With scales that are quantized themselves ("double quantization") weight.absmax is uint8, a code into
weight.nested_quant_map float32 [256]; weight.nested_absmax has the scales of blocks of these, and the JSON
their size and what is added to all (nested_blocksize, nested_offset).

Source: bitsandbytes 0.50, `functional.py` (QuantState, dequantize_4bit) and `backends/default/ops.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats.tensors import check, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Codebook, Scheme

STATE = "weight.quant_state.bitsandbytes__nf4"
SUFFIXES = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    STATE,
)
"""Every tensor that a quantized layer may own, its bias aside."""

NF4 = Codebook(
    "nf4",
    4,
    (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
"""Quantiles of the normal distribution, the largest of them 1 (QLoRA, arXiv:2305.14314)."""


def schemes(block: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme: those that own a quant_state of NF4.

    Raises:
        CheckpointError: they are of 8 bits or FP4, or a quant_state is damaged.
    """
    kind = "int8" if block.get("load_in_8bit") else block.get("bnb_4bit_quant_type", "fp4")
    if kind != NF4.name:
        raise CheckpointError(
            f"{reader.folder} is quantized by bitsandbytes as {kind}; only nf4 can be read."
        )
    modules = [name.removesuffix(f".{STATE}") for name in reader.names if name.endswith(f".{STATE}")]
    return {module: _scheme(_state(reader, module)) for module in modules}


def shape(reader: CheckpointReader, module: str, _: Scheme) -> tuple[int, int]:
    """(N, K) of a module, from its quant_state."""
    n, k = _state(reader, module)["shape"]
    return n, k


def _state(reader: CheckpointReader, module: str) -> dict[str, Any]:
    try:
        return _parsed(reader.get(f"{module}.{STATE}"))
    except CheckpointError as error:
        raise CheckpointError(f"{module} in {reader.folder} is damaged: {error}.") from error


def _parsed(tensor: Tensor) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(bytes(tensor.tolist()))
        n, k = state["shape"]
        whole = k % int(state["blocksize"]) == 0
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"its quant_state cannot be parsed ({error!r})") from error
    if not whole:
        raise CheckpointError(
            f"its blocks of {state['blocksize']} weights run from one row of {k} into the next, of {n}"
        )
    return state


def _scheme(state: Mapping[str, Any]) -> Scheme:
    return Scheme("NF4", NF4.bits, int(state["blocksize"]), element=NF4)


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """A layer from its tensors, by suffix; its scales are float32.

    Raises:
        CheckpointError: one is missing or misshapen, or codes stand for other numbers.
    """
    state = _parsed(required(tensors, STATE))
    n, k = state["shape"]
    if not torch.allclose(required(tensors, "weight.quant_map"), torch.tensor(NF4.numbers), atol=1e-6):
        raise CheckpointError("weight.quant_map has other numbers than those of NF4")
    packed = required(tensors, "weight").contiguous().view(torch.uint8).flatten()
    if 2 * packed.numel() != n * k:
        raise CheckpointError(f"weight has {packed.numel()} bytes, expected {n * k // 2}")
    codes = torch.stack([packed >> 4, packed & 15], -1).reshape(n, k)
    return QuantizedLinear(codes, _scales(tensors, state, n * scheme.groups(k)).reshape(n, -1), None, scheme)


def _scales(tensors: Mapping[str, Tensor], state: Mapping[str, Any], count: int) -> Tensor:
    stored = required(tensors, "weight.absmax")
    if "weight.nested_absmax" not in tensors:
        check(tensors, "weight.absmax", torch.float32, (count,))
        return stored
    check(tensors, "weight.absmax", torch.uint8, (count,))
    check(tensors, "weight.nested_quant_map", torch.float32, (256,))
    size = int(state["nested_blocksize"])
    check(tensors, "weight.nested_absmax", torch.float32, (-(-count // size),))
    factors = tensors["weight.nested_absmax"].repeat_interleave(size)[:count]
    return tensors["weight.nested_quant_map"][stored.int()] * factors + float(state["nested_offset"])
