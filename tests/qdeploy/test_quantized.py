"""The pivot tells what it takes in storage."""

from __future__ import annotations

import pytest
import torch

from qdeploy.estimate import packed_bytes
from qdeploy.methods.grid import fit
from qdeploy.schemes import PRESETS, Scheme

BESIDE = {"weight_shape": 16, "weight_global_scale": 4, "input_scale": 2, "input_global_scale": 4}
"""Bytes of what does not grow with the weights, at most."""


@pytest.mark.parametrize("scheme", PRESETS.values(), ids=lambda scheme: scheme.name)
def test_bits_are_those_of_the_packed_tensors(scheme: Scheme) -> None:
    shape = 256, 384
    weight = torch.randn(shape)
    bits = fit(weight, scheme).nearest(weight).bits * weight.numel()
    assert 0 <= 8 * packed_bytes(shape, scheme) - bits <= 8 * sum(BESIDE.values())
