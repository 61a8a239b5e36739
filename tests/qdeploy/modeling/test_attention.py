"""Attention whose second product is in bfloat16."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.modeling import attention, products
from qdeploy.modeling.attention import NAME, attend, causal_attention, fast_attention

CPU = torch.device("cpu")


def heads(tokens: int, query: int, shared: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, tokens, h, 16, generator=generator) for h in (query, shared, shared))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def exact(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return y.transpose(1, 2)


@pytest.mark.parametrize(("tokens", "query", "shared"), [(1, 4, 4), (37, 4, 4), (64, 6, 2), (150, 4, 1)])
@pytest.mark.parametrize("scores", [100, 1 << 20])
def test_it_is_causal_attention_but_for_rounding(
    tokens: int, query: int, shared: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    q, k, v = heads(tokens, query, shared)
    found, expected = causal_attention(q, k, v, 0.3), exact(q, k, v, 0.3)
    assert found.shape == (2, tokens, query, 16)
    assert (found - expected).norm() < 0.005 * expected.norm()


def test_what_is_not_plain_causal_attention_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = heads(24, 4, 4)
    assert torch.equal(attend(nn.Module(), q, k, v, None)[0], exact(q, k, v, 0.25))  # as are few tokens
    monkeypatch.setattr(attention, "FEWEST", 24)
    module = nn.Module()
    mask = torch.ones(24, 24, dtype=torch.bool).tril().triu(-3)[None, None]
    windowed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    assert torch.equal(attend(module, q, k, v, mask)[0], windowed)
    both_ways = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert torch.equal(attend(module, q, k, v, None, is_causal=False)[0], both_ways)
    bias = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    y, _ = attend(module, q, k, v, None, position_bias=bias)
    assert (y - exact(q, k, v, 0.25)).norm() > 0.1 * y.norm()
    with pytest.raises(ValueError, match="softcap"):
        attend(module, q, k, v, None, softcap=30.0)
    y, weights = attend(module, q, k, v, None)
    assert weights is None
    assert torch.equal(y, causal_attention(q, k, v, 0.25))


@pytest.mark.parametrize(("fast", "implementation"), [(True, NAME), (False, "sdpa")])
def test_only_torchs_attention_is_replaced_and_only_for_a_while(
    fast: bool, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: fast)
    block = nn.Module()
    block.own, block.other = nn.Module(), nn.Module()
    block.own.config = SimpleNamespace(_attn_implementation="sdpa")
    block.other.config = SimpleNamespace(_attn_implementation="eager")
    with pytest.raises(ValueError, match="inside"), fast_attention(block, CPU):
        assert block.own.config._attn_implementation == implementation
        assert block.other.config._attn_implementation == "eager"
        raise ValueError("inside")
    assert block.own.config._attn_implementation == "sdpa"
