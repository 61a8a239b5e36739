"""GGUF files of block types that are integers on a grid, imported without rounding: their codes are kept."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdeploy.checkpoint.folder import refuse_used
from qdeploy.checkpoint.model_card import make_card
from qdeploy.checkpoint.tensor_file import room_for
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.errors import CheckpointError, ConversionError
from qdeploy.formats import compressed_tensors
from qdeploy.formats.gguf import SCHEMES, inexact, unpack
from qdeploy.formats.packed import Packed
from qdeploy.gguf import GgufSummary, decode, read_summary
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.progress import Task, progress
from qdeploy.quantized import QuantizedLinear

PLAIN = ("F32", "F16", "BF16")
"""Types that stay in 16 bits."""
PARTS = 3
"""Tensors that stand for a weight."""

INTERLEAVED = "llama"
"""The architecture whose rows of queries and keys llama.cpp stores in the order of its rotary embeddings."""


def import_codes(path: Path, output: Path) -> GgufSummary:
    """Write the model in a GGUF file as a compressed-tensors folder with the codes of the file.

    What layers stand for is what the file says, to the last bit. Embeddings, head and norms are in float16,
    the dtype of the scales: engines cast scales to the dtype that they run in. Beside the output, room is
    needed for the model in 16 bits meanwhile, on disk and in memory.

    Args:
        path: the .gguf file; not one of several parts.
        output: folder to make; new or empty.

    Raises:
        UsageError: the extra is not installed.
        CheckpointError: not a GGUF file, damaged, or with tensors or an architecture that cannot be read.
        ConversionError: layers whose blocks are no integers on a grid; nothing is left behind.
        OutputError: the output is in use or the disk is full.
    """
    summary = read_summary(path)
    refuse_used(output)
    file = _File(path)
    file.refuse_inexact()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}.decoded.", dir=output.parent) as folder:
        decode(path, Path(folder), torch.float16)
        layers = file.layers(CheckpointReader(Path(folder)))
        _write(file, layers, Path(folder), output)
    return replace(summary, kept=dict(Counter(layer.kind for layer in layers.values())))


@dataclass(frozen=True)
class _Layer:
    """Where in a GGUF file a linear layer is.

    Attributes:
        tensor: the name of its weight there.
        kind: its type, one of SCHEMES.
        heads: whose rows are interleaved; None where rows are in their order.
    """

    tensor: str
    kind: str
    heads: int | None


class _File:
    """The tensors of a GGUF file by name; its header was checked."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.path = path
        self.architecture = str(reader.fields["general.architecture"].contents())
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._kinds = {
            name: tensor.tensor_type.name
            for name, tensor in self._tensors.items()
            if name.startswith("blk.") and tensor.tensor_type.name not in PLAIN
        }

    def blocks(self, name: str) -> Tensor:
        """uint8 [N, bytes of a row], a copy."""
        return torch.from_numpy(np.array(self._tensors[name].data))

    def refuse_inexact(self) -> None:
        """Look at all blocks.

        Raises:
            ConversionError: a layer's blocks are no integers on a grid, or no layer is quantized.
        """
        wrong = Counter(kind for name, kind in self._kinds.items() if not self._exact(name, kind))
        if not self._kinds:
            raise ConversionError(f"{self.path} has no quantized layers. Import it without --keep-codes.")
        if wrong:
            told = ", ".join(f"{count} {kind}" for kind, count in wrong.items())
            raise ConversionError(
                f"{self.path}: {wrong.total()} of {len(self._kinds)} quantized layers ({told}) are not "
                "integers with a scale and a zero point for 32 weights, as Q4_0 and Q8_0 are, and Q4_1 where "
                "all minima are multiples of their scales. Import without --keep-codes, which decodes them."
            )

    def _exact(self, name: str, kind: str) -> bool:
        return kind in SCHEMES and self._tensors[name].data.ndim == 2 and not inexact(kind, self.blocks(name))

    def layers(self, reader: CheckpointReader) -> dict[str, _Layer]:
        """Module of the decoded model → where its codes are.

        Raises:
            ConversionError: a quantized layer of the file is no layer of the model by itself.
        """
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = get_tensor_name_map(architecture, reader.config["num_hidden_layers"])
        found: dict[str, _Layer] = {}
        for name in reader.names:
            module, _, suffix = name.rpartition(".")
            tensor = f"{names.get_name(module)}.weight"
            if suffix == "weight" and tensor in self._kinds:
                found[module] = _Layer(tensor, self._kinds[tensor], self._heads(tensor, reader.config))
        if missing := self._kinds.keys() - {layer.tensor for layer in found.values()}:
            raise ConversionError(
                f"{self.path}: {len(missing)} of {len(self._kinds)} quantized tensors are not linear "
                f"layers of the model, the first {min(missing)}. Import without --keep-codes."
            )
        return found

    def _heads(self, tensor: str, config: Mapping[str, Any]) -> int | None:
        if self.architecture != INTERLEAVED:
            return None
        if tensor.endswith(".attn_q.weight"):
            return int(config["num_attention_heads"])
        return int(config["num_key_value_heads"]) if tensor.endswith(".attn_k.weight") else None

    def read(self, layer: _Layer) -> QuantizedLinear:
        """A layer, its rows in the order of transformers."""
        blocks = self.blocks(layer.tensor)
        if layer.heads is not None:
            blocks = blocks[torch.arange(len(blocks)).reshape(layer.heads, -1, 2).mT.flatten()]
        return unpack(layer.kind, blocks)


def _write(file: _File, layers: Mapping[str, _Layer], decoded: Path, output: Path) -> None:
    """The decoded folder with codes in place of weights, file by file."""
    reader = CheckpointReader(decoded)
    schemes = {module: SCHEMES[layer.kind] for module, layer in layers.items()}
    kept = [module for module in Packed(reader).kept if module not in schemes]
    block = compressed_tensors.quantization_config(schemes, kept)
    with (
        ShardWriter(output, [each.stem for each in reader.files], resumable=False) as writer,
        progress("Packing", len(reader.names)) as shown,
    ):
        for each in reader.files:
            room = PARTS * room_for(reader.names_in(each))
            writer.begin_shard(each.stem, _tensors(file, layers, reader, each, shown), room)()
        card = partial(make_card, name=output.resolve().name, source=decoded)
        writer.finish(reader.config | {"quantization_config": block}, None, decoded, card=card)


def _tensors(
    file: _File, layers: Mapping[str, _Layer], reader: CheckpointReader, part: Path, shown: Task
) -> Iterator[tuple[str, Tensor]]:
    """What takes the place of a file's tensors; every layer is compared with its decoded weight."""
    for name in reader.names_in(part):
        module, tensor = name.removesuffix(".weight"), reader.get(name)
        if module in layers:
            q = file.read(layers[module])
            if not torch.equal(q.dequantize().to(tensor.dtype), tensor):
                raise CheckpointError(
                    f"{file.path}: the codes of {layers[module].tensor} are not in the order of {module}. "
                    "Import without --keep-codes."
                )
            yield from ((f"{module}.{suffix}", t) for suffix, t in compressed_tensors.pack(q).items())
        elif not tensor.isfinite().all():
            raise CheckpointError(
                f"{file.path}: {name} is beyond float16, in which scales are. Import without --keep-codes."
            )
        else:
            yield name, tensor
        shown.advance()
