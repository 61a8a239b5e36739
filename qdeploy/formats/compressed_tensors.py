"""The compressed-tensors format of vLLM and transformers: tensors of one layer, both ways.

pack-quantized holds weight-only integers as dense bit streams, int-quantized holds W8A8 weights as int8.
`quantization_config` in config.json, which says which layer is which, is in `ct_config`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import bits
from qdeploy.formats.ct_config import module_schemes, quantization_config
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

__all__ = ["module_schemes", "pack", "quantization_config", "read_linear", "unpack"]

SUFFIXES = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
"""Every tensor that a quantized layer may own, its bias aside."""


def pack(q: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for `q`, keyed by the suffix that follows the module's name.

    pack-quantized: weight_packed int32 [N, ceil(K·b/32)], weight_scale bfloat16 [N, G], weight_shape int64
    [2] = (N, K), and for asymmetric schemes weight_zero_point int32 [ceil(N·b/32), G].
    int-quantized: weight int8 [N, K] = code − 128, weight_scale bfloat16 [N, 1].
    """
    if q.scheme.activation_bits is not None:
        # Flipping the top bit is the subtraction of 128, read as two's complement.
        return {"weight": (q.codes ^ 0x80).view(torch.int8), "weight_scale": q.scales}
    tensors = {
        "weight_packed": bits.pack(q.codes, q.scheme.bits),
        "weight_scale": q.scales,
        "weight_shape": torch.tensor(q.codes.shape),
    }
    if q.zeros is not None:
        tensors["weight_zero_point"] = bits.pack(q.zeros, q.scheme.bits, dim=0)
    return tensors


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """The inverse of `pack`; also reads what llm-compressor wrote in the same two formats.

    Scales keep the dtype they are stored in.

    Raises:
        CheckpointError: a tensor is missing, or its dtype or shape does not fit the scheme.
    """
    scales = _tensor(tensors, "weight_scale")
    if scheme.activation_bits is not None:
        weight = _tensor(tensors, "weight", torch.int8)
        _check_shape("weight_scale", scales, (weight.shape[0], 1))
        return QuantizedLinear(weight.view(torch.uint8) ^ 0x80, scales, None, scheme)
    n, k = (int(size) for size in _tensor(tensors, "weight_shape"))
    groups = scheme.groups(k)
    packed = _tensor(tensors, "weight_packed", torch.int32)
    _check_shape("weight_packed", packed, (n, bits.words(k, scheme.bits)))
    _check_shape("weight_scale", scales, (n, groups))
    zeros = None
    if not scheme.symmetric:
        packed_zeros = _tensor(tensors, "weight_zero_point", torch.int32)
        _check_shape("weight_zero_point", packed_zeros, (bits.words(n, scheme.bits), groups))
        zeros = bits.unpack(packed_zeros, scheme.bits, n, dim=0)
    return QuantizedLinear(bits.unpack(packed, scheme.bits, k), scales, zeros, scheme)


def read_linear(reader: CheckpointReader, module: str, scheme: Scheme) -> QuantizedLinear:
    """The quantized layer `module` of a checkpoint.

    Raises:
        CheckpointError: as `unpack`; the message names folder and module.
    """
    names = {suffix: f"{module}.{suffix}" for suffix in SUFFIXES}
    tensors = {suffix: reader.get(name) for suffix, name in names.items() if name in reader}
    try:
        return unpack(tensors, scheme)
    except CheckpointError as error:
        raise CheckpointError(f"{module} in {reader.folder} is damaged: {error}.") from error


def _tensor(tensors: Mapping[str, Tensor], suffix: str, dtype: torch.dtype | None = None) -> Tensor:
    if suffix not in tensors:
        raise CheckpointError(f"tensor {suffix} is missing; the layer has {', '.join(sorted(tensors))}")
    if dtype not in (None, tensors[suffix].dtype):
        raise CheckpointError(f"{suffix} is {tensors[suffix].dtype}, expected {dtype}")
    return tensors[suffix]


def _check_shape(suffix: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise CheckpointError(f"{suffix} has shape {list(tensor.shape)}, expected {list(expected)}")
