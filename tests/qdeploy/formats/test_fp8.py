"""The fp8 format of DeepSeek's and Qwen's folders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import fp8
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import PRESETS


def random_codes(n: int, k: int, generator: torch.Generator) -> Tensor:
    codes = torch.randint(0, 256, (n, k), generator=generator).to(torch.uint8)
    codes[codes & 127 == 127] = 0  # E4M3's NaN
    return codes


@given(n=st.integers(1, 300), k=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_blocks_of_any_shape_are_what_the_definition_says(n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = random_codes(n, k, generator).view(torch.float8_e4m3fn)
    scales = torch.rand(-(-n // 128), -(-k // 128), generator=generator) + 0.1
    stored = {"weight": weight, "weight_scale_inv": scales}
    q = fp8.unpack(stored, PRESETS["FP8_BLOCK"])
    each = scales.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    assert torch.equal(q.dequantize(), weight.float() * each)
    again = fp8.pack(q)
    assert again.keys() == stored.keys()
    assert torch.equal(again["weight"].view(torch.uint8), weight.view(torch.uint8))
    assert torch.equal(again["weight_scale_inv"], scales)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_for_a_layer(shape: tuple[int, ...]) -> None:
    weight = random_codes(40, 24, torch.Generator().manual_seed(0)).view(torch.float8_e4m3fn)
    stored = {
        "weight": weight,
        "weight_scale": torch.tensor(0.3).reshape(shape),
        "input_scale": torch.tensor(0.7).reshape(shape),
    }
    q = fp8.unpack(stored, PRESETS["FP8"])
    assert torch.equal(q.dequantize(), weight.float() * 0.3)
    again = fp8.pack(q)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in again.items()} == {
        "weight": (torch.float8_e4m3fn, (40, 24)),
        "weight_scale": (torch.float32, ()),
        "input_scale": (torch.float32, ()),
    }
    assert float(again["input_scale"]) == float(torch.tensor(0.7))


def test_scales_in_16_bits_become_float32() -> None:
    codes = torch.zeros(4, 4, dtype=torch.uint8)
    scale = torch.tensor([[0.25]], dtype=torch.bfloat16)
    q = QuantizedLinear(codes, scale.expand(4, 1), None, PRESETS["FP8"], None, scale[0, 0])
    assert {t.dtype for name, t in fp8.pack(q).items() if "scale" in name} == {torch.float32}
    blocks = QuantizedLinear(codes, scale.expand(4, 1), None, PRESETS["FP8_BLOCK"])
    assert fp8.pack(blocks)["weight_scale_inv"].dtype == torch.float32


@pytest.mark.parametrize(
    ("scheme", "changes", "told"),
    [
        ("FP8", {"weight": None}, "tensor weight is missing"),
        ("FP8", {"weight": torch.zeros(4, 4, dtype=torch.int8)}, "weight is torch.int8"),
        ("FP8", {"weight_scale": torch.ones(4)}, r"weight_scale has shape \[4\], expected one number"),
        ("FP8", {"input_scale": None}, "tensor input_scale is missing"),
        ("FP8_BLOCK", {"weight_scale_inv": torch.ones(2, 1)}, r"has shape \[2, 1\], expected \[1, 1\]"),
    ],
)
def test_damage_is_told(scheme: str, changes: dict[str, Tensor | None], told: str) -> None:
    stored = {
        "weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(()),
        "input_scale": torch.ones(()),
        "weight_scale_inv": torch.ones(1, 1),
    }
    tensors = {name: t for name, t in (stored | changes).items() if t is not None}
    with pytest.raises(CheckpointError, match=told):
        fp8.unpack(tensors, PRESETS[scheme])


@pytest.mark.parametrize(
    ("scheme", "told"),
    [
        ("W4A16", "fp8 holds weights in E4M3 alone, no W4A16"),
        ("NVFP4", "fp8 holds weights in E4M3 alone, no NVFP4"),
        ("FP8_DYNAMIC", "a scale for a layer or for 128 × 128 of its weights, no FP8_DYNAMIC"),
        ("MXFP8", "no MXFP8 e4m3, group 32"),
    ],
)
def test_what_it_cannot_hold(scheme: str, told: str) -> None:
    q = QuantizedLinear(torch.zeros(32, 32, dtype=torch.uint8), torch.ones(32, 1), None, PRESETS[scheme])
    with pytest.raises(ValueError, match=told):
        fp8.pack(q)
