"""Inputs of W8A8 layers, rounded as engines round them."""

from __future__ import annotations

import torch
from torch import nn

from qdeploy.rounded_inputs import round_inputs, rounded
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS


def test_rounding_per_token_keeps_each_row_within_half_a_step() -> None:
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1e4])[:, None]
    found = rounded(x, INT8_PER_TOKEN)
    steps = x.abs().amax(-1, keepdim=True) / 127
    assert ((found - x).abs() <= steps / 2 * 1.001).all()
    assert torch.equal(found.abs().amax(-1), x.abs().amax(-1))
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
