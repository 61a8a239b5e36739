"""The linear layers of a checkpoint as an engine sees them: fused, and split over devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import CheckpointError
from qdeploy.formats.packed import Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.experts import matrices, split_experts
from qdeploy.module_names import expert_of
from qdeploy.schemes import Scheme

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that vLLM runs as one matrix (`packed_modules_mapping` of its models)."""

COLUMN_PARALLEL = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "w1",
    "w3",
)
ROW_PARALLEL = ("o_proj", "down_proj", "w2")
KEY_VALUE = ("k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer: weight [N, K], `scheme` None where it stays in 16 bits."""

    name: str
    n: int
    k: int
    scheme: Scheme | None

    @property
    def leaf(self) -> str:
        """Last part of the name, e.g. "q_proj"."""
        return self.name.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """What one kernel call multiplies on one device: `members` side by side, [n, k] of the whole on it.

    All experts of a block are one: n is the width of the model, k that between an expert's layers.
    """

    name: str
    members: tuple[Layer, ...]
    n: int
    k: int
    experts: bool = False

    @property
    def scheme(self) -> Scheme | None:
        """That of the first member."""
        return self.members[0].scheme


def read_layers(reader: CheckpointReader) -> list[Layer]:
    """Linear layers and routers of the model that config.json describes, with the scheme each is stored in.

    Names and shapes come from the model's own code, not from the weight files that they are checked against.
    A head tied to the embedding has no weight of its own and is left out.

    Raises:
        CheckpointError: the architecture is unknown, or the quantization cannot be read.
    """
    schemes = Packed(reader).schemes
    model = _skeleton(reader)
    split_experts(model)
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    )
    return [
        Layer(name, n, k, schemes.get(name))
        for name, (n, k) in matrices(model).items()
        if f"{name}.weight" not in tied
    ]


def _skeleton(reader: CheckpointReader) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(reader.folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"{reader.folder / 'config.json'} describes no causal language model that transformers knows: "
            f"{str(error).splitlines()[0]}"
        ) from error


def fused_sets(layers: Iterable[Layer]) -> Iterator[tuple[str, list[Layer]]]:
    """(fused name, members) of every set that vLLM runs as one matrix, in the order of the model."""
    by_name = {layer.name: layer for layer in layers if expert_of(layer.name) is None}
    for layer in by_name.values():
        for fused, leaves in FUSED.items():
            names = [f"{layer.parent}.{leaf}" for leaf in leaves]
            if layer.leaf == leaves[0] and all(name in by_name for name in names):
                yield f"{layer.parent}.{fused}", [by_name[name] for name in names]


def expert_sets(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Name of the experts of a block → the layers of all of them, which vLLM runs at once."""
    sets: dict[str, list[Layer]] = {}
    for layer in layers:
        expert = expert_of(layer.name)
        if expert is not None:
            sets.setdefault(expert[0], []).append(layer)
    return sets


def per_device(layers: Iterable[Layer], tensor_parallel: int, kv_heads: int) -> list[FusedLayer]:
    """The quantized layers, fused and with the shape that each device multiplies.

    Column-parallel layers split N, row-parallel ones K; key and value heads fewer than devices are repeated.
    """
    layers = [layer for layer in layers if layer.scheme is not None]
    experts = expert_sets(layers)
    fused = dict(fused_sets(layers))
    inside = {member.name for members in [*fused.values(), *experts.values()] for member in members}
    sets = [*fused.items(), *((layer.name, [layer]) for layer in layers if layer.name not in inside)]
    return [
        FusedLayer(
            name,
            tuple(members),
            sum(_n(m, tensor_parallel, kv_heads) for m in members),
            _k(members[0], tensor_parallel),
        )
        for name, members in sets
    ] + [
        FusedLayer(name, tuple(members), down.n, _k(down, tensor_parallel), experts=True)
        for name, members in experts.items()
        for down in [next(member for member in members if member.leaf in ROW_PARALLEL)]
    ]


def _k(layer: Layer, tensor_parallel: int) -> int:
    return layer.k // (tensor_parallel if layer.leaf in ROW_PARALLEL else 1)


def _n(layer: Layer, tensor_parallel: int, kv_heads: int) -> int:
    if layer.leaf in KEY_VALUE:
        return layer.n // min(tensor_parallel, kv_heads)
    return layer.n // (tensor_parallel if layer.leaf in COLUMN_PARALLEL else 1)
