"""Our packed layers against compressed-tensors' own code, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from qdeploy.errors import CheckpointError
from qdeploy.formats import compressed_tensors
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS, Scheme
from tests.qdeploy.formats.conftest import random_linear

SCHEMES = [
    Scheme("W4A16", 4, 32),
    Scheme("W4A16", 4, None),
    Scheme("W4A16_ASYM", 4, 32, symmetric=False),
    Scheme("W4A16_ASYM", 4, None, symmetric=False),
    Scheme("W3A16", 3, 32),
    Scheme("W3A16_ASYM", 3, 32, symmetric=False),
    Scheme("W2A16", 2, 64),
    Scheme("W2A16_ASYM", 2, None, symmetric=False),
    Scheme("W8A16", 8, 64),
    Scheme("W8A16", 8, 64, symmetric=False),
    PRESETS["W8A8"],
    PRESETS["W8A8_STATIC"],
    Scheme("W4A8", 4, 32, activations=INT8_PER_TOKEN),
    Scheme("W4A8", 4, None, activations=INT8_PER_TOKEN),
    *(scheme for scheme in PRESETS.values() if scheme.element is not None),
]
TOKENS = torch.arange(24).reshape(2, 12)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)


def parsed_group(scheme: Scheme) -> QuantizationScheme:
    config = compressed_tensors.quantization_config({"m": scheme}, [])
    return QuantizationConfig.model_validate(config).config_groups["group_0"]


@each_scheme
def test_unpack_inverts_pack(scheme: Scheme) -> None:
    q = random_linear(scheme, n=40)
    back = compressed_tensors.unpack(compressed_tensors.pack(q), scheme)
    assert torch.equal(back.codes, q.codes)
    assert torch.equal(back.scales, q.scales)
    assert (back.zeros is None) == (q.zeros is None)
    assert torch.equal(back.dequantize(), q.dequantize())


@each_scheme
def test_compressed_tensors_decodes_to_our_dequantized_weight(scheme: Scheme) -> None:
    q = random_linear(scheme)
    tensors = compressed_tensors.pack(q)
    if tensors["weight_scale"].dtype == torch.bfloat16:
        tensors["weight_scale"] = tensors["weight_scale"].float()
    group = parsed_group(scheme)
    compressor = BaseCompressor.get_value_from_registry(str(group.format))
    decoded = compressor.decompress(tensors, group)["weight"]
    assert torch.equal(decoded, q.dequantize().to(decoded.dtype))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("n", "k"), [(40, 128), (33, 96)])
def test_our_words_are_those_of_compressed_tensors(bits: int, n: int, k: int) -> None:
    scheme = Scheme(f"W{bits}A16_ASYM", bits, 32, symmetric=False)
    q = random_linear(scheme, n, k)
    assert q.zeros is not None
    ours, zero = compressed_tensors.pack(q), scheme.zero
    codes, zeros = ((part.short() - zero).to(torch.int8) for part in (q.codes, q.zeros))
    assert torch.equal(ours["weight_packed"], pack_to_int32(codes, bits))
    assert torch.equal(ours["weight_zero_point"], pack_to_int32(zeros, bits, packed_dim=0))


def test_unpack_names_the_tensor_that_does_not_fit() -> None:
    scheme = Scheme("W4A16", 4, 32)
    tensors = compressed_tensors.pack(random_linear(scheme))
    tensors["weight_scale"] = tensors["weight_scale"][:, 1:]
    with pytest.raises(CheckpointError, match=r"weight_scale has shape \[64, 3\], expected \[64, 4\]"):
        compressed_tensors.unpack(tensors, scheme)
    tensors["weight_packed"] = tensors["weight_packed"].long()
    tensors["weight_scale"] = torch.ones(64, 4)
    with pytest.raises(CheckpointError, match=r"weight_packed is torch\.int64, expected torch\.int32"):
        compressed_tensors.unpack(tensors, scheme)
    del tensors["weight_shape"]
    with pytest.raises(CheckpointError, match="weight_shape is missing"):
        compressed_tensors.unpack(tensors, scheme)


def load_in_transformers(folder: Path, **settings: Any) -> Any:
    """The folder as transformers loads it, without its rounding of activations, which is not vLLM's."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
    for module in model.modules():
        module.quantization_enabled = False
    return model


def weight_only_model(folder: Path) -> Any:
    model = dequantized_model(folder)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    return model


# In float32 transformers cannot run weights that compressed-tensors decodes to bfloat16: it does those with
# scales of 8 bits. Blocks of 128 columns do not fit the tiny model.
IN_FLOAT32 = [s for s in SCHEMES if s.symmetric and s.steps == "bfloat16" and s.rows != 128]


@pytest.mark.parametrize("scheme", IN_FLOAT32, ids=Scheme.describe)
def test_the_folder_loads_in_transformers(scheme: Scheme, packed_llama: Callable[..., Path]) -> None:
    folder = packed_llama(lambda _: scheme)
    ours = weight_only_model(folder)(TOKENS).logits
    assert ours.std() > 0.1
    assert torch.equal(load_in_transformers(folder)(TOKENS).logits, ours)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not s.symmetric], ids=Scheme.describe)
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_the_asymmetric_folder_loads_in_transformers(
    scheme: Scheme, packed_llama: Callable[..., Path]
) -> None:
    """Dequantized at load, as compressed-tensors 0.18 to 0.20 expect packed zero points in a wrong shape."""
    folder = packed_llama(lambda _: scheme)
    ours = weight_only_model(folder)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.bfloat16())
    theirs = load_in_transformers(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    assert torch.equal(theirs(TOKENS).logits, ours(TOKENS).logits)


def test_mixed_schemes_load_in_transformers(packed_llama: Callable[..., Path]) -> None:
    mlp, attention = Scheme("W4A16", 4, 32), PRESETS["W8A8"]
    folder = packed_llama(lambda module: mlp if ".mlp." in module else attention)
    reader = CheckpointReader(folder)
    assert reader.config["quantization_config"]["format"] == "mixed-precision"
    schemes = compressed_tensors.module_schemes(reader.config, reader)
    assert len(schemes) == 14
    assert all(scheme == (mlp if ".mlp." in name else attention) for name, scheme in schemes.items())
    assert torch.equal(load_in_transformers(folder)(TOKENS).logits, weight_only_model(folder)(TOKENS).logits)


def test_scales_of_a_cache_are_exact() -> None:
    for value, dtype in ((0.25, torch.bfloat16), (0.1, torch.float32)):
        (stored,) = compressed_tensors.cache("m.self_attn.k_scale", torch.tensor(value)).values()
        assert (stored.dtype, stored.shape) == (dtype, (1,))
        assert float(stored) == float(torch.tensor(value))
