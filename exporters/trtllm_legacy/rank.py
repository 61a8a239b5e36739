"""The tensors of one device's file, one layer after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdeploy.errors import ExportError
from qdeploy.exporters.trtllm_legacy import tensors
from qdeploy.exporters.trtllm_legacy.names import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    HF_EMBEDDING,
    HF_FINAL_NORM,
    NORMS,
    UNITS,
    Unit,
    block,
    hf_block,
)
from qdeploy.exporters.trtllm_legacy.split import Rank
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import KEY, VALUE

MEND = {
    True: "Quantize the model again",
    False: "Round them first: qdeploy convert --to modelopt --allow-scale-rounding",
}
"""By whether scales are divided by nothing."""

KEYS_AND_VALUES = ("self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Model:
    """What is written.

    Attributes:
        packed: its folder, checked.
        layers: how many it has.
        kv_heads: key and value heads of each.
        dtype: of what is not quantized.
        tied: whether its head is its embedding.
        cache: attention module → suffix → scale of its cache, if that is in FP8.
    """

    packed: Packed
    layers: int
    kv_heads: int
    dtype: torch.dtype
    tied: bool
    cache: Mapping[str, Mapping[str, Tensor]]


def rank_tensors(model: Model, rank: Rank) -> Iterator[tuple[str, Tensor]]:
    """Name → tensor of the device's file; layers are counted from its own first.

    Raises:
        CheckpointError: the folder is damaged.
        ExportError: a layer's scales are not exact in what the builder makes of them.
    """
    if rank.first:
        yield f"{EMBEDDING}.weight", _vocabulary(model, rank, HF_EMBEDDING)
    for own, layer in enumerate(rank.layers(model.layers)):
        yield from _block(model, rank, own, layer)
    if rank.last:
        yield f"{FINAL_NORM}.weight", _plain(model, f"{HF_FINAL_NORM}.weight")
        # Also where it is the embedding: not every release shares them, and on other stages there is none.
        yield f"{HEAD}.weight", _vocabulary(model, rank, HF_EMBEDDING if model.tied else HEAD)


def _block(model: Model, rank: Rank, own: int, layer: int) -> Iterator[tuple[str, Tensor]]:
    name, source = block(own), hf_block(layer)
    for ours, theirs in NORMS.items():
        yield f"{name}.{ours}.weight", _plain(model, f"{source}.{theirs}.weight")
    for unit in UNITS:
        for suffix, tensor in _linear(model, rank, unit, source).items():
            yield f"{name}.{unit.name}.{suffix}", tensor
    scales = model.cache.get(f"{source}.self_attn")
    if scales is not None:
        # One for both.
        largest = torch.maximum(scales[KEY].float(), scales[VALUE].float())
        yield f"{name}.attention.kv_cache_scaling_factor", largest.reshape(1)


def _linear(model: Model, rank: Rank, unit: Unit, source: str) -> dict[str, Tensor]:
    modules = {member: f"{source}.{member}" for member in unit.members}
    reader, quantized = model.packed.reader, modules[unit.members[0]] in model.packed.schemes
    found = _quantized(model, rank, unit, modules) if quantized else _weight(model, rank, unit, modules)
    if f"{modules[unit.members[0]]}.bias" in reader:
        biases = {member: _plain(model, f"{module}.bias") for member, module in modules.items()}
        split = unit.split == "rows"
        parts = [b[_rows(model, rank, m, b.shape[0])] if split else b for m, b in biases.items()]
        found["bias"] = torch.cat(parts)
    return found


def _quantized(model: Model, rank: Rank, unit: Unit, modules: dict[str, str]) -> dict[str, Tensor]:
    parts = []
    for member, module in modules.items():
        q = model.packed.read(module)
        if reason := tensors.loss(q, model.dtype):
            raise ExportError(f"{module}: {reason}. {MEND[q.divisor is None]}.")
        n, k = q.shape
        by_rows = unit.split == "rows"
        parts.append(
            tensors.rows(q, _rows(model, rank, member, n)) if by_rows else tensors.columns(q, rank.share(k))
        )
    return tensors.pack(tensors.stack(parts), model.dtype)


def _weight(model: Model, rank: Rank, unit: Unit, modules: dict[str, str]) -> dict[str, Tensor]:
    parts = []
    for member, module in modules.items():
        weight = _plain(model, f"{module}.weight")
        n, k = weight.shape
        by_rows = unit.split == "rows"
        parts.append(weight[_rows(model, rank, member, n)] if by_rows else weight[:, rank.share(k)])
    return {"weight": torch.cat(parts)}


def _rows(model: Model, rank: Rank, member: str, n: int) -> slice:
    return rank.share_of_heads(n, model.kv_heads) if member in KEYS_AND_VALUES else rank.share(n)


def _plain(model: Model, name: str) -> Tensor:
    return model.packed.reader.get(name).to(model.dtype)


def _vocabulary(model: Model, rank: Rank, module: str) -> Tensor:
    return rank.share_of_vocabulary(_plain(model, f"{module}.weight"))
