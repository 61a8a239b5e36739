"""What a format is: how a folder stores quantized layers, and what it can store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qdeploy.formats.tensors import Layout
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

Block = Mapping[str, Any]
"""`quantization_config` of config.json, or the file that older tools write beside it."""


@dataclass(frozen=True)
class Config:
    """What describes a folder's layers.

    Attributes:
        block: `quantization_config` of config.json.
        beside: more JSON files, by name.
    """

    block: dict[str, Any]
    beside: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadFormat:
    """How a folder stores quantized layers, as far as reading takes.

    Attributes:
        name: as messages and `qdeploy convert --to` call it.
        suffixes: of the tensors that a layer may own, its bias aside.
        schemes: of a folder's layers, from its block and the tensors that are there.
        shape: [N, K] of a module, from headers alone where they say it.
        layout: tensors that a module [N, K] must own; None where only unpacking tells.
        unpack: a layer from its tensors by suffix.
    """

    name: str
    suffixes: tuple[str, ...]
    schemes: Callable[[Block, CheckpointReader], dict[str, Scheme]]
    shape: Callable[[CheckpointReader, str, Scheme], tuple[int, int]]
    layout: Callable[[str, Scheme, int, int], Layout] | None
    unpack: Callable[[Mapping[str, Tensor], Scheme, Block], QuantizedLinear]


@dataclass(frozen=True)
class Format(ReadFormat):
    """One that is written too.

    Attributes:
        pack: the inverse of `unpack`, for a module. Raises ValueError where `refusal` cannot know.
        refusal: why it cannot hold a layer [N, K] of a scheme; None if it can.
        nearest: what a layer's scales become in it.
        config: for these layers, beside others that stay in 16 bits, with a cache in 16 bits (None) or "fp8".
        cache: a scale of the cache as it is stored, by its name; None where caches are in 16 bits.
    """

    pack: Callable[[str, QuantizedLinear], dict[str, Tensor]]
    refusal: Callable[[Scheme, int, int], str | None]
    nearest: Callable[[QuantizedLinear], QuantizedLinear]
    config: Callable[[Mapping[str, Scheme], Sequence[str], str | None], Config]
    cache: Callable[[str, Tensor], dict[str, Tensor]] | None = None
