"""The compressed-tensors format of vLLM and transformers: tensors of one layer, both ways.

`quantization_config` in config.json, which says which layer is which, is in `ct_config`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import bits
from qdeploy.formats.ct_config import module_schemes, quantization_config
from qdeploy.formats.ct_layout import INT8, PACKED, SUFFIXES, layout, storage_format
from qdeploy.formats.tensors import attention_of, check, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import E4M3, Scheme

__all__ = ["module_schemes", "pack", "quantization_config", "read_linear", "unpack"]

E8M0_BIAS = 127
_SCALES = ("weight_scale", "input_scale")


def pack(q: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for `q`, keyed by the suffix that follows the module's name; see `layout`."""
    tensors = _pack_codes(q) | {"weight_scale": _pack_scales(q)}
    if storage_format(q.scheme) == PACKED:
        tensors["weight_shape"] = torch.tensor(q.shape)
    if q.zeros is not None:
        tensors["weight_zero_point"] = bits.pack(q.zeros, q.scheme.bits, dim=0)
    if q.divisor is not None:
        tensors["weight_global_scale"] = q.divisor.reshape(1)
    if q.input_scale is not None:
        name = "input_scale" if q.divisor is None else "input_global_scale"
        tensors[name] = _scalar(q.input_scale) if q.divisor is None else q.input_scale.reshape(1)
    return tensors


def _scalar(scale: Tensor) -> Tensor:
    """[1], bfloat16 where that holds it: other tools' scales may be float32."""
    half = scale.bfloat16()
    return (half if torch.equal(half.float(), scale.float()) else scale.float()).reshape(1)


def _pack_codes(q: QuantizedLinear) -> dict[str, Tensor]:
    name = storage_format(q.scheme)
    if name == PACKED:
        return {"weight_packed": q.stream}
    if name == INT8:
        return {
            "weight": (q.codes - q.scheme.zero).view(torch.int8)
        }  # below zero it wraps to two's complement
    if q.scheme.element == E4M3:
        return {"weight": q.codes.view(torch.float8_e4m3fn)}
    return {"weight_packed": q.codes[:, ::2] | (q.codes[:, 1::2] << 4)}


def _pack_scales(q: QuantizedLinear) -> Tensor:
    scheme = q.scheme
    scales = q.scales[:1, 0] if scheme.rows is None else q.scales[:: scheme.rows].contiguous()
    if scheme.steps == "e8m0":
        return (scales.float().log2() + E8M0_BIAS).to(torch.uint8)
    return scales.to(torch.float8_e4m3fn) if scheme.steps == "e4m3" else scales


def cache(name: str, scale: Tensor) -> dict[str, Tensor]:
    """A scale of keys, values or queries as it is stored: `….self_attn.k_scale`, [1].

    Args:
        name: of it, beside the attention or beside the layer that makes keys or values.
        scale: of one number.
    """
    module, _, suffix = name.rpartition(".")
    return {f"{attention_of(module)}.{suffix}": _scalar(scale)}


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """The inverse of `pack`; also reads what llm-compressor wrote in the same formats.

    Scales keep the dtype they are stored in, where that is floating point of 16 or 32 bits.

    Raises:
        CheckpointError: a tensor is missing, or its dtype or shape does not fit the scheme.
    """
    n, k = _shape(tensors, scheme)
    for suffix, (dtype, shape) in layout(scheme, n, k).items():
        check(tensors, suffix, None if suffix in _SCALES and dtype == torch.bfloat16 else dtype, shape)
    zeros = tensors.get("weight_zero_point")
    scale = tensors.get("input_scale" if scheme.steps != "e4m3" else "input_global_scale")
    divisor = tensors.get("weight_global_scale")
    return QuantizedLinear(
        _unpack_codes(tensors, scheme, k),
        _unpack_scales(tensors["weight_scale"], scheme, n),
        None if scheme.symmetric or zeros is None else bits.unpack(zeros, scheme.bits, n, dim=0),
        scheme,
        None if divisor is None else divisor.reshape(()),
        None if scale is None or not scheme.needs_data else scale.float().reshape(()),
    )


def _shape(tensors: Mapping[str, Tensor], scheme: Scheme) -> tuple[int, int]:
    """(N, K)."""
    if storage_format(scheme) == PACKED:
        n, k = (int(size) for size in required(tensors, "weight_shape"))
        return n, k
    if scheme.bits == 4 and scheme.element is not None:
        n, half = required(tensors, "weight_packed").shape
        return n, 2 * half
    n, k = required(tensors, "weight").shape
    return n, k


def _unpack_codes(tensors: Mapping[str, Tensor], scheme: Scheme, k: int) -> Tensor:
    name = storage_format(scheme)
    if name == PACKED:
        return bits.stored(tensors["weight_packed"], scheme.bits, k)
    if name == INT8:
        return tensors["weight"].view(torch.uint8) + scheme.zero
    if scheme.element == E4M3:
        return tensors["weight"].view(torch.uint8)
    packed = tensors["weight_packed"]
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)


def _unpack_scales(scales: Tensor, scheme: Scheme, n: int) -> Tensor:
    if scheme.steps == "e8m0":
        scales = torch.exp2(scales.float() - E8M0_BIAS).bfloat16()
    elif scheme.steps == "e4m3":
        scales = scales.bfloat16()
    if scheme.rows is None:
        return scales.reshape(1, 1).expand(n, 1)
    return scales if scheme.rows == 1 else scales.repeat_interleave(scheme.rows, 0)[:n]


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
