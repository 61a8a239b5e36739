"""The reference mathematics of a packed checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qdeploy.errors import CheckpointError
from qdeploy.formats.dequantize import dequantized_model, dequantized_state
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.rounded_inputs import rounded
from qdeploy.schemes import PRESETS, Scheme


def test_dequantized_state_has_the_names_and_shapes_of_the_source(
    packed_llama: Callable[..., Path], tiny_model: Callable[[str], Path]
) -> None:
    source = CheckpointReader(tiny_model("llama"))
    state = dict(dequantized_state(packed_llama(lambda _: Scheme("W4A16", 4, 32))))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: source.shape(name) for name in source.names
    }
    assert {tensor.dtype for name, tensor in state.items() if name.endswith("_proj.weight")} == {
        torch.float32
    }
    assert state["model.norm.weight"].dtype == torch.bfloat16


def test_a_16_bit_folder_dequantizes_to_itself(tiny_model: Callable[[str], Path]) -> None:
    folder, tokens = tiny_model("llama"), torch.arange(12)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(dequantized_model(folder)(tokens).logits, plain(tokens).logits)


def test_w8a8_layers_compute_integer_products(packed_llama: Callable[..., Path]) -> None:
    folder = packed_llama(lambda _: PRESETS["W8A8"])
    layer = dequantized_model(folder).model.layers[0].mlp.gate_proj
    reader, x = CheckpointReader(folder), torch.randn(3, 64)
    weight = reader.get("model.layers.0.mlp.gate_proj.weight").long()
    scale = reader.get("model.layers.0.mlp.gate_proj.weight_scale").double()
    steps = x.abs().amax(-1, keepdim=True).double() / 127
    codes = (x.double() / steps).round().long()
    torch.testing.assert_close(layer(x).double(), (codes @ weight.T) * steps * scale.T, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layer(x), nn.functional.linear(x, layer.weight), rtol=1e-5, atol=1e-5)


def drop(folder: Path, name: str) -> None:
    """Remove a tensor from the folder's only shard and from its index."""
    (file,) = folder.glob("*.safetensors")
    tensors: dict[str, Tensor] = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    (folder / "model.safetensors.index.json").unlink()
    file.rename(folder / "model.safetensors")


def test_a_missing_part_of_a_layer_is_named(packed_llama: Callable[..., Path]) -> None:
    folder = packed_llama(lambda _: Scheme("W4A16", 4, 32))
    drop(folder, "model.layers.1.mlp.up_proj.weight_shape")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj .* weight_shape is missing"):
        dict(dequantized_state(folder))


def test_a_missing_weight_is_not_made_up(packed_llama: Callable[..., Path]) -> None:
    folder = packed_llama(lambda _: Scheme("W4A16", 4, 32))
    drop(folder, "model.layers.1.input_layernorm.weight")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.input_layernorm"):
        dequantized_model(folder)


@pytest.mark.parametrize("scheme", ["W8A8_STATIC", "FP8"])
def test_static_scales_are_those_of_the_file(scheme: str, packed_llama: Callable[..., Path]) -> None:
    folder = packed_llama(lambda _: PRESETS[scheme])
    layer = dequantized_model(folder).model.layers[0].mlp.gate_proj
    scale = CheckpointReader(folder).get("model.layers.0.mlp.gate_proj.input_scale").float()
    x, how = torch.randn(3, 64) * 100, PRESETS[scheme].activations
    assert how is not None
    read = rounded(x, how, scale[0])
    assert read.abs().amax() < 50
    torch.testing.assert_close(layer(x), nn.functional.linear(read, layer.weight))
