"""Layers that an engine has no kernel for, dequantized to 16 bits: for studies of accuracy, if asked for."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.checkpoint.manifest import Manifest, load_manifest
from qdeploy.checkpoint.tensor_file import room_for
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import FusedLayer, per_device, read_layers
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.parallel import heads
from qdeploy.fingerprint import fingerprint
from qdeploy.formats.format import Config, Format
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.reference_linear import ReferenceLinear, portable

DEQUANTIZED = rule(
    "QD610",
    "warning",
    "Layers are served dequantized",
    """There is no kernel for what they were quantized to, so they are stored in 16 bits with the values
    that they would have. That is for studies of accuracy: speed and size are those of the 16-bit model.""",
)
NOT_ASKED = rule(
    "QD611",
    "error",
    "Layers are dequantized, and nobody asked for it",
    "See QD610. `qdeploy export` takes such a folder with `--reference` alone.",
)

Reason = Callable[[FusedLayer], str | None]


def write_dequantized(source: Path, output: Path, without_kernel: Mapping[str, str]) -> None:
    """Write the checkpoint in `source` to `output` with some of its layers in 16 bits, file by file.

    Args:
        without_kernel: module → why it is not packed any more; the manifest says so.

    Raises:
        CheckpointError: the folder is damaged.
        OutputError: the disk refuses.
    """
    reader = CheckpointReader(source)
    dequantized = _Dequantized(Packed(reader), without_kernel)
    with ShardWriter(output, [file.stem for file in reader.files], resumable=False) as writer:
        for file in reader.files:
            room = room_for(reader.names_in(file))
            writer.begin_shard(file.stem, dequantized.tensors(file), room)()
        left = dequantized.config()
        config = {key: value for key, value in reader.config.items() if key != "quantization_config"}
        if left is not None:
            config["quantization_config"] = left.block
        writer.finish(config, dequantized.manifest(), source, left.beside if left else None)


@contextmanager
def dequantizing(
    source: Path, output: Path, tensor_parallel: int, reason: Reason | None
) -> Iterator[tuple[Path, list[Finding]]]:
    """`source`, or for a while a folder beside `output` in which what has no kernel is dequantized.

    And what is to be said of layers that are dequantized there, now or since long.

    Args:
        tensor_parallel: devices that the model is split over.
        reason: why the engine has no kernel for a layer, None if it has; None in its place for nothing to do.
    """
    missing = without_kernel(CheckpointReader(source), tensor_parallel, reason) if reason else {}
    if not missing:
        yield source, list(_findings(load_manifest(source), {}, allowed=reason is not None))
        return
    folder = output.with_name(output.name + ".reference")
    write_dequantized(source, folder, missing)
    try:
        yield folder, list(_findings(load_manifest(folder), missing, allowed=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def without_kernel(reader: CheckpointReader, tensor_parallel: int, reason: Reason) -> dict[str, str]:
    """Layer → why nothing runs it; layers that are fused go together."""
    layers = per_device(read_layers(reader), tensor_parallel, heads(reader.config)[1])
    reasons = {layer: reason(layer) for layer in layers}
    return {
        member.name: told for layer, told in reasons.items() if told is not None for member in layer.members
    }


def _findings(manifest: Manifest | None, missing: Mapping[str, str], *, allowed: bool) -> Iterator[Finding]:
    """An error for each reason, unless they are `allowed`; without a manifest, of what is `missing`."""
    modules = [module.without_kernel for module in manifest.modules] if manifest else missing.values()
    for reason, count in Counter(modules).items():
        if reason is None:
            continue
        told = f"{count} layers are dequantized to 16 bits: {reason}"
        if allowed:
            yield DEQUANTIZED(f"{told}. Speed and size are those of 16 bits; only accuracy counts")
        else:
            yield NOT_ASKED(told, "Give --reference to serve them so, for a study of accuracy")


class _Dequantized:
    """What the folder will hold; fingerprints are known once all tensors were asked for."""

    def __init__(self, packed: Packed, without_kernel: Mapping[str, str]) -> None:
        self._packed, self._reader, self._without_kernel = packed, packed.reader, without_kernel
        self._owners = packed.tensors
        name = self._reader.config.get("dtype") or self._reader.config.get("torch_dtype") or "bfloat16"
        self._dtype: torch.dtype = getattr(torch, name)
        self._fingerprints: dict[str, str] = {}

    def tensors(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """The tensors that take the place of a file's; a layer's weight that of its first."""
        for name in self._reader.names_in(file):
            module = self._owners.get(name)
            if module not in self._without_kernel:
                yield name, self._reader.get(name)
            elif module is not None and module not in self._fingerprints:
                yield f"{module}.weight", self._weight(module)

    def _weight(self, module: str) -> Tensor:
        quantized = self._packed.read(module)
        found = ReferenceLinear(portable(quantized.dequantize()), quantized.bits)
        self._fingerprints[module] = fingerprint(found)
        return found.weight.to(self._dtype)

    def config(self) -> Config | None:
        """What describes the layers that still are quantized; None if there are none."""
        left = {name: s for name, s in self._packed.schemes.items() if name not in self._without_kernel}
        if not left:
            return None
        assert isinstance(self._packed.format, Format)
        cache = "fp8" if stored_scales(self._reader) else None
        return self._packed.format.config(left, [*self._packed.kept, *self._without_kernel], cache)

    def manifest(self) -> dict[str, Any] | None:
        """qdeploy.json; None where there was none."""
        manifest = load_manifest(self._reader.folder)
        if manifest is None:
            return None
        content = manifest.model_dump(mode="json") | {"serving": "reference"}
        for module in content["modules"]:
            if module["name"] in self._fingerprints:
                module["without_kernel"] = self._without_kernel[module["name"]]
                module["fingerprint"] = self._fingerprints[module["name"]]
                module["scheme"] += ", reference"
        return content
