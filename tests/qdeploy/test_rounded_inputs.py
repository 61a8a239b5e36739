"""Inputs of W8A8 layers, rounded as engines round them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeploy.rounded_inputs import round_inputs, rounded
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS


def test_rounding_per_token_keeps_each_row_within_half_a_step() -> None:
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1e4])[:, None]
    found = rounded(x, INT8_PER_TOKEN)
    steps = x.abs().amax(-1, keepdim=True) / 127
    assert ((found - x).abs() <= steps / 2 * 1.001).all()
    assert torch.allclose(found.abs().amax(-1), x.abs().amax(-1), rtol=1e-6, atol=0)
    assert all(len(row.unique()) <= 255 for row in found)


def test_only_layers_whose_scheme_says_so_round_and_only_for_a_while() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.Linear(8, 4)})
    x = torch.randn(3, 8)
    before = {name: layer(x) for name, layer in model.items()}
    handles = round_inputs(model, {"a": PRESETS["W8A8"], "b": PRESETS["W8A16"]})
    assert torch.equal(
        model["a"](x), nn.functional.linear(rounded(x, INT8_PER_TOKEN), *model["a"].parameters())
    )
    assert not torch.equal(model["a"](x), before["a"])
    assert torch.equal(model["b"](x), before["b"])
    for handle in handles:
        handle.remove()
    assert torch.equal(model["a"](x), before["a"])


@pytest.mark.parametrize(("scheme", "largest"), [("W8A8_STATIC", 128.0), ("FP8", 448.0)])
def test_a_static_scale_is_the_one_given_and_larger_inputs_saturate(scheme: str, largest: float) -> None:
    how, scale = PRESETS[scheme].activations, torch.tensor(0.25)
    assert how is not None
    x = torch.tensor([[-1e6, 0.25, 0.26, 3.0]])
    assert rounded(x, how, scale).tolist() == [[-0.25 * largest, 0.25, 0.25, 3.0]]
    assert not torch.equal(rounded(x, how), rounded(x, how, scale))


def test_microscaling_takes_the_power_of_two_below_the_largest() -> None:
    how = PRESETS["MXFP4"].activations
    assert how is not None
    x = torch.zeros(2, 64)
    x[0, :4] = torch.tensor([7.0, 1.2, 0.3, -5.0])  # 7 is 1.75 · 2², so the scale is 1
    x[1, 32] = 0.09  # 1.44 · 2^-4, so the scale is 2^-6
    found = rounded(x, how)
    assert found[0, :4].tolist() == [6.0, 1.0, 0.5, -4.0]
    assert float(found[1, 32]) == 6 * 2**-6
    assert found.count_nonzero() == 5


def test_nvfp4_rounds_each_groups_scale_to_e4m3() -> None:
    how = PRESETS["NVFP4"].activations
    assert how is not None
    x, divisor = torch.randn(8, 64), torch.tensor(100.0)
    found = rounded(x, how, divisor)
    peaks, largest = (y.unflatten(1, (4, 16)).abs().amax(-1) for y in (found, x))
    steps = (largest / 6 * divisor).to(torch.float8_e4m3fn).float() / divisor
    assert torch.allclose(peaks, 6 * steps)
    assert not torch.allclose(peaks, largest)
