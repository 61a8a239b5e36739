"""The tensors that a layer of each format must own: names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qdeploy.exporters.layers import Layer
from qdeploy.formats import awq, bits, ct_layout, gptq, modelopt
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
    if name == modelopt.INT4 and leaf in modelopt.ALONE:
        expected["pre_quant_scale"] = (FLOATS, (k,))
    return expected


def _modelopt_weight(scheme: Scheme, name: str | None, n: int, k: int) -> Expected:
    if name == modelopt.INT4:
        return {"weight": (BYTES, (n // 2, k)), "weight_scale": (FLOATS, (n, scheme.groups(k)))}
    if name == modelopt.INT8:
        return {"weight": ((torch.int8,), (n, k)), "weight_scale": (FLOATS, (n,))}
    if scheme.element != E4M3:
        return {"weight": (BYTES, (n, k // 2)), "weight_scale": (FP8, (n, scheme.groups(k)))}
    if scheme.steps == "e8m0":
        return {"weight": (FP8, (n, k)), "weight_scale": (BYTES, (n, scheme.groups(k)))}
    scales: tuple[int, ...] = (n,)
    if scheme.rows != 1:
        scales = () if scheme.rows is None else (-(-n // scheme.rows), 1, scheme.groups(k), 1)
    return {"weight": (FP8, (n, k)), "weight_scale": (FLOATS, scales)}


_BY_FORMAT: Mapping[str, Callable[[Scheme, int, int, str], Expected]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "awq": _awq,
    "modelopt": _modelopt,
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {"gptq": ("g_idx",), "gptq_v2": ("g_idx",)}
"""Format → tensors that a layer may have or not."""

SUFFIXES = tuple(dict.fromkeys([*ct_layout.SUFFIXES, *gptq.SUFFIXES, *awq.SUFFIXES, *modelopt.SUFFIXES]))
"""What a layer may own in any of the formats."""


def expected_tensors(format: str | None, layer: Layer) -> Expected:
    """What the layer must own, its bias aside."""
    if layer.scheme is None:
        return {"weight": (FLOATS, (layer.n, layer.k))}
    return _BY_FORMAT[str(format)](layer.scheme, layer.n, layer.k, layer.leaf)
