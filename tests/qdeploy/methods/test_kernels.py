"""Machine code and tensor operations, which a GPU runs, do the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qdeploy.methods import kernels
from qdeploy.methods.base import solve
from qdeploy.methods.columns import round_columns, round_on_device
from qdeploy.methods.descent import descend, descend_columns
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.grid import Grid, fit, search
from qdeploy.methods.hessian import Factor
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.schemes import PRESETS, Scheme
from tests.qdeploy.methods.problems import problem, scheme, weights

SCHEMES = [
    *(scheme(bits, 32, symmetric) for bits in (2, 4) for symmetric in (True, False)),
    *(PRESETS[name] for name in ("FP8A16", "FP8", "MXFP8", "MXFP4", "NVFP4A16")),
]


def factor_of(kind: Scheme) -> Factor:
    hessian = problem(kind).hessian
    assert hessian is not None
    factor = hessian.factor(0.01, 0.3, "driven")
    assert factor is not None
    return factor


def same(a: torch.Tensor, b: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Whether codes stand for the same number; minifloats have two zeros."""
    return grid.quantized(a).dequantize() == grid.quantized(b).dequantize()


@pytest.mark.parametrize(("group", "more"), [(40, 16), (None, 16), (None, 17)])
def test_neither_tiles_nor_leaves_need_be_full_and_threads_change_nothing(
    group: int | None, more: int
) -> None:
    """Rows that are no multiple of a tile, columns that are none of a leaf, and an odd number of them."""
    kind, weight = scheme(4, group), weights(2 * kernels.TILE + 9, 2 * kernels.LEAF + more)
    hessian = problem(kind, weight).hessian
    factor = hessian.factor(0.01, 0.3, "driven") if hessian else None
    assert factor is not None

    def rounded(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        grid = search(weight, kind, factor.importance)
        first = round_columns(weight, grid, factor).codes
        expected = round_on_device(weight, grid, factor).codes
        assert (first == expected).float().mean() > 0.99
        return descend(weight, first, grid, factor, 2)

    try:
        assert torch.equal(rounded(3), rounded(1))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
def test_scales_are_the_same(kind: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    importance = factor_of(kind).importance
    found = search(weights(), kind, importance)
    monkeypatch.setattr(kernels, "fit_for", lambda *_: False)
    expected = search(weights(), kind, importance)
    assert (found.scales == expected.scales).float().mean() > 0.99


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
def test_codes_targets_and_losses_are_the_same(kind: Scheme) -> None:
    factor = factor_of(kind)
    grid = search(weights(), kind, factor.importance)
    found, expected = (rounding(weights(), grid, factor) for rounding in (round_columns, round_on_device))
    alike = same(found.codes, expected.codes, grid)
    assert alike.float().mean() > 0.99
    same_rows = alike.all(1)
    assert torch.allclose(found.targets[same_rows], expected.targets[same_rows], atol=1e-4)
    assert torch.allclose(found.losses[same_rows], expected.losses[same_rows], rtol=1e-3)


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
def test_descent_lowers_the_loss_and_is_the_same(kind: Scheme) -> None:
    factor = factor_of(kind)
    grid = search(weights(), kind, factor.importance)
    first = round_columns(weights(), grid, factor).codes
    found = descend(weights(), first, grid, factor, 1)

    def delta(codes: torch.Tensor) -> torch.Tensor:
        return weights() - grid.quantized(codes).dequantize()

    def loss(codes: torch.Tensor) -> float:
        return float(((delta(codes) @ factor.damped) * delta(codes)).sum())

    assert loss(found) < loss(first)
    expected = first.clone()
    gradient = delta(first) @ factor.damped
    descend_columns(factor.damped, gradient, grid.steps(), grid.offsets(), kind, expected)
    assert same(found, expected, grid).float().mean() > 0.99


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
def test_where_descent_ends_no_code_can_be_better(kind: Scheme) -> None:
    weight = weights(256)
    factor = factor_of(kind)
    grid = fit(weight, kind)
    found = descend(weight, torch.full_like(weight, kind.zero - 2, dtype=torch.uint8), grid, factor, 100)
    again = found.clone()
    gradient = (weight - grid.quantized(found).dequantize()) @ factor.damped
    descend_columns(factor.damped, gradient, grid.steps(), grid.offsets(), kind, again)
    assert same(found, again, grid).float().mean() > 0.999


@pytest.mark.parametrize(("method", "times"), [("gptq", 1), ("rtn", 0)])
def test_they_are_compiled_while_text_and_model_are_read_where_they_will_be_used(
    method: str, times: int, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(kernels, "compile_all", lambda: begun.append(1))
    text = {"samples": 4, "sequence_length": 32}
    quantize(
        Recipe.from_flags(str(tiny_llama), method=method, group_size="32", calibration=text), tmp_path / "out"
    )
    assert len(begun) == times


def test_they_are_compiled_for_what_they_are_called_with() -> None:
    """Arrays of another kind than those of `compile_all` would be compiled for again."""
    kernels.compile_all()
    solve(GPTQ(), problem(SCHEMES[0]))
    for kernel in (kernels.search_rows, kernels.round_rows, kernels.descend_rows):
        assert len(kernel.signatures) == 1  # type: ignore[attr-defined]
