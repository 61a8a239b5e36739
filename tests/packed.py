"""Packed checkpoints made by hand: nearest rounding, the project's own packing, plain safetensors."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdeploy.checkpoint.companions import companions
from qdeploy.formats.compressed_tensors import pack, quantization_config
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import INT8_PER_TOKEN, Scheme

W4A16 = Scheme("W4A16", 4, 32)
W4A16_ASYM = Scheme("W4A16_ASYM", 4, 32, symmetric=False)
W8A16 = Scheme("W8A16", 8, 32)
W8A8 = Scheme("W8A8", 8, None, activations=INT8_PER_TOKEN)
WEIGHTS = "model.safetensors"


def round_to_nearest(weight: Tensor, scheme: Scheme) -> QuantizedLinear:
    """[N, K] rounded to the scheme's grid between each group's extremes."""
    n, k = weight.shape
    grouped = weight.float().reshape(n, scheme.groups(k), -1)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if scheme.symmetric:
        scales = portable_scales(grouped.abs().amax(-1) / (scheme.zero - 0.5))
        zeros = torch.full_like(scales, scheme.zero).float()
    else:
        scales = portable_scales((high.clamp_min(0) - low.clamp_max(0)) / scheme.qmax)
        zeros = (-low.clamp_max(0) / scales.float()).round().clamp(0, scheme.qmax)
    codes = (grouped / scales.float()[..., None] + zeros[..., None]).round().clamp(0, scheme.qmax)
    kept = None if scheme.symmetric else zeros.to(torch.uint8)
    return QuantizedLinear(codes.reshape(n, k).to(torch.uint8), scales, kept, scheme)


def quantize_folder(source: Path, target: Path, scheme: Scheme) -> dict[str, QuantizedLinear]:
    """Write `source` with every projection quantized to `target`; returns the layers before packing."""
    target.mkdir(parents=True, exist_ok=True)
    for file in companions(source):
        shutil.copyfile(file, target / file.name)
    tensors, layers = {}, {}
    for name, tensor in load_file(source / WEIGHTS).items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            layers[module] = q = round_to_nearest(tensor, scheme)
            tensors |= {f"{module}.{suffix}": value.contiguous() for suffix, value in pack(q).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    block = quantization_config(dict.fromkeys(layers, scheme), ["lm_head"])
    edit_config(source / "config.json", target / "config.json", quantization_config=block)
    return layers


def edit_config(source: Path, target: Path, **changes: Any) -> None:
    """Write a config.json with other values; None removes a key."""
    config = json.loads(source.read_text()) | changes
    target.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace tensors of a folder with one weight file; None removes one."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()} | changes
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def swap_nibbles(packed: Tensor) -> Tensor:
    """Every pair of neighbouring 4-bit codes in the other order."""
    even, odd = packed & 0x0F0F0F0F, (packed >> 4) & 0x0F0F0F0F
    return (even << 4) | odd
