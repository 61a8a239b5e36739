"""Keys and values that an engine keeps in FP8 (E4M3): one scale of each for a layer's attention.

The largest |key| and |value| of the calibration, as the quantized block makes them and after rotary
embeddings, become the largest E4M3 number. Queries get a scale too: engines whose attention multiplies FP8
round them. In the checkpoint they are `….self_attn.k_scale`, `v_scale` and `q_scale`, as compressed-tensors
names them, and config.json has a `kv_cache_scheme`, which is what makes vLLM keep its cache in FP8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.distributed import ALONE, Group
from qdeploy.errors import RecipeError
from qdeploy.formats.packed import block_of, has_cache_in_fp8
from qdeploy.formats.tensors import attention_of
from qdeploy.modeling.activations import Activations as States
from qdeploy.modeling.attending import look_at_attention
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import BlockCall, stopped
from qdeploy.rounded_inputs import rounded, static_scale
from qdeploy.schemes import E4M3, Activations
from qdeploy.stopwatch import part

FP8 = Activations(E4M3, "tensor", dynamic=False)
"""How one scale rounds all keys, or all values, of an attention."""

QUERY, KEY, VALUE = "q_scale", "k_scale", "v_scale"
SCALES = (QUERY, KEY, VALUE)
"""Suffixes that follow the name of the module that calls attention."""

LATENT = "kv_lora_rank"
"""In the config of models whose cache holds neither keys nor values, but what both are made from."""


def refuse_other_caches(model: Any) -> None:
    """Refuse a model whose cache is not keys and values that its attention can be seen to read.

    Raises:
        RecipeError: it is not.
    """
    if getattr(model.config.get_text_config(), LATENT, None) is not None:
        reason = "keeps what keys and values are made from in its cache, which has no scales of theirs"
    elif not model._supports_attention_backend:
        reason = "calls attention in a way of its own, where keys and values cannot be seen"
    else:
        return
    raise RecipeError(f"kv_cache fp8: {type(model).__name__} {reason}. Leave kv_cache out.")


@part("forward")
def cache_scales(call: BlockCall, states: States, group: Group = ALONE) -> dict[str, Tensor]:
    """Scales for the attention of a block, by the names that they have in the checkpoint: bfloat16 [1].

    The block runs once more, as far as its attention. Nothing is found in a block that has none.

    Args:
        call: how the block is called; it is materialized, with quantized weights in place.
        states: hidden states that enter it, of this process's samples.
        group: the processes that have the other samples.
    """
    block, device = call.block, next(call.block.module.parameters()).device
    largest: dict[str, Tensor] = {}

    def see(name: str, stop: Callable[[], None], *attended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = torch.stack([x.abs().amax().float() for x in attended])
        largest[name] = torch.maximum(largest.get(name, found), found)
        stop()
        raise AssertionError("it went on")

    for samples in states.batches():
        with stopped() as stop:
            modules = block.module.named_modules(prefix=block.name)
            end = look_at_attention(
                block.module, {module: partial(see, name, stop) for name, module in modules}
            )
            try:
                call(states[samples].to(device))
            finally:
                end()
    for found in largest.values():
        group.greatest(found)
    return {
        f"{name}.{suffix}": static_scale(size, FP8).bfloat16().reshape(1)
        for name, found in largest.items()
        for suffix, size in zip(SCALES, found.cpu(), strict=True)
    }


def stored_scales(reader: CheckpointReader) -> dict[str, dict[str, Tensor]]:
    """Attention module → suffix → scale of one number, or of one for each head: [H, 1, 1].

    Empty for a checkpoint whose config does not say that keys and values are cached in FP8.

    Raises:
        CheckpointError: it says that they are cached in another format.
    """
    block = block_of(reader)
    if block is None or not has_cache_in_fp8(block):
        return {}
    return by_module({name: reader.get(name) for name in reader.names if is_cache_scale(name)})


def is_cache_scale(tensor: str) -> bool:
    """Whether a tensor of that name is a scale of a cache."""
    return tensor.rpartition(".")[2] in SCALES


def by_module(scales: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Attention module → suffix → scale, of scales by their full names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, scale in scales.items():
        module, _, suffix = name.rpartition(".")
        found.setdefault(attention_of(module), {})[suffix] = scale
    return found


def round_cache(model: nn.Module, scales: Mapping[str, Mapping[str, Tensor]]) -> Callable[[], None]:
    """Have attention read keys and values as they come out of a cache in FP8; returns what ends it.

    Args:
        model: a transformers model; queries stay as they are, as in engines that multiply 16 bits.
        scales: see `stored_scales`.
    """

    def see(own: Mapping[str, Tensor], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Where there is none, engines take 1.
        k_scale, v_scale = (own.get(suffix, torch.ones(())).float().to(k.device) for suffix in (KEY, VALUE))
        k, v = rounded(k, FP8, k_scale), rounded(v, FP8, v_scale)
        return q, k, v

    return look_at_attention(
        model, {model.get_submodule(name): partial(see, own) for name, own in scales.items()}
    )
