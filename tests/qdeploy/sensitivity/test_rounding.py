from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.grid import search
from qdeploy.sensitivity.divergence import measured_harms, measured_together
from qdeploy.sensitivity.gradient import gradient_harms
from qdeploy.sensitivity.rounding import Rounding
from qdeploy.sensitivity.subject import Subject, record
from tests.qdeploy.sensitivity.problems import NEAREST, W4, subject, unseen

DOWN = "model.layers.0.mlp.down_proj"


def rounded(tried: Subject, name: str) -> tuple[Tensor, Tensor]:
    """A layer of the first block in 16 bit, and as it is rounded."""
    recorded = record(tried, unseen())
    with tried.materialized(tried.blocks[0]):
        weight = tried.blocks[0].linears()[name].weight.clone()
        return weight, Rounding(recorded, 0).weight(name, W4)


def test_nearest_rounding_needs_no_data(tiny_llama: Path, tmp_path: Path) -> None:
    weight, found = rounded(subject(tiny_llama, [W4], tmp_path), DOWN)
    assert torch.equal(found, search(weight, W4).nearest(weight).dequantize())


def test_gptq_sees_only_samples_that_no_harm_is_measured_on(tiny_llama: Path, tmp_path: Path) -> None:
    tried = subject(tiny_llama, [W4], tmp_path, samples=2, fitted=16, rounder=GPTQ())
    weight, found = rounded(tried, DOWN)
    assert not torch.equal(found, search(weight, W4).nearest(weight).dequantize())
    scored, fitted = tried.tokens[:2], tried.tokens[2:]
    same = replace(tried, tokens=torch.cat([scored.flip(1), fitted]))
    other = replace(tried, tokens=torch.cat([scored, fitted.flip(1)]))
    assert torch.equal(rounded(same, DOWN)[1], found)
    assert not torch.equal(rounded(other, DOWN)[1], found)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_gptq_does_less_harm_than_nearest(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    def total(rounder: Any) -> list[float]:
        tried = subject(tiny_model(family), [W4], tmp_path, samples=4, fitted=64, rounder=rounder)
        recorded = record(tried, unseen(), copies=len(tried.trials) + 1)
        found = gradient_harms(recorded, 8, 0, unseen()), measured_harms(recorded, unseen())
        together = measured_together(recorded, dict.fromkeys((u.name for u in tried.units), W4), unseen())
        return [*(sum(harm.nats for harm in harms.values()) for harms in found), together.nats]

    for less, more in zip(total(GPTQ()), total(NEAREST), strict=True):
        assert less < more
