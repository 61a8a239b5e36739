from __future__ import annotations

import pytest
import torch

from qdeploy.methods.base import solve, without_kernel
from qdeploy.methods.rtn import RTN
from qdeploy.methods.zeroquant import ZeroQuant
from qdeploy.quantized import QuantizedLinear
from qdeploy.reference_linear import ReferenceLinear
from tests.qdeploy.methods.problems import problem, scheme, weights


def test_without_compensation_it_rounds_to_nearest() -> None:
    ours, nearest = (solve(config, problem(scheme())).quantized for config in (ZeroQuant(), RTN()))
    assert isinstance(ours, QuantizedLinear)
    assert isinstance(nearest, QuantizedLinear)
    assert torch.equal(ours.codes, nearest.codes)
    assert without_kernel(ZeroQuant()) is None


def test_a_higher_rank_makes_up_for_more_and_takes_more() -> None:
    found = [solve(ZeroQuant(rank=rank), problem(scheme(2))) for rank in (1, 4, 8, 24)]
    errors = [float((one.quantized.dequantize() - weights()).norm()) for one in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * float(weights().norm())  # the full rank, in 16 bits
    bits = [one.quantized.bits for one in found]
    assert bits[1] - bits[0] == pytest.approx(3 * 16 * (24 + 64) / (24 * 64))
    assert all(isinstance(one.quantized, ReferenceLinear) for one in found)
    assert "low-rank" in str(without_kernel(ZeroQuant(rank=1)))
