"""NVIDIA ModelOpt's format, which TensorRT-LLM loads: tensors of one layer, both ways.

By the algorithm that its config names, for a layer of N × K:

    W4A16_AWQ                   weight uint8 [N/2, K]: signed 4-bit codes of rows 2r (low) and 2r + 1 (high);
                                weight_scale [N, G]; pre_quant_scale [K] where the layer reads alone
    W4A8_AWQ                    the same; input_scale [], and weight_scale_2 [], a factor, over which weights
                                are rounded to E4M3 before they are multiplied
    W8A16                       weight int8 [N, K]; weight_scale [N]
    W8A8_SQ_PER_CHANNEL         weight int8 [N, K]; weight_scale [N]; input_scale []; pre_quant_scale [K]
    FP8                         weight E4M3 [N, K]; weight_scale [], input_scale []
    FP8_PER_CHANNEL_PER_TOKEN   weight E4M3 [N, K]; weight_scale [N]
    fp8_pb_wo                   weight E4M3 [N, K]; weight_scale [N/128, 1, K/128, 1]
    NVFP4, W4A16_NVFP4          weight uint8 [N, K/2]; weight_scale E4M3 [N, K/16]; weight_scale_2 [], and
                                input_scale [] where inputs are rounded: factors, not divisors
    MXFP8                       weight E4M3 [N, K]; weight_scale uint8 [N, K/32], exponents plus 127
    mxfp4                       weight uint8 [N, K/2]; weight_scale uint8 [N, K/32], exponents plus 127

Other scales are float32. ModelOpt says mxfp4 whether inputs are rounded, as its default has them and as MXFP4
has them here, or not. No engine loads mxfp4 or W8A8_SQ_PER_CHANNEL from this format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import bits
from qdeploy.formats.compressed_tensors import E8M0_BIAS
from qdeploy.formats.tensors import FLOATING, Layout, attention_of, check, required
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import E4M3, PRESETS, Activations, Scheme

SUFFIXES = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
"""Every tensor that a quantized layer may own, its bias aside."""

INT4, INT4_FP8, INT8, SQ = "W4A16_AWQ", "W4A8_AWQ", "W8A16", "W8A8_SQ_PER_CHANNEL"
INTEGERS = (INT4, INT4_FP8, INT8, SQ)
PAIRED = (INT4, INT4_FP8)
"""With the codes of two rows in a byte, and scales for groups."""

FLOATS = {
    "FP8": "FP8",
    "FP8_DYNAMIC": "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_BLOCK": "fp8_pb_wo",
    "NVFP4": "NVFP4",
    "NVFP4A16": "W4A16_NVFP4",
    "MXFP8": "MXFP8",
    "MXFP4": "mxfp4",
}
"""Preset → algorithm, where a scheme is nothing but its preset; in the case that ModelOpt writes, which
TensorRT-LLM asks of fp8_pb_wo."""

NO_SCHEME = {
    "W4A8_NVFP4_FP8": "weights in E2M1 beside inputs in E4M3",
    "W4A8_MXFP4_FP8": "weights in E2M1 beside inputs in E4M3",
}
"""Algorithm → what in it no scheme says."""

SIGNS = -0x7778
"""0x8888 in two bytes, the sign bits of four codes of 4 bits: less 8 or plus 8 is the other sign."""

LOW = 0x0F0F
"""The lower code of each of two bytes."""

ALONE = ("o_proj", "down_proj", "w2")
"""Layers that TensorRT-LLM runs by themselves, and whose pre_quant_scale it wants to find."""


def algorithm(scheme: Scheme) -> str | None:
    """What ModelOpt calls the scheme; None for one that it has no name for."""
    if scheme.element is not None:
        return FLOATS.get(scheme.name)
    if scheme == PRESETS["W8A8_STATIC"]:
        return SQ
    if scheme == _paired(INT4_FP8, scheme.group_size):
        return INT4_FP8
    if scheme.activations is not None or not scheme.symmetric:
        return None
    if scheme.bits == 4 and scheme.group_size is not None:
        return INT4
    return INT8 if scheme.bits == 8 and scheme.group_size is None else None


def _paired(name: str, group_size: int | None) -> Scheme:
    """The scheme of codes in pairs of rows."""
    if name == INT4:
        return Scheme("W4A16", 4, group_size)
    return Scheme(name, 4, group_size, activations=Activations(E4M3, "tensor", dynamic=False), product=E4M3)


def shape(reader: CheckpointReader, module: str, scheme: Scheme) -> tuple[int, int]:
    """(N, K) of a module, from its header."""
    return _sides(reader.shape(f"{module}.weight"), scheme)


def _sides(stored: Sequence[int], scheme: Scheme) -> tuple[int, int]:
    """(N, K), from the shape of `weight`."""
    rows, columns = stored
    if scheme.bits == 4:
        return (2 * rows, columns) if scheme.element is None else (rows, 2 * columns)
    return rows, columns


def layout(module: str, scheme: Scheme, n: int, k: int) -> Layout:
    """The tensors that a layer [N, K] must own."""
    name, tensors = algorithm(scheme), _weights(scheme, n, k)
    if scheme.has_divisor:
        tensors["weight_scale_2"] = (FLOATING, ())
    if scheme.needs_data:
        tensors["input_scale"] = (FLOATING, ())
    if _scaled_before(name, module):
        tensors["pre_quant_scale"] = (FLOATING, (k,))
    return tensors


def _scaled_before(name: str | None, module: str) -> bool:
    """Whether a layer has a pre_quant_scale: of int4 those that norms do not take it from, of INT8 all."""
    return name == SQ or (name in PAIRED and module.rpartition(".")[2] in ALONE)


def _weights(scheme: Scheme, n: int, k: int) -> Layout:
    name, groups = algorithm(scheme), (n, scheme.groups(k))
    if name in PAIRED:
        return {"weight": ((torch.uint8,), (n // 2, k)), "weight_scale": (FLOATING, groups)}
    if name in (INT8, SQ):
        return {"weight": ((torch.int8,), (n, k)), "weight_scale": (FLOATING, (n,))}
    exponents = (torch.uint8,) if scheme.steps == "e8m0" else (torch.float8_e4m3fn,)
    if scheme.element != E4M3:
        return {"weight": ((torch.uint8,), (n, k // 2)), "weight_scale": (exponents, groups)}
    weight: Layout = {"weight": ((torch.float8_e4m3fn,), (n, k))}
    if scheme.steps == "e8m0":
        return weight | {"weight_scale": (exponents, groups)}
    scales: tuple[int, ...] = (n,)
    if scheme.rows != 1:
        scales = () if scheme.rows is None else (-(-n // scheme.rows), 1, scheme.groups(k), 1)
    return weight | {"weight_scale": (FLOATING, scales)}


def refusal(scheme: Scheme, n: int, k: int) -> str | None:
    """Why the format cannot hold a layer [N, K]; None if it can."""
    if algorithm(scheme) is None:
        if not scheme.symmetric:
            return "ModelOpt has no zero points; W4A16 goes without"
        return f"ModelOpt has no {scheme.describe()}"
    if algorithm(scheme) in PAIRED and n % 2:
        return f"ModelOpt packs pairs of rows, and there are {n}"
    if scheme.group_size and k % scheme.group_size:
        return f"ModelOpt packs whole groups, and {scheme.group_size} does not divide {k} columns"
    return None


def scheme_of(algorithm: str, group_size: int | None) -> Scheme:
    """The scheme that an algorithm stands for.

    Raises:
        CheckpointError: none that can be read.
    """
    name = algorithm.upper()
    if name in PAIRED and group_size:
        return _paired(name, group_size)
    if name == INT8:
        return Scheme("W8A16", 8, None)
    if name == SQ:
        return PRESETS["W8A8_STATIC"]
    for preset, known in FLOATS.items():
        if name == known.upper():
            return PRESETS[preset]
    why = f" ({NO_SCHEME[name]})" if name in NO_SCHEME else ""
    raise CheckpointError(
        f"ModelOpt's {algorithm!r}{why} cannot be read, only {', '.join((*INTEGERS, *FLOATS.values()))}."
    )


def pack(module: str, q: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for `q`, by the suffix that follows the module's name.

    Raises:
        ValueError: what `refusal` refuses.
    """
    reason = refusal(q.scheme, *q.shape)
    if reason is not None:
        raise ValueError(reason)
    name = algorithm(q.scheme)
    assert name is not None
    tensors = {"weight": _packed_codes(q, name), "weight_scale": _packed_scales(q, name)}
    if q.divisor is not None:
        tensors["weight_scale_2"] = 1 / q.divisor.float().reshape(())
    if q.input_scale is not None:
        scale = q.input_scale.float().reshape(())
        tensors["input_scale"] = 1 / scale if q.scheme.steps == "e4m3" else scale
    if _scaled_before(name, module):
        tensors["pre_quant_scale"] = torch.ones(q.shape[1], dtype=torch.bfloat16)
    return tensors


def cache(name: str, scale: Tensor) -> dict[str, Tensor]:
    """A scale of keys or values as it is stored: `….k_proj.k_scale`, float32 []; queries have none."""
    module, _, suffix = name.rpartition(".")
    if suffix == "q_scale":
        return {}
    return {f"{attention_of(module)}.{suffix[0]}_proj.{suffix}": scale.float().reshape(())}


def nearest(q: QuantizedLinear) -> QuantizedLinear:
    """`q` as it comes back: divisors are stored as what they are 1 over."""
    if q.divisor is None:
        return q
    inputs = q.input_scale
    if inputs is not None and q.scheme.steps == "e4m3":
        inputs = 1 / (1 / inputs.float())
    return replace(q, divisor=1 / (1 / q.divisor.float()), input_scale=inputs)


def _packed_codes(q: QuantizedLinear, name: str) -> Tensor:
    if name in PAIRED:
        return _paired_rows(q.stream)[:, : q.shape[1]].contiguous()
    if name in (INT8, SQ):
        return (q.codes - q.scheme.zero).view(torch.int8)
    if q.scheme.element == E4M3:
        return q.codes.view(torch.float8_e4m3fn)
    return q.codes[:, ::2] | (q.codes[:, 1::2] << 4)


def _paired_rows(stream: Tensor) -> Tensor:
    """Streams of 4-bit codes of rows, int32 [N, K/8], less 8, to uint8 [N/2, K]."""
    pairs = stream.view(torch.uint8).reshape(-1, 2, 4 * stream.shape[1])
    packed = torch.empty(len(pairs), 2 * pairs.shape[2], dtype=torch.uint8, device=stream.device)
    for block in bits.blocks(*packed.shape):
        bytes = pairs[block].short()
        codes = (bytes | bytes << 4).bitwise_and_(LOW)
        packed[block] = (codes[:, 0] | codes[:, 1] << 4).bitwise_xor_(SIGNS).view(torch.uint8)
    return packed


def _single_rows(weight: Tensor) -> Tensor:
    """The inverse of `_paired_rows`, padded to whole words."""
    weight = bits.padded(weight, 8)
    pairs = torch.empty(len(weight), 2, weight.shape[1] // 2, dtype=torch.uint8, device=weight.device)
    for block in bits.blocks(*weight.shape):
        codes = weight[block].view(torch.int16) ^ SIGNS
        for row, field in enumerate((codes & LOW, (codes >> 4).bitwise_and_(LOW))):
            pairs[block, row] = (field | field >> 4).to(torch.uint8)
    return pairs.flatten(0, 1).view(torch.int32)


def _packed_scales(q: QuantizedLinear, name: str) -> Tensor:
    if q.scheme.steps == "e8m0":
        return (q.scales.float().log2() + E8M0_BIAS).to(torch.uint8)
    if q.scheme.steps == "e4m3":
        return q.scales.to(torch.float8_e4m3fn)
    scales = q.scales.float()
    if q.scheme.rows is None:
        return scales[0, 0].clone()
    if q.scheme.rows > 1:
        return scales[:: q.scheme.rows].contiguous()[:, None, :, None]
    return scales if name in PAIRED else scales[:, 0].contiguous()


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedLinear:
    """The inverse of `pack`.

    Raises:
        CheckpointError: a tensor is missing or misshapen, or inputs are scaled before the layer reads them.
    """
    name = algorithm(scheme)
    assert name is not None
    before = tensors.get("pre_quant_scale")
    if before is not None and not bool((before == 1).all()):
        raise CheckpointError(
            f"its inputs are multiplied by pre_quant_scale (from {float(before.min()):.3g} to "
            f"{float(before.max()):.3g}), which only ModelOpt's format holds"
        )
    stored = _stored(required(tensors, "weight"), scheme, name)
    n, k = _sides(tensors["weight"].shape, scheme)
    divisor, inputs = tensors.get("weight_scale_2"), tensors.get("input_scale")
    scales = _scales(tensors, scheme, n, k)
    if not scheme.needs_data:
        inputs = None
    if divisor is not None:
        inputs = 1 / inputs.float() if inputs is not None and scheme.steps == "e4m3" else inputs
        divisor = 1 / divisor.float().reshape(())
    return QuantizedLinear(
        stored, scales, None, scheme, divisor, None if inputs is None else inputs.float().reshape(())
    )


def _stored(weight: Tensor, scheme: Scheme, name: str) -> Tensor:
    if name in PAIRED:
        return bits.stored(_single_rows(weight), 4, weight.shape[1])
    if name in (INT8, SQ):
        return weight.view(torch.uint8) + scheme.zero
    if scheme.element == E4M3:
        return weight.view(torch.uint8)
    return torch.stack([weight & 15, weight >> 4], -1).flatten(1)


def _scales(tensors: Mapping[str, Tensor], scheme: Scheme, n: int, k: int) -> Tensor:
    if scheme.steps == "e8m0":
        check(tensors, "weight_scale", torch.uint8, (n, scheme.groups(k)))
        return torch.exp2(tensors["weight_scale"].float() - E8M0_BIAS).bfloat16()
    if scheme.steps == "e4m3":
        check(tensors, "weight_scale", torch.float8_e4m3fn, (n, scheme.groups(k)))
        return tensors["weight_scale"].bfloat16()
    scales = required(tensors, "weight_scale")
    if scheme.rows is None:
        return scales.reshape(1, 1).expand(n, 1)
    if scheme.rows > 1:
        blocks = scales.reshape(-(-n // scheme.rows), scheme.groups(k))
        return blocks.repeat_interleave(scheme.rows, 0)[:n]
    if scheme.group_size is None:
        check(tensors, "weight_scale", None, (n,))
        return scales[:, None]
    check(tensors, "weight_scale", None, (n, scheme.groups(k)))
    return scales
