"""The tensors that a layer of each format must own: names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import torch

from qdeploy.exporters.layers import Layer
from qdeploy.formats import awq, bits, ct_layout, fbgemm, fp8, gptq, modelopt
from qdeploy.schemes import E4M3, Scheme

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
WORDS, BYTES, FP8 = (torch.int32,), (torch.uint8,), (torch.float8_e4m3fn,)

Expected = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
"""Suffix → dtypes that are allowed, and shape."""

SCALARS: tuple[tuple[int, ...], ...] = ((), (1,))
"""Shapes of one number; both are written."""


def _compressed_tensors(scheme: Scheme, n: int, k: int, _: str) -> Expected:
    return {
        suffix: (FLOATS if dtype == torch.bfloat16 else (dtype,), shape)
        for suffix, (dtype, shape) in ct_layout.layout(scheme, n, k).items()
    }


def _gptq(scheme: Scheme, n: int, k: int, _: str) -> Expected:
    b, g = scheme.bits, scheme.groups(k)
    return {
        "qweight": (WORDS, (bits.words(k, b), n)),
        "qzeros": (WORDS, (g, bits.words(n, b))),
        "scales": (FLOATS, (g, n)),
    }


def _awq(scheme: Scheme, n: int, k: int, _: str) -> Expected:
    g, words = scheme.groups(k), n // 8
    return {"qweight": (WORDS, (k, words)), "qzeros": (WORDS, (g, words)), "scales": (FLOATS, (g, n))}


def _modelopt(scheme: Scheme, n: int, k: int, leaf: str) -> Expected:
    name = modelopt.algorithm(scheme)
    expected = _modelopt_weight(scheme, name, n, k)
    if scheme.steps == "e4m3":
        expected["weight_scale_2"] = (FLOATS, ())
    if scheme.needs_data:
        expected["input_scale"] = (FLOATS, ())
    if name in (modelopt.INT4, modelopt.SQ) and leaf in modelopt.ALONE:
        expected["pre_quant_scale"] = (FLOATS, (k,))
    return expected


def _modelopt_weight(scheme: Scheme, name: str | None, n: int, k: int) -> Expected:
    if name == modelopt.INT4:
        return {"weight": (BYTES, (n // 2, k)), "weight_scale": (FLOATS, (n, scheme.groups(k)))}
    if name in (modelopt.INT8, modelopt.SQ):
        return {"weight": ((torch.int8,), (n, k)), "weight_scale": (FLOATS, (n,))}
    if scheme.element != E4M3:
        dtype = FP8 if scheme.steps == "e4m3" else BYTES
        return {"weight": (BYTES, (n, k // 2)), "weight_scale": (dtype, (n, scheme.groups(k)))}
    if scheme.steps == "e8m0":
        return {"weight": (FP8, (n, k)), "weight_scale": (BYTES, (n, scheme.groups(k)))}
    scales: tuple[int, ...] = (n,)
    if scheme.rows != 1:
        scales = () if scheme.rows is None else (-(-n // scheme.rows), 1, scheme.groups(k), 1)
    return {"weight": (FP8, (n, k)), "weight_scale": (FLOATS, scales)}


def _fp8(scheme: Scheme, n: int, k: int, _: str) -> Expected:
    weight: Expected = {"weight": (FP8, (n, k))}
    if scheme == fp8.BLOCKS:
        return weight | {fp8.BLOCK_SCALE: (FLOATS, (-(-n // fp8.BLOCK[0]), scheme.groups(k)))}
    inputs: Expected = {fp8.INPUT_SCALE: (FLOATS, ())} if scheme.needs_data else {}
    return weight | {fp8.SCALE: (FLOATS, ())} | inputs


def _fbgemm(_: Scheme, n: int, k: int, __: str) -> Expected:
    return {"weight": (FP8, (n, k)), "weight_scale": (FLOATS, (n, 1))}


_BY_FORMAT: Mapping[str, Callable[[Scheme, int, int, str], Expected]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "awq": _awq,
    "modelopt": _modelopt,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {"gptq": ("g_idx",), "gptq_v2": ("g_idx",)}
"""Format → tensors that a layer may have or not."""

_FORMATS = (ct_layout, gptq, awq, modelopt, fp8, fbgemm)
SUFFIXES = tuple(dict.fromkeys(chain.from_iterable(each.SUFFIXES for each in _FORMATS)))
"""What a layer may own in any of the formats."""


def expected_tensors(format: str | None, layer: Layer) -> Expected | None:
    """What the layer must own, its bias aside; None in a format that is looked at when it is decoded."""
    if layer.scheme is None:
        return {"weight": (FLOATS, (layer.n, layer.k))}
    found = _BY_FORMAT.get(str(format))
    return found(layer.scheme, layer.n, layer.k, layer.leaf) if found else None
