"""Reads checkpoints of TensorRT-LLM's engine builder back, by its documentation and by none of our code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Rank = dict[str, Tensor]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NORMS = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}


def read_legacy(folder: Path) -> dict[str, Tensor]:
    """The model under transformers' names: quantized weights as the float32 that they stand for."""
    config = json.loads((folder / "config.json").read_text())
    parts, stages = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    assert config["mapping"]["world_size"] == parts * stages
    files = [load_file(folder / f"rank{rank}.safetensors") for rank in range(parts * stages)]
    assert not (folder / f"rank{parts * stages}.safetensors").exists()
    vocabulary = config["vocab_size"]
    found = {
        "model.embed_tokens.weight": _rows(files[:parts], "transformer.vocab_embedding.weight")[:vocabulary],
        "model.norm.weight": _whole(files[-parts:], "transformer.ln_f.weight"),
        "lm_head.weight": _rows(files[-parts:], "lm_head.weight")[:vocabulary],
    }
    each = config["num_hidden_layers"] // stages
    for layer in range(config["num_hidden_layers"]):
        stage = files[layer // each * parts :][:parts]
        prefix = f"transformer.layers.{layer % each}."
        own = [{k.removeprefix(prefix): v for k, v in f.items() if k.startswith(prefix)} for f in stage]
        found |= {f"model.layers.{layer}.{k}": v for k, v in _block(own, config).items()}
    return found


def _block(ranks: list[Rank], config: dict[str, Any]) -> dict[str, Tensor]:
    found = {f"{hf}.weight": _whole(ranks, f"{ours}.weight") for ours, hf in NORMS.items()}
    for suffix in ("weight", "bias"):
        if f"attention.qkv.{suffix}" in ranks[0]:
            found |= _attention(ranks, config, suffix)
        for ours, hf in (("fc", "gate_proj"), ("gate", "up_proj")):
            if f"mlp.{ours}.{suffix}" in ranks[0]:
                weights = [_dense(rank, f"mlp.{ours}", config, suffix) for rank in ranks]
                found[f"mlp.{hf}.{suffix}"] = torch.cat(weights)
    for ours, hf in (("attention.dense", "self_attn.o_proj"), ("mlp.proj", "mlp.down_proj")):
        found[f"{hf}.weight"] = torch.cat([_dense(rank, ours, config, "weight") for rank in ranks], 1)
        if f"{ours}.bias" in ranks[0]:
            found[f"{hf}.bias"] = _whole(ranks, f"{ours}.bias")
    return found


def _attention(ranks: list[Rank], config: dict[str, Any], suffix: str) -> dict[str, Tensor]:
    devices, size, keys = len(ranks), config["head_size"], config["num_key_value_heads"]
    queries, own = config["num_attention_heads"] // devices * size, max(keys // devices, 1) * size
    split = [_dense(rank, "attention.qkv", config, suffix).split([queries, own, own]) for rank in ranks]
    repeats = max(devices // keys, 1)
    for first in range(0, devices, repeats):  # neighbours that have the same heads
        for other in split[first : first + repeats]:
            assert all(torch.equal(a, b) for a, b in zip(split[first][1:], other[1:], strict=True))
    return {
        f"self_attn.q_proj.{suffix}": torch.cat([q for q, _, _ in split]),
        f"self_attn.k_proj.{suffix}": torch.cat([k for _, k, _ in split[::repeats]]),
        f"self_attn.v_proj.{suffix}": torch.cat([v for _, _, v in split[::repeats]]),
    }


def _dense(rank: Rank, name: str, config: dict[str, Any], suffix: str) -> Tensor:
    tensors = {k.removeprefix(f"{name}."): v for k, v in rank.items() if k.startswith(f"{name}.")}
    weight, algorithm = tensors["weight"], config["quantization"]["quant_algo"]
    if suffix == "bias":
        return tensors["bias"]
    if weight.is_floating_point() and weight.itemsize > 1:
        return weight
    assert name not in config["quantization"]["exclude_modules"]
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        return weight.float() * tensors["per_channel_scale"][:, None]
    scales = tensors["weights_scaling_factor"].float()
    if algorithm == "FP8":
        return weight.float() * scales
    if algorithm == "W8A8_SQ_PER_CHANNEL":
        assert bool((tensors["prequant_scaling_factor"] == 1).all())
        return weight.float() * scales[:, None]
    if algorithm == "W4A16_AWQ":
        assert bool((tensors["prequant_scaling_factor"] == 1).all())
        pairs = torch.stack([weight << 4 >> 4, weight >> 4], 1).flatten(0, 1)
        return pairs.float() * scales.repeat_interleave(config["quantization"]["group_size"], 1)
    assert algorithm == "NVFP4"
    values = E2M1[torch.stack([weight & 15, weight >> 4], -1).flatten(1).long()]
    return values * (scales / (1 / tensors["weights_scaling_factor_2"])).repeat_interleave(16, 1)


def _rows(ranks: list[Rank], name: str) -> Tensor:
    return torch.cat([rank[name] for rank in ranks])


def _whole(ranks: list[Rank], name: str) -> Tensor:
    """What every device has."""
    assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks)
    return ranks[0][name]
