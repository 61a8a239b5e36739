"""FBGEMM's FP8, read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import fbgemm
from qdeploy.schemes import PRESETS

SCHEME = PRESETS["FP8_DYNAMIC"]


def stored() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(6, 10, generator=generator) * 50).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": torch.rand(6, 1, generator=generator)}


def test_rows_have_a_factor_each() -> None:
    tensors = stored()
    q = fbgemm.unpack(tensors, SCHEME)
    assert torch.equal(q.dequantize(), tensors["weight"].float() * tensors["weight_scale"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weight": torch.zeros(6, 10)}, "weight is torch.float32"),
        ({"weight_scale": torch.ones(6)}, r"weight_scale has shape \[6\], expected \[6, 1\]"),
    ],
)
def test_damage_is_told(changes: dict[str, Tensor], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        fbgemm.unpack(stored() | changes, SCHEME)
    with pytest.raises(CheckpointError, match="tensor weight is missing"):
        fbgemm.unpack({}, SCHEME)
