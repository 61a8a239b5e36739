"""Linear layers that multiply in bfloat16."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from qdeploy.modeling import products
from qdeploy.modeling.products import fast_products, multiplies_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
def test_products_are_rounded_to_bfloat16_and_follow_a_change_of_the_weight(
    monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: True)
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32, bias=bias).requires_grad_(False), torch.randn(2, 8, 64)
    used = []  # so that none is freed
    with fast_products([linear], CPU):
        for _ in range(2):
            used.append(linear.weight)
            expected = x @ linear.weight.T + (linear.bias if bias else 0)
            y = linear(x)
            assert y.dtype == torch.float32
            assert not torch.equal(y, expected)
            assert (y - expected).norm() < 0.01 * expected.norm()
            linear.weight = nn.Parameter(-2 * linear.weight, requires_grad=False)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


def test_a_processor_without_such_products_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)
    linear, x = nn.Linear(64, 32).requires_grad_(False), torch.randn(4, 64)
    expected = linear(x)
    with fast_products([linear], CPU):
        assert torch.equal(linear(x), expected)


@pytest.mark.parametrize(
    ("features", "bound", "expected"),
    [
        ({"avx512_bf16": True}, None, True),
        ({"amx_bf16": True}, "ALL", True),
        ({"avx512_bf16": True}, "AVX512_CORE_BF16", True),
        ({"avx512_bf16": True}, "avx512_core_vnni", False),
        ({"avx512_bf16": False, "avx2": True}, None, False),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_and_may(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], bound: str | None, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if bound:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", bound)
    assert multiplies_bfloat16.__wrapped__() is expected


def test_a_replaced_weight_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: True)
    linear = nn.Linear(64, 32).requires_grad_(False)
    with fast_products([linear], CPU):
        linear(torch.randn(4, 64))
        replaced = weakref.ref(linear.weight)
        linear.weight = nn.Parameter(torch.zeros(32, 64), requires_grad=False)
        assert replaced() is None


def test_what_ends_badly_leaves_no_layer_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: True)
    linear = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="inside"), fast_products([linear], CPU):
        raise ValueError("inside")
    assert "forward" not in linear.__dict__
