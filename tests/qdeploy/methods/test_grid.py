from __future__ import annotations

import pytest
import torch

from qdeploy.methods.grid import fit, search
from qdeploy.quantized import SMALLEST_SCALE
from qdeploy.schemes import PRESETS, Scheme
from tests.qdeploy.methods.problems import scheme, weights

SCHEMES = [
    scheme(bits, group, symmetric)
    for bits in (2, 4, 8)
    for group in (32, None)
    for symmetric in (True, False)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("magnitude", [1e-9, 1.0, 1e4])
def test_scales_survive_any_cast_and_codes_stay_in_range(scheme: Scheme, magnitude: float) -> None:
    weight = weights() * magnitude
    weight[0], weight[1], weight[2, :32] = 0, weight[1].abs(), 0
    quantized = search(weight, scheme).nearest(weight)
    assert quantized.scales.dtype == torch.bfloat16
    assert (quantized.scales >= SMALLEST_SCALE).all()
    assert torch.equal(quantized.scales.half().float(), quantized.scales.float())
    assert quantized.codes.dtype == torch.uint8
    assert quantized.codes.max() <= scheme.qmax
    assert (quantized.zeros is None) == scheme.symmetric
    assert torch.equal(quantized.dequantize()[0], torch.zeros(weight.shape[1]))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_unclipped_weights_are_rounded_by_half_a_step_at_most(scheme: Scheme) -> None:
    weight = weights()
    grid = fit(weight, scheme)
    steps = grid.scales.float().repeat_interleave(weight.shape[1] // grid.scales.shape[1], 1)
    error = (grid.nearest(weight).dequantize() - weight).abs()
    # The end of the range may be half a step beyond the last code, and scales carry 8 bits.
    assert (error <= steps * (1.0 + scheme.qmax / 256)).all()
    assert ((error <= steps * 0.5001).float().mean() > 0.8).all()


def test_zero_is_representable_in_groups_that_lie_on_one_side_of_it() -> None:
    weight = torch.stack([torch.linspace(3, 5, 32), torch.linspace(-5, -3, 32)])
    grid = fit(weight, scheme(symmetric=False))
    assert grid.zeros is not None
    assert grid.zeros.tolist() == [[0], [15]]


def test_asymmetric_grids_fit_one_sided_weights_better() -> None:
    weight = weights().abs()
    symmetric = fit(weight, scheme()).nearest(weight).dequantize() - weight
    asymmetric = fit(weight, scheme(symmetric=False)).nearest(weight).dequantize() - weight
    assert asymmetric.square().sum() < 0.5 * symmetric.square().sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_never_loses_to_the_full_range_and_heeds_importance(symmetric: bool) -> None:
    weight, kind = weights(), scheme(3, 32, symmetric)
    importance = torch.linspace(0, 1, weight.shape[1]) ** 4

    def error(grid_weighting: torch.Tensor | None) -> float:
        found = search(weight, kind, grid_weighting).nearest(weight).dequantize()
        return float(((found - weight).square() * importance).sum())

    plain = (fit(weight, kind).nearest(weight).dequantize() - weight).square()
    assert error(importance) < error(None)
    assert error(importance) < float((plain * importance).sum())


FLOATS = [scheme for scheme in PRESETS.values() if scheme.element is not None]
each_float = pytest.mark.parametrize("scheme", FLOATS, ids=lambda scheme: scheme.name)


@each_float
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e4])
def test_scales_of_minifloats_are_exact_in_what_stores_them(scheme: Scheme, magnitude: float) -> None:
    weight = weights(256, 256) * magnitude
    weight[0] = 0
    for grid in (fit(weight, scheme), search(weight, scheme)):
        scales = grid.scales.float()
        assert (scales > 0).all()
        if scheme.steps == "e8m0":
            assert torch.equal(scales.log2(), scales.log2().round())
        if scheme.steps == "e4m3":
            assert torch.equal(scales, scales.to(torch.float8_e4m3fn).float())
        blocks = scales.view(-1, scheme.rows or len(scales), scales.shape[1])
        assert torch.equal(blocks, blocks[:, :1].expand_as(blocks))
        assert not grid.nearest(weight).dequantize()[0].any()


@each_float
def test_minifloats_lose_little_and_a_search_never_more(scheme: Scheme) -> None:
    weight = weights(256, 256) * torch.logspace(-2, 2, 256)[:, None]

    def lost(found: torch.Tensor) -> float:
        return float(((found - weight).square().sum() / weight.square().sum()).sqrt())

    fitted, searched = (make(weight, scheme).nearest(weight).dequantize() for make in (fit, search))
    assert lost(searched) <= lost(fitted)
    assert lost(fitted) < (0.03 if scheme.bits == 8 else 0.15)


def test_one_scale_for_layers_that_run_as_one() -> None:
    small, large = weights() * 0.1, weights(seed=5)
    largest = float(large.abs().amax())
    for name in ("FP8", "NVFP4"):
        a, b = (search(weight, PRESETS[name], largest=largest) for weight in (small, large))
        shared = [grid.scales[0] if grid.divisor is None else grid.divisor for grid in (a, b)]
        assert torch.equal(*shared)
