"""Packed checkpoints of any format: which one it is, how its layers are stored, and one of them decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.files import read_json
from qdeploy.formats import awq, compressed_tensors, ct_config, ct_layout, gptq, gptq_config
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

Block = Mapping[str, Any]
"""`quantization_config` of config.json, or the file that older tools write beside it."""

BESIDE = ("quantize_config.json", "quant_config.json")
"""Where older tools keep it."""


@dataclass(frozen=True)
class Format:
    """How a folder stores quantized layers.

    Attributes:
        name: as `qdeploy convert --to` calls it.
        suffixes: of the tensors that a layer may own, its bias aside.
        schemes: of a folder's layers, from its block and the tensors that are there.
        unpack: a layer from its tensors by suffix.
        pack: the inverse. Raises ValueError where `refusal` cannot know.
        refusal: why it cannot hold a layer [N, K] of a scheme; None if it can.
        block: that describes these layers, beside others that stay in 16 bits.
        scales: dtype of scales in it; None for whatever they are.
    """

    name: str
    suffixes: tuple[str, ...]
    schemes: Callable[[Block, CheckpointReader], dict[str, Scheme]]
    unpack: Callable[[Mapping[str, Tensor], Scheme, Block], QuantizedLinear]
    pack: Callable[[QuantizedLinear], dict[str, Tensor]]
    refusal: Callable[[Scheme, int, int], str | None]
    block: Callable[[Mapping[str, Scheme], Sequence[str]], dict[str, Any]]
    scales: torch.dtype | None = None


def _gptq(name: str, version: gptq.Version) -> Format:
    return Format(
        name,
        gptq.SUFFIXES,
        gptq_config.schemes,
        lambda tensors, scheme, block: gptq.unpack(tensors, scheme, gptq_config.version(block)),
        lambda q: gptq.pack(q, version),
        gptq.refusal,
        lambda schemes, kept: gptq_config.block(schemes, kept, version),
        torch.float16,
    )


FORMATS = {
    each.name: each
    for each in (
        Format(
            "compressed-tensors",
            ct_layout.SUFFIXES,
            lambda block, reader: ct_config.module_schemes({"quantization_config": block}, reader),
            lambda tensors, scheme, _: compressed_tensors.unpack(tensors, scheme),
            compressed_tensors.pack,
            lambda *_: None,
            ct_config.quantization_config,
        ),
        _gptq("gptq", 1),
        _gptq("gptq_v2", 2),
        Format(
            "awq",
            awq.SUFFIXES,
            awq.schemes,
            lambda tensors, scheme, _: awq.unpack(tensors, scheme),
            awq.pack,
            awq.refusal,
            awq.block,
            torch.float16,
        ),
    )
}
"""By name."""


class Packed:
    """A folder's quantized layers.

    Attributes:
        reader: the folder.
        format: None for a 16-bit model.
        schemes: quantized module → scheme.

    Raises:
        CheckpointError: a format that cannot be read, or a damaged block.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader, self._block = reader, block_of(reader)
        self.format = format_of(self._block) if self._block is not None else None
        self.schemes = self.format.schemes(self._block, reader) if self.format and self._block else {}

    @property
    def tensors(self) -> dict[str, str]:
        """Tensor → the quantized module that owns it; biases are not among them."""
        suffixes = self.format.suffixes if self.format else ()
        names = {f"{module}.{suffix}": module for module in self.schemes for suffix in suffixes}
        return {name: module for name, module in names.items() if name in self.reader}

    def read(self, module: str) -> QuantizedLinear:
        """A quantized layer.

        Raises:
            CheckpointError: its tensors do not fit its scheme; the message names folder and module.
        """
        assert self.format is not None and self._block is not None
        names = {suffix: f"{module}.{suffix}" for suffix in self.format.suffixes}
        tensors = {suffix: self.reader.get(name) for suffix, name in names.items() if name in self.reader}
        try:
            return self.format.unpack(tensors, self.schemes[module], self._block)
        except CheckpointError as error:
            raise CheckpointError(f"{module} in {self.reader.folder} is damaged: {error}.") from error


def block_of(reader: CheckpointReader) -> Block | None:
    """What describes the folder's quantization; None for a 16-bit model."""
    block: Block | None = reader.config.get("quantization_config")
    if block is not None:
        return block
    for name in BESIDE:
        if (reader.folder / name).is_file():
            beside: Block = read_json(reader.folder / name)
            return beside
    return None


def format_of(block: Block) -> Format:
    """The format that a block describes.

    Raises:
        CheckpointError: one that cannot be read.
    """
    method = block.get("quant_method") or block.get("method") or _guessed(block)
    if method in ("gptq", "gptq_marlin", "auto_gptq"):
        return FORMATS["gptq_v2" if gptq_config.version(block) == 2 else "gptq"]
    if method in ("awq", "awq_marlin", "auto_awq"):
        return FORMATS["awq"]
    if method == "compressed-tensors":
        return FORMATS["compressed-tensors"]
    raise CheckpointError(
        f"The checkpoint is quantized with {method!r}; only compressed-tensors, gptq and awq can be read."
    )


def _guessed(block: Block) -> str | None:
    """Of files that name no method: AutoAWQ's have zero_point, AutoGPTQ's have desc_act."""
    return "awq" if "zero_point" in block else "gptq" if "desc_act" in block else None
