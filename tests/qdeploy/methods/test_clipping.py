from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdeploy.methods.awq import AWQ
from qdeploy.methods.base import LinearProblem, relative_error, solve
from qdeploy.methods.clipping import FEWEST, SHARES, clipped
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.grid import fit
from qdeploy.methods.hessian import Hessian
from qdeploy.methods.incoherence import Incoherence
from qdeploy.methods.rtn import RTN
from qdeploy.methods.zeroquant import ZeroQuant
from qdeploy.pipeline import quantize
from qdeploy.planned import Planned
from qdeploy.quantized import QuantizedLinear
from qdeploy.recipe import Recipe
from qdeploy.schemes import PRESETS, Scheme
from qdeploy.solving import solved

K = 64
W4 = replace(PRESETS["W4A16"], group_size=32)
W3 = replace(PRESETS["W3A16_ASYM"], group_size=32)
WHOLE = replace(PRESETS["W4A16"], group_size=None)


def layer(tokens: int = 1024) -> tuple[Tensor, Tensor, Hessian]:
    """Weights with a heavy tail, correlated inputs, and their H."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, K, generator=generator) ** 3
    x = torch.randn(tokens, K, generator=generator) @ torch.randn(K, K, generator=generator)
    hessian = Hessian(K)
    hessian.add(x)
    return weight, x, hessian


def lost(weight: Tensor, cut: Tensor, scheme: Scheme, x: Tensor) -> Tensor:
    """Σ of the squared errors that each group adds by itself, [N, G]."""
    error = fit(cut, scheme).nearest(cut).dequantize() - weight
    groups = scheme.groups(K)
    added = torch.einsum("ngk,tgk->tng", error.view(48, groups, -1), x.view(len(x), groups, -1))
    return added.square().sum(0)


@pytest.mark.parametrize("scheme", [W4, W3, WHOLE], ids=lambda scheme: str(scheme.group_size))
def test_each_group_is_cut_where_least_is_lost(scheme: Scheme) -> None:
    weight, x, hessian = layer()
    found = lost(weight, clipped(weight, hessian, scheme), scheme, x)
    groups = weight.view(48, scheme.groups(K), -1)
    tried = []
    for share in SHARES:
        most = share * groups.abs().amax(-1, keepdim=True)
        tried.append(lost(weight, groups.clamp(-most, most).flatten(1), scheme, x))
    torch.testing.assert_close(found, torch.stack(tried).amin(0), rtol=1e-4, atol=1e-3)
    assert found.sum() < 0.95 * tried[0].sum()


def test_nothing_but_the_largest_weights_change() -> None:
    weight, _, hessian = layer()
    cut = clipped(weight, hessian, W4)
    changed = cut != weight
    assert changed.any()
    assert (cut.abs() <= weight.abs()).all()
    sizes = weight.abs().view(48, 2, 32)
    smallest_changed = torch.where(changed.view_as(sizes), sizes, torch.inf).amin(-1)
    largest_kept = torch.where(changed.view_as(sizes), 0, sizes).amax(-1)
    assert (smallest_changed >= largest_kept).all()


def test_few_or_broken_tokens_and_shared_scales_cut_nothing() -> None:
    weight, x, hessian = layer()
    assert clipped(weight, hessian, PRESETS["FP8"]) is weight
    few = Hessian(K)
    few.add(x[: FEWEST - 1])
    assert clipped(weight, few, W4) is weight
    hessian.add(torch.full((1, K), torch.nan))
    assert clipped(weight, hessian, W4) is weight


def test_it_follows_awq_where_the_rounder_does_not_look_at_the_data_itself() -> None:
    assert Planned(W4, RTN(), (AWQ(),)).clips
    assert not Planned(W4, RTN(), (AWQ(clip=False),)).clips
    assert not Planned(W4, GPTQ(), (AWQ(),)).clips
    assert not Planned(W4, RTN()).clips
    assert not Planned(W4, RTN(), (AWQ(), Incoherence())).clips
    assert Planned(W4, ZeroQuant(), (AWQ(),)).clips
    assert not Planned(W4, ZeroQuant(rank=2), (AWQ(),)).clips


def test_what_is_cut_off_counts_as_lost() -> None:
    weight, _, hessian = layer()
    problem = LinearProblem("layer", weight, hessian, W4)
    found = solved(Planned(W4, RTN(), (AWQ(),)), problem)
    cut = solve(RTN(), replace(problem, weight=clipped(weight, hessian, W4)))
    assert isinstance(found.quantized, QuantizedLinear)
    assert isinstance(cut.quantized, QuantizedLinear)
    assert torch.equal(found.quantized.codes, cut.quantized.codes)
    assert found.relative_error == relative_error(problem, found.quantized) != cut.relative_error


def test_in_the_walk_awq_loses_less_with_it(tiny_llama: Path, tmp_path: Path) -> None:
    errors = []
    for clip in (False, True):
        asked = Recipe.from_flags(
            str(tiny_llama),
            method="awq+rtn",
            group_size="32",
            calibration={"samples": 8, "sequence_length": 64},
        ).model_dump(mode="json")
        asked["rules"][0]["stages"][0]["awq"]["clip"] = clip
        manifest = quantize(Recipe.model_validate(asked), tmp_path / str(clip))
        errors.append(sum(module["relative_error"] for module in manifest["modules"]))
    assert errors[1] < 0.95 * errors[0]
