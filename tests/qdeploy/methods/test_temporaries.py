"""Memory that solving is said to take."""

from __future__ import annotations

import pytest
from torch import nn

from qdeploy.methods.autoround import AutoRound
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.incoherence import Incoherence
from qdeploy.methods.rtn import RTN
from qdeploy.methods.smoothquant import SmoothQuant
from qdeploy.methods.temporaries import (
    SQUARES,
    TRANSFORMED,
    TUNED,
    TUNING,
    TURNED,
    hessian_bytes,
    solving_bytes,
)
from qdeploy.planned import Planned
from qdeploy.schemes import PRESETS

LINEARS = {f"mlp.{leaf}": nn.Linear(8, 512) for leaf in ("gate_proj", "up_proj")}
WEIGHT = 4 * 512 * 8


@pytest.mark.parametrize("rounder", [RTN(), GPTQ()])
def test_transforms_hold_all_layers_that_share_an_input(rounder: object) -> None:
    plain = dict.fromkeys(LINEARS, Planned(PRESETS["W8A8"], rounder))
    smoothed = dict.fromkeys(LINEARS, Planned(PRESETS["W8A8"], rounder, (SmoothQuant(),)))
    assert solving_bytes(LINEARS, smoothed) == TRANSFORMED * 2 * WEIGHT > solving_bytes(LINEARS, plain)


def test_another_basis_takes_a_hessian_in_float64() -> None:
    linears = {"mlp.down_proj": nn.Linear(512, 8)}
    plan = {"mlp.down_proj": Planned(PRESETS["W4A16"], GPTQ(), (Incoherence(),))}
    assert solving_bytes(linears, plan) == SQUARES * (1 + TURNED) * hessian_bytes(512)


def test_square_layers_take_what_their_hessian_does() -> None:
    linears = {"mlp.down_proj": nn.Linear(512, 8)}
    for transforms in ((), (SmoothQuant(),)):
        plan = {"mlp.down_proj": Planned(PRESETS["W8A8"], GPTQ(), transforms)}
        assert solving_bytes(linears, plan) == SQUARES * hessian_bytes(512)


def test_layers_that_are_tuned_together_are_all_in_memory() -> None:
    plan = dict.fromkeys(LINEARS, Planned(PRESETS["W4A16"], AutoRound()))
    assert solving_bytes(LINEARS, plan) == (TUNED * 2 + TUNING) * WEIGHT
