from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdeploy.assignment import resolve_schemes
from qdeploy.errors import RecipeError
from qdeploy.methods.base import LinearProblem, refusal, solve
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.rtn import RTN
from qdeploy.methods.spqr import SpQR
from qdeploy.recipe import Recipe
from qdeploy.reference_linear import ReferenceLinear
from qdeploy.schemes import PRESETS, Scheme
from tests.qdeploy.methods.problems import correlated_inputs, hessian_of, problem, scheme, weights

W3 = scheme(3, 16, symmetric=False)
NEVER = 1e9


def solved(config: SpQR, weight: Tensor | None = None, kind: Scheme = W3) -> ReferenceLinear:
    found = solve(config, problem(kind, weight)).quantized
    assert isinstance(found, ReferenceLinear)
    return found


def outlying() -> Tensor:
    weight = weights(48)
    weight[::7, ::13] *= 20
    return weight


def exact(found: ReferenceLinear, weight: Tensor) -> Tensor:
    """Which weights came out as they went in, to the precision in which they are stored."""
    return found.dequantize() == weight.bfloat16().float()


def test_it_loses_less_than_what_it_is_made_of() -> None:
    weight = outlying()
    lost = {
        type(config).__name__: solve(config, problem(W3, weight)).relative_error
        for config in (SpQR(damp=0.01), GPTQ(damp=0.01, shrinkage=0, grid=False, passes=0), RTN())
    }
    assert lost["SpQR"] < 0.5 * lost["GPTQ"]
    assert lost["GPTQ"] < lost["RTN"]


def test_weights_far_from_their_group_are_kept() -> None:
    weight = outlying()
    far = weight.abs() > 8
    assert far[:, 0].any()
    # Nothing has been made up for in the column that is rounded first.
    kept = exact(solved(SpQR(act_order=False), weight), weight)
    assert kept[:, 0][far[:, 0]].all()
    assert kept.float().mean() < 0.5
    assert not exact(solved(SpQR(act_order=False, threshold=NEVER), weight), weight)[:, 0][far[:, 0]].all()


def test_a_higher_threshold_keeps_fewer_and_takes_less_storage() -> None:
    bits = [solved(SpQR(threshold=threshold), outlying()).bits for threshold in (0.0, 0.2, 1.0, NEVER)]
    assert bits == sorted(bits, reverse=True)
    # 3 bits, scale and zero of 3 bits for 16 columns, their two ranges for 16 × 16 weights.
    assert bits[-1] == pytest.approx(3 + 6 / 16 + 2 * 32 / 256)
    assert solved(SpQR(threshold=NEVER), kind=scheme(3, 16)).bits == pytest.approx(3 + 3 / 16 + 32 / 256)


@pytest.mark.parametrize("symmetric", [True, False])
def test_statistics_of_more_bits_lose_less(symmetric: bool) -> None:
    config = [SpQR(statistics_bits=bits, threshold=NEVER) for bits in (2, 3, 8)]
    lost = [solve(one, problem(scheme(3, 16, symmetric))).relative_error for one in config]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > lost[2]


def test_what_it_stores_no_cast_changes() -> None:
    weight = solved(SpQR(), outlying() * 1e-4).weight
    assert torch.equal(weight.half().float(), weight.float())


def test_without_calibration_it_rounds_to_nearest_and_stores_it_alike() -> None:
    solution = solve(SpQR(), LinearProblem("layer", weights(), None, W3))
    assert isinstance(solution.quantized, ReferenceLinear)
    assert solution.fallback == "spqr: layer: no calibration token reached it; rounded to nearest instead"


@pytest.mark.parametrize("symmetric", [True, False])
def test_layers_of_zeros_and_dead_columns_do_no_harm(symmetric: bool) -> None:
    weight, x = weights(), correlated_inputs()
    weight[:16], x[:, 5] = 0, 0
    found = solve(SpQR(), LinearProblem("layer", weight, hessian_of(x), scheme(4, 16, symmetric)))
    assert found.quantized.dequantize().isfinite().all()
    assert not found.quantized.dequantize()[:16].any()


@pytest.mark.parametrize("name", ["W8A8", "FP8_DYNAMIC", "W4A16_CHANNEL", "NVFP4"])
def test_formats_that_it_cannot_make_are_refused_before_anything_runs(name: str) -> None:
    kind = PRESETS.get(name, Scheme("W4A16", 4, None))
    reason = refusal(SpQR(), kind)
    assert reason is not None
    flags = {"scheme": name} if name in PRESETS else {"scheme": "W4A16", "group_size": "channel"}
    with pytest.raises(RecipeError, match="spqr cannot make"):
        resolve_schemes(Recipe.from_flags("m", method="spqr", **flags), {"q_proj": (64, 64)})
