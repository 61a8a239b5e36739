"""Values of scales, zero points and column orders: what a header cannot say, read without any code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.lint.config import ACT_ORDER
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.lint.tensors import AGAIN
from qdeploy.formats import bits, gptq, gptq_config

BAD_SCALE = rule(
    "QD301",
    "error",
    "Scales that are zero, infinite, not a number, or negative where they cannot be",
    """Zero silences the weights of its group, a negative one turns their signs, the others poison every
    token that comes by. In scales that are exponents (MXFP4, MXFP8) 255 stands for "not a number".""",
)
NEGATIVE = rule(
    "QD312",
    "info",
    "Negative scales of integers",
    """AutoRound chooses them on symmetric grids, whose negative side is one step longer, where the largest
    weight is positive. W = s · (q − z) holds for them as for others, and vLLM on a CPU was verified with
    one of its folders.""",
)
DENORMAL = rule(
    "QD302",
    "warning",
    "Scales that are denormal in float16",
    """Below 2^-14 float16 loses digits with every power of two, and devices that flush denormals take zero.
    Scales in bfloat16 have no such range.""",
)
LOSES_BITS = rule(
    "QD303",
    "warning",
    "float16 scales lose digits when the model runs in bfloat16",
    """vLLM casts scales to the dtype that the model runs in. float16 has three bits more than bfloat16, so
    every weight of a group is off by up to 1/512 of itself. `--dtype float16` keeps them, if the model
    can run in it. Scales that qdeploy chooses are exact in both.""",
)
ZERO_POINTS = rule(
    "QD304",
    "error",
    "Zero points are not those that the config promises",
    """GPTQ's first version stores zero points less one, `gptq_v2` as they are; symmetric grids have 2^(b-1)
    everywhere. Read by the wrong rule every weight is off by one step of its grid. vLLM ignores GPTQ's
    zero points, others do not.""",
)
AMBIGUOUS = rule(
    "QD305",
    "warning",
    "Zero points of 0 in GPTQ's first version",
    """Less one they are stored as all ones. Some readers take that for 2^bits, some add one to whole words,
    so that it carries into the neighbour. `qdeploy convert --to gptq_v2` stores them without doubt.""",
)

GROUP_SCALES = ("weight_scale", "scales")
SCALES = ("weight_scale", "scales", "weight_scale_inv", "weight_scale_2", "weight_global_scale")
INPUT_SCALES = ("input_scale", "input_global_scale", "pre_quant_scale")
EXPONENT_NAN = 255
LEAST_NORMAL = 2.0**-14


def check_scales(subject: Subject) -> Iterator[Finding]:
    """Scales are finite, positive, and what they are when the model runs."""
    runs_in = subject.reader.config.get("dtype") or subject.reader.config.get("torch_dtype")
    for layer in subject.quantized():
        for suffix in (*SCALES, *INPUT_SCALES):
            if f"{layer.name}.{suffix}" in subject.reader:
                scales = subject.reader.get(f"{layer.name}.{suffix}")
                yield from _check_values(layer, suffix, scales)
                if scales.dtype == torch.float16:
                    yield from _check_float16(layer, suffix, scales, runs_in=str(runs_in))


def _check_values(layer: Layer, suffix: str, scales: Tensor) -> Iterator[Finding]:
    integers = layer.scheme is not None and layer.scheme.element is None and suffix in GROUP_SCALES
    values = scales.float()
    bad = (scales == EXPONENT_NAN) if scales.dtype == torch.uint8 else ~(values.isfinite() & (values != 0))
    below = (values < 0) & values.isfinite()
    wrong = int((bad if integers else bad | below).sum())
    what = f"of {scales.numel()} " + ("scales" if suffix in GROUP_SCALES else f"values of {suffix}")
    if wrong:
        yield BAD_SCALE(
            f"{wrong} {what} are not finite and {'other than 0' if integers else 'positive'}",
            f"{AGAIN}; if it happens again the 16-bit weights are damaged",
            layer.name,
        )
    if integers and below.any():
        yield NEGATIVE(f"{int(below.sum())} {what} are negative", "", layer.name)


def _check_float16(layer: Layer, suffix: str, scales: Tensor, *, runs_in: str) -> Iterator[Finding]:
    low = int(((scales > 0) & (scales < LEAST_NORMAL)).sum())
    if low:
        problem = f"{low} of {scales.numel()} values of {suffix} are denormal in float16, below 2^-14"
        yield DENORMAL(problem, "Store them in bfloat16", layer.name)
    lost = int(((scales.bfloat16() != scales) & scales.isfinite()).sum())
    if lost and runs_in == "bfloat16":
        yield LOSES_BITS(
            f"{lost} of {scales.numel()} values of {suffix} are no bfloat16 numbers, in which the model runs",
            "Serve it with --dtype float16, or measure what it costs",
            layer.name,
        )


def check_zero_points(subject: Subject) -> Iterator[Finding]:
    """GPTQ's zero points are what version and grid say."""
    if subject.format not in ("gptq", "gptq_v2"):
        return
    version = gptq_config.version(subject.block)
    for layer in subject.quantized():
        stored = f"{layer.name}.qzeros"
        if stored in subject.reader and layer.scheme is not None:
            fields = bits.unpack(subject.reader.get(stored), layer.scheme.bits, layer.n)
            yield from _check_fields(layer, fields, version)


def _check_fields(layer: Layer, fields: Tensor, version: gptq.Version) -> Iterator[Finding]:
    assert layer.scheme is not None
    scheme = layer.scheme
    if not scheme.symmetric:
        highest = int((fields == scheme.qmax).sum())
        if version == 1 and highest:
            yield AMBIGUOUS(f"{highest} of {fields.numel()} zero points are 0", "See QD305", layer.name)
        return
    wrong = int((fields != scheme.zero - (version == 1)).sum())
    if not wrong:
        return
    other = scheme.zero - (version != 1)
    if bool((fields == other).all()):
        yield ZERO_POINTS(
            f"zero points are stored as {other}, as version {3 - version} does; the config says {version}",
            f"Set checkpoint_format to {'gptq_v2' if version == 1 else 'gptq'}",
            layer.name,
        )
    else:
        problem = f"{wrong} of {fields.numel()} zero points are not {scheme.zero}, though sym is true"
        yield ZERO_POINTS(problem, "Set sym to false, or quantize the model again", layer.name)


def check_order(subject: Subject) -> Iterator[Finding]:
    """g_idx counts up, group by group."""
    for layer in subject.quantized():
        name = f"{layer.name}.g_idx"
        if name not in subject.reader or layer.scheme is None:
            continue
        found = subject.reader.get(name)
        jumps = gptq.out_of_order(found, layer.scheme)
        if jumps:
            yield ACT_ORDER(
                f"{jumps} of {layer.k} columns are in another group than their neighbours, by g_idx",
                "Quantize again with static groups, or without desc_act",
                layer.name,
            )
