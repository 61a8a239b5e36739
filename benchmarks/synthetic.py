"""Random Llamas of any depth, and packed ones of any size, whose work costs what that of real ones does."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qdeploy.formats.compressed_tensors import pack, quantization_config
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

HIDDEN, INTERMEDIATE, HEADS = 512, 1536, 8


def save_llama(folder: Path, layers: int) -> Path:
    """Save a random bfloat16 Llama of `layers` blocks, with a tokenizer of one token per byte."""
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 4,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_packed(folder: Path, shards: int, hidden: int, scheme: Scheme) -> Path:
    """Save random codes as compressed-tensors: `shards` files, each a block of a Llama that wide."""
    layers: dict[str, Scheme] = {}
    weight_map: dict[str, str] = {}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for i in range(shards):
        file, tensors = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", _block(i, hidden, scheme)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        layers |= {name.removesuffix(".weight_scale"): scheme for name in tensors if "scale" in name}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    block = quantization_config(layers, ["lm_head"])
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": block}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _block(index: int, hidden: int, scheme: Scheme) -> dict[str, Tensor]:
    prefix, wide = f"model.layers.{index}", 4 * hidden
    found = {f"{prefix}.input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    shapes = {f"self_attn.{side}_proj": (hidden, hidden) for side in "qkvo"}
    shapes |= {
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    for name, (n, k) in shapes.items():
        codes = torch.randint(0, scheme.qmax + 1, (n, k), dtype=torch.uint8)
        scales = torch.full((n, scheme.groups(k)), 2.0**-8, dtype=torch.bfloat16)
        layer = pack(QuantizedLinear(codes, scales, None, scheme))
        found |= {f"{prefix}.{name}.{suffix}": tensor for suffix, tensor in layer.items()}
    return found


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
