"""Minifloats, against PyTorch's own and the tables of the formats."""

from __future__ import annotations

import pytest
import torch

from qdeploy.levels import decode, encode, nearest, nearest_float, values
from qdeploy.schemes import E2M1, E4M3, PRESETS, Minifloat, Scheme

FLOATS = pytest.mark.parametrize("element", [E4M3, E2M1], ids=lambda element: element.name)


def test_e4m3_is_pytorchs() -> None:
    codes = torch.arange(256).to(torch.uint8)
    assert torch.equal(values(E4M3).nan_to_num(999), codes.view(torch.float8_e4m3fn).float().nan_to_num(999))
    x = torch.cat([torch.randn(4096) * scale for scale in (1e-3, 1.0, 100.0)])
    assert torch.equal(nearest_float(x, E4M3), x.clamp(-448, 448).to(torch.float8_e4m3fn).float())


def test_e2m1_is_that_of_the_microscaling_formats() -> None:
    assert values(E2M1).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def test_ties_go_to_even_and_what_is_too_large_to_the_largest() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, -100.0])
    assert nearest_float(x, E2M1).tolist() == [0, 1, 1, 2, 2, 4, 4, 6, -6]


@FLOATS
def test_nothing_is_nearer_than_the_nearest(element: Minifloat) -> None:
    x = torch.randn(2000) * element.largest / 3
    every = values(element).nan_to_num(torch.inf)
    least = (x[:, None] - every).abs().amin(1)
    assert torch.equal((nearest_float(x.clone(), element) - x).abs(), least)


@pytest.mark.parametrize("scheme", PRESETS.values(), ids=lambda scheme: scheme.name)
def test_encode_inverts_decode(scheme: Scheme) -> None:
    codes = torch.arange(1 << scheme.bits).to(torch.uint8)
    zeros = torch.tensor(float(scheme.zero))
    levels = decode(codes, zeros, scheme)
    kept = levels.isfinite()
    assert kept.sum() >= len(codes) - 2
    assert torch.equal(encode(levels[kept], zeros, scheme), codes[kept])
    assert torch.equal(nearest(levels[kept].clone(), zeros, scheme), levels[kept])


def test_a_small_negative_number_keeps_its_sign() -> None:
    codes = encode(nearest_float(torch.tensor([-0.1, 0.1]), E2M1), torch.tensor(0.0), PRESETS["NVFP4"])
    assert codes.tolist() == [8, 0]
