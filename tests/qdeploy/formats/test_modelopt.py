"""ModelOpt's format against bytes that its packer made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats import modelopt
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import PRESETS, Scheme
from tests.qdeploy.formats.conftest import random_linear
from tests.qdeploy.formats.test_bits import digest
from tests.qdeploy.formats.test_gptq import layer, reference_zeros


def row(tensor: Tensor) -> str:
    return " ".join(f"{byte:02X}" for byte in tensor[:8].tolist())


def test_pairs_of_rows_match_the_known_answer() -> None:
    packed = modelopt.pack("mlp.up_proj", layer(4))["weight"]
    assert (packed.dtype, packed.shape) == (torch.uint8, (32, 64))
    assert row(packed[0]) == "F8 3B 7E B1 F4 E7 2A 6D"
    assert row(packed[1]) == "D6 3B 40 A0 B5 C5 2A 3F"
    assert digest(packed) == "ace80695e9f71941"


def test_minifloats_of_four_bits_match_the_known_answer() -> None:
    """Codes of 0, .25, .2500001, .75, .7499, 1.25, 1.2501, 1.75, 2.5, 2.51, 3.5, 5, 5.01, 9, −.1, −0., …"""
    codes = [0, 0, 1, 2, 1, 2, 3, 4, 4, 5, 6, 6, 7, 7, 8, 0]
    q = QuantizedLinear(
        torch.tensor([codes], dtype=torch.uint8),
        torch.ones(1, 1, dtype=torch.bfloat16),
        None,
        PRESETS["NVFP4A16"],
        torch.tensor(1.0),
    )
    assert row(modelopt.pack("mlp.up_proj", q)["weight"][0]) == "00 21 21 43 54 66 77 08"


def test_layers_that_read_alone_have_factors_of_one() -> None:
    assert "pre_quant_scale" not in modelopt.pack("model.layers.0.self_attn.q_proj", layer(4))
    factors = modelopt.pack("model.layers.0.self_attn.o_proj", layer(4))["pre_quant_scale"]
    assert (factors.dtype, factors.shape) == (torch.bfloat16, (64,))
    assert (factors == 1).all()


def test_scales_that_others_divide_by_are_factors() -> None:
    q = QuantizedLinear(
        torch.zeros(1, 16, dtype=torch.uint8),
        torch.ones(1, 1, dtype=torch.bfloat16),
        None,
        PRESETS["NVFP4"],
        torch.tensor(4.0),
        torch.tensor(8.0),
    )
    tensors = modelopt.pack("mlp.up_proj", q)
    assert (float(tensors["weight_scale_2"]), float(tensors["input_scale"])) == (0.25, 0.125)
    read = modelopt.unpack(tensors, q.scheme)
    assert read.divisor is not None and read.input_scale is not None
    assert (float(read.divisor), float(read.input_scale)) == (4.0, 8.0)


@pytest.mark.parametrize(
    ("scheme", "told"),
    [
        (Scheme("W4A16_ASYM", 4, 32, symmetric=False), "no zero points"),
        (Scheme("W3A16", 3, 32), "no W3A16"),
        (Scheme("W8A16", 8, 32), "no W8A16 symmetric, group 32"),
        (PRESETS["W8A8"], "no W8A8 symmetric, per channel"),
    ],
    ids=lambda value: value.name if isinstance(value, Scheme) else "",
)
def test_what_it_cannot_hold(scheme: Scheme, told: str) -> None:
    assert told in (modelopt.refusal(scheme, 64, 64) or "")
    zeros = None if scheme.symmetric else reference_zeros(4)
    with pytest.raises(ValueError, match=told):
        modelopt.pack("m", QuantizedLinear(layer(4).codes, torch.ones(64, 2), zeros, scheme))


def test_an_odd_number_of_rows() -> None:
    assert "there are 33" in (modelopt.refusal(Scheme("W4A16", 4, 32), 33, 64) or "")


def test_groups_are_whole() -> None:
    for scheme in (Scheme("W4A16", 4, 128), PRESETS["FP8_BLOCK"]):
        assert "whole groups, and 128 does not divide 160" in (modelopt.refusal(scheme, 128, 160) or "")
    assert modelopt.refusal(PRESETS["FP8_BLOCK"], 160, 128) is None


@pytest.mark.parametrize("name", ["NVFP4_SVD", "int8_sq"])
def test_algorithms_that_cannot_be_read(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"'{name}' cannot be read, only W4A16_AWQ, W4A8_AWQ, W8A16, .*, mxfp4"
    ):
        modelopt.scheme_of(name, 128)


def test_algorithms_that_no_scheme_says() -> None:
    told = r"W4A8_NVFP4_FP8' \(weights in E2M1 beside inputs in E4M3\) cannot be read"
    with pytest.raises(CheckpointError, match=told):
        modelopt.scheme_of("W4A8_NVFP4_FP8", 32)


def test_weights_that_are_rounded_before_the_product() -> None:
    scheme = modelopt.scheme_of("W4A8_AWQ", 64)
    q = random_linear(scheme)
    tensors = modelopt.pack("mlp.down_proj", q)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "weight": (torch.uint8, (32, 128)),
        "weight_scale": (torch.float32, (64, 2)),
        "weight_scale_2": (torch.float32, ()),
        "input_scale": (torch.float32, ()),
        "pre_quant_scale": (torch.bfloat16, (128,)),
    }
    read = modelopt.unpack(tensors, scheme)
    assert read.divisor is not None and read.input_scale is not None and q.input_scale is not None
    assert torch.equal(read.codes, q.codes) and float(read.input_scale) == float(q.input_scale)
    exact = (q.codes.float() - 8) * q.scales.float().repeat_interleave(64, 1)
    rounded = (exact / tensors["weight_scale_2"]).to(torch.float8_e4m3fn).float() * tensors["weight_scale_2"]
    assert torch.equal(read.dequantize(), rounded)
    assert not torch.equal(rounded, exact)


def test_fp8_in_blocks_is_spelled_as_modelopt_spells_it() -> None:
    """TensorRT-LLM knows the algorithm by this name alone, vLLM in either case."""
    assert modelopt.algorithm(PRESETS["FP8_BLOCK"]) == "fp8_pb_wo"
    assert modelopt.scheme_of("FP8_PB_WO", None) == PRESETS["FP8_BLOCK"]


@pytest.mark.parametrize("name", ["mxfp4", "MXFP4"])
def test_mxfp4_is_known_in_either_case(name: str) -> None:
    assert modelopt.scheme_of(name, None) == PRESETS["MXFP4"]


@pytest.mark.parametrize("scheme", ["MXFP4", "W8A8_STATIC", "MXFP8", "FP8"])
def test_unpack_inverts_pack(scheme: str) -> None:
    q = random_linear(PRESETS[scheme])
    read = modelopt.unpack(modelopt.pack("mlp.down_proj", q), q.scheme)
    assert torch.equal(read.codes, q.codes)
    assert torch.equal(read.scales.float(), q.scales.float())
    assert (read.input_scale is None) == (q.input_scale is None)
    assert q.input_scale is None or torch.equal(read.input_scale, q.input_scale.float())  # type: ignore[arg-type]


def test_int8_with_static_inputs_has_the_tensors_of_smoothquant() -> None:
    tensors = modelopt.pack("mlp.down_proj", random_linear(PRESETS["W8A8_STATIC"]))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "weight": (torch.int8, (64, 128)),
        "weight_scale": (torch.float32, (64,)),
        "input_scale": (torch.float32, ()),
        "pre_quant_scale": (torch.bfloat16, (128,)),
    }
    fused = modelopt.pack("mlp.up_proj", random_linear(PRESETS["W8A8_STATIC"]))
    assert fused.keys() == tensors.keys()
