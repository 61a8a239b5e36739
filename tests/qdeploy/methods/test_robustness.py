"""Whatever weights and calibration are like, every rounder ends in a layer that can be stored and run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdeploy import registry
from qdeploy.methods import kernels
from qdeploy.methods.base import LinearProblem, Solution, is_rounder, needs_hessian, refusal, solve
from qdeploy.methods.hessian import Hessian
from qdeploy.quantized import SMALLEST_SCALE, QuantizedLinear
from qdeploy.schemes import PRESETS, Scheme

ROUNDERS = [
    config
    for config in (registry.load("methods", name)() for name in registry.names("methods"))
    if is_rounder(config)
]
ROWS = ("usual", "zero", "positive", "negative", "constant", "outlier", "two outliers", "tiny")
INPUTS = ("none", "no token", "one token", "rank one", "dead", "all dead", "NaN", "infinite", "usual")
UNUSABLE = ("none", "no token", "NaN", "infinite")
"""Inputs from which no rounder can learn anything, whatever their number."""


def row(kind: str, w: Tensor) -> Tensor:
    """`w` [K], normally distributed, made into a row of this kind."""
    outlying, second = torch.zeros_like(w), torch.zeros_like(w)
    outlying[len(w) // 2], second[-1] = 1e4, -1e4
    return {
        "usual": w,
        "zero": torch.zeros_like(w),
        "positive": w.abs() + 0.01,
        "negative": -w.abs() - 0.01,
        "constant": torch.full_like(w, 0.37),
        "outlier": w + outlying,
        "two outliers": w + outlying + second,
        "tiny": w * 1e-7,
    }[kind]


def inputs(kind: str, x: Tensor) -> Tensor:
    """`x` [T, K], normally distributed, made into inputs of this kind."""
    if kind == "rank one":
        return x[:, :1] * x[:1]
    if kind == "dead":
        x[:, ::3] = 0
    elif kind == "all dead":
        x.zero_()
    elif kind in ("NaN", "infinite"):
        x[0, -1] = torch.nan if kind == "NaN" else torch.inf
    return {"no token": x[:0], "one token": x[:1]}.get(kind, x)


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    """Integers of any kind, or a preset of minifloats."""
    if draw(st.booleans()):
        return draw(st.sampled_from([scheme for scheme in PRESETS.values() if scheme.element is not None]))
    bits, group = draw(st.sampled_from([2, 3, 4, 8])), draw(st.sampled_from([None, 5, 16, 32]))
    return Scheme(f"W{bits}A16", bits, group, draw(st.booleans()))


@st.composite
def problems(draw: st.DrawFn) -> tuple[LinearProblem, str, list[str]]:
    """A layer, what its inputs are like, and what its rows are like."""
    scheme = draw(schemes())
    columns = (scheme.group_size or draw(st.sampled_from([7, 24]))) * draw(st.integers(1, 4))
    rows, kind = draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=70)), draw(st.sampled_from(INPUTS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.stack([row(like, torch.randn(columns, generator=generator)) for like in rows])
    stored = weight.to(draw(st.sampled_from([torch.float16, torch.bfloat16])))
    x = inputs(kind, torch.randn(draw(st.integers(2, 3 * columns)), columns, generator=generator))
    hessian = None
    if kind != "none":
        hessian = Hessian(columns)
        hessian.add(x)
    return LinearProblem("layer", stored.float(), hessian, scheme), kind, rows


@pytest.mark.parametrize("config", ROUNDERS, ids=lambda config: type(config).__name__)
@settings(max_examples=200)
@given(drawn=problems(), compiled=st.booleans())
def test_a_solution_can_be_stored_and_run_whatever_was_asked(
    config: Any, drawn: tuple[LinearProblem, str, list[str]], compiled: bool
) -> None:
    """Of machine code, and of the tensor operations that a GPU runs."""
    asked, kind, rows = drawn
    assume(refusal(config, asked.scheme) is None)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(kernels, "fit_for", lambda *_: False)
        found = solve(config, asked)
    assert found.quantized.dequantize().isfinite().all()
    if isinstance(found.quantized, QuantizedLinear):
        check_values(asked, found.quantized)
        check_zero_rows(found, rows)
    else:
        assert torch.equal(found.quantized.weight.half().float(), found.quantized.dequantize())
    check_report(config, asked, found, kind)


def check_values(asked: LinearProblem, layer: QuantizedLinear) -> None:
    scheme = asked.scheme
    n, k = asked.weight.shape
    assert layer.codes.dtype == torch.uint8
    assert layer.codes.shape == (n, k)
    assert int(layer.codes.max()) <= scheme.qmax
    assert layer.scales.dtype == torch.bfloat16
    assert layer.scales.shape == (n, scheme.groups(k))
    assert layer.scales.isfinite().all()
    assert (layer.scales >= SMALLEST_SCALE).all()
    if scheme.element is None:
        assert torch.equal(layer.scales.half().float(), layer.scales.float())
    assert (layer.zeros is None) == scheme.symmetric
    if layer.zeros is not None:
        assert layer.zeros.dtype == torch.uint8
        assert layer.zeros.shape == layer.scales.shape
        assert int(layer.zeros.max()) <= scheme.qmax


def check_zero_rows(found: Solution, rows: list[str]) -> None:
    """Every grid holds zero: the code that is the zero point."""
    zero = torch.tensor([kind == "zero" for kind in rows])
    assert not found.quantized.dequantize()[zero].any()


def check_report(config: Any, asked: LinearProblem, found: Solution, kind: str) -> None:
    assert torch.tensor(found.relative_error).isfinite()
    assert found.relative_error >= 0
    if not needs_hessian(config):
        assert found.fallback is None
        return
    few = asked.hessian is not None and asked.hessian.tokens < asked.weight.shape[1]
    assert bool(found.fallback) == (kind in UNUSABLE or few)
    assert (found.damp is None) == (kind in UNUSABLE)
