"""Norms that multiply by w, and norms that multiply by 1 + w."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qdeploy.modeling.blocks import Block
from qdeploy.modeling.feeds import find_feeds
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.norms import SMALLEST, divided_plus_one, neutral, quotient


class PlusOne(nn.Module):
    """x · (1 + w), and more if it has a bias."""

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.5, width))
        self.bias = nn.Parameter(torch.ones(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x * (1 + self.weight)
        return y if self.bias is None else y + self.bias


class Toy(nn.Module):
    """A norm and the layer that reads it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("norm", "value"),
    [(nn.RMSNorm(8), 1.0), (nn.LayerNorm(8), 1.0), (PlusOne(8), 0.0), (PlusOne(8, bias=True), 0.0)],
)
def test_the_value_at_which_a_norm_multiplies_by_one(norm: nn.Module, value: float) -> None:
    assert neutral(norm, 8) == value


@given(exponents=st.lists(st.integers(-4, 4), min_size=8, max_size=8), seed=st.integers(0, 2**32 - 1))
def test_what_16_bits_leave_out_is_in_the_quotient(exponents: list[int], seed: int) -> None:
    w = torch.randn(8, generator=torch.Generator().manual_seed(seed)).clamp_min(-0.5)
    w[::2] *= 2.0**-11  # some are near 0, where float16 holds less than bfloat16
    w = w.bfloat16().float()
    s = torch.exp2(torch.tensor(exponents, dtype=torch.float32))
    divided = divided_plus_one(w, s)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(divided.to(dtype).float(), divided)
    assert ((divided == 0) | (divided.abs() >= SMALLEST)).all()
    t = quotient(w, divided)
    torch.testing.assert_close((1 + divided) * t, 1 + w, rtol=1e-6, atol=0)
    # What is stored is found again from what the readers were multiplied by.
    assert torch.equal(divided_plus_one(w, t), divided)


@torch.no_grad()
@pytest.mark.parametrize(("bias", "found"), [(False, ["toy.linear"]), (True, [])])
def test_a_norm_with_a_bias_beside_one_plus_w_feeds_nothing(bias: bool, found: list[str]) -> None:
    call = BlockCall(Block("toy", Toy(PlusOne(8, bias=bias))), (), {})
    feeds = find_feeds(call, torch.randn(1, 4, 8), [["toy.linear"]])
    assert list(feeds) == found
    assert all(feed.plus_one for feed in feeds.values())
