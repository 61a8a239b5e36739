"""Packed checkpoints from one format to another: codes, zero points and scales stay what they are.

File by file, and of each a layer at a time, which alone is in memory. A file in which nothing changes becomes
a hard link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.checkpoint.checksums import recorded_hashes
from qdeploy.checkpoint.manifest import Conversion, load_manifest
from qdeploy.checkpoint.model_card import make_card
from qdeploy.checkpoint.tensor_file import room_for
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.errors import ConversionError, UnknownNameError
from qdeploy.files import sha256_file
from qdeploy.formats.format import Format
from qdeploy.formats.gptq import out_of_order
from qdeploy.formats.packed import FORMATS, Packed
from qdeploy.kv_cache import is_cache_scale, stored_scales
from qdeploy.memory import manage_heap
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.progress import progress
from qdeploy.quantized import QuantizedLinear

MOST = 2
"""How many times as many tensors as a layer has in one format it has in another."""


@dataclass(frozen=True)
class Converted:
    """What was done.

    Attributes:
        source, target: names of the formats.
        layers: how many were packed anew.
        rounded_scales: how many scales the target does not hold exactly.
        bytes: size of the weight files.
    """

    source: str
    target: str
    layers: int
    rounded_scales: int
    bytes: int


def convert(
    source: Path, output: Path, target: str, *, round_scales: bool = False, jobs: int = 1
) -> Converted:
    """Write the packed checkpoint in `source` to `output` in another format.

    Args:
        source: a folder in any of FORMATS.
        output: folder to make.
        target: name out of FORMATS.
        round_scales: go on where scales are not exact in the target's number format.
        jobs: files that are worked on at a time; the folder is the same for any number.

    Raises:
        UnknownNameError: no such format.
        CheckpointError: the folder is damaged or in a format that cannot be read; nothing is left behind.
        ConversionError: the target cannot hold a layer, or not without rounding; nothing is left behind.
        OutputError: the disk refuses.
    """
    if target not in FORMATS:
        raise UnknownNameError("format", target, FORMATS)
    packed = Packed(CheckpointReader(source))
    work = _Conversion(packed, FORMATS[target], round_scales)
    files = packed.reader.files
    with ShardWriter(output, [file.stem for file in files], resumable=False) as writer:
        _each(files, partial(work.write, writer), jobs)
        card = partial(make_card, name=output.resolve().name, source=source)
        writer.finish(work.config(), work.manifest(), source, work.beside(), card)
        return Converted(work.source.name, target, len(packed.schemes), work.rounded, writer.bytes)


def _each(files: Sequence[Path], work: Callable[[Path], Callable[[], None]], jobs: int) -> None:
    """Do `work` with every file, `jobs` at a time, and beside it what is left to do of those before.

    In threads: what takes time lets go of the interpreter's lock. Each computes in one thread, since tensors
    go through in small blocks, of which to share one takes longer than to do it.
    """
    manage_heap(ample=True)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,))
    finishing = ThreadPoolExecutor(jobs)
    with progress("Converting", len(files)) as shown:
        try:
            begun = {file: pool.submit(lambda file: finishing.submit(work(file)), file) for file in files}
            for file, future in begun.items():
                shown.note(file.name)
                future.result().result()
                shown.advance()
        finally:
            pool.shutdown(cancel_futures=True)
            finishing.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


class _Conversion:
    """What the folder will hold; how many scales were rounded is known once all files were written."""

    def __init__(self, packed: Packed, target: Format, round_scales: bool) -> None:
        if packed.format is None:
            raise ConversionError(
                f"{packed.reader.folder} is a model in 16 bits, of which no format but its own can be made. "
                "Quantize it: qdeploy quantize."
            )
        self.source, self.target = packed.format, target
        self._rounded: dict[str, int] = {}
        self._recorded = recorded_hashes(packed.reader.folder)
        self._packed, self._reader, self._round = packed, packed.reader, round_scales
        self._owners = packed.tensors
        self._first: dict[str, str] = {}
        for name, owner in self._owners.items():
            self._first.setdefault(owner, name)
        self._refuse()
        cache = "fp8" if stored_scales(self._reader) else None
        self._config = target.config(packed.schemes, packed.kept, cache)

    def _refuse(self) -> None:
        """Before anything is written, all that can be told from headers."""
        scales = stored_scales(self._reader)
        if any(scale.numel() > 1 for found in scales.values() for scale in found.values()):
            raise ConversionError(
                f"{self._reader.folder} has a scale of its cache for each head, and only one for all can be "
                f"converted. Stay with {self.source.name}."
            )
        if scales and self.target.cache is None:
            raise ConversionError(
                f"{self._reader.folder} has its cache in FP8, which the config of {self.target.name} cannot "
                f"say. Quantize again without kv_cache, or stay with {self.source.name}."
            )
        reasons = {name: self._reason(name, self.target) for name in self._packed.schemes}
        for name, reason in reasons.items():
            if reason is not None:
                count = sum(other is not None for other in reasons.values())
                raise ConversionError(
                    f"{self.target.name} cannot hold {count} of {len(reasons)} layers, the first {name}: "
                    f"{reason}. {self._instead()}"
                )

    def _reason(self, module: str, target: Format) -> str | None:
        return target.refusal(self._packed.schemes[module], *self._packed.shape(module))

    def _instead(self) -> str:
        others = [
            name
            for name, each in FORMATS.items()
            if name != self.source.name and not any(self._reason(m, each) for m in self._packed.schemes)
        ]
        return f"--to {' or '.join(others)} can." if others else f"Stay with {self.source.name}."

    @property
    def rounded(self) -> int:
        """How many scales were, in the files that were written."""
        return sum(self._rounded.values())

    def write(self, writer: ShardWriter, file: Path) -> Callable[[], None]:
        """Write what takes the file's place, or link it; what is returned finishes it."""
        names = self._reader.names_in(file)
        if any(self._changes(name) for name in names):
            return writer.begin_shard(file.stem, self._tensors(names), MOST * room_for(names))
        sizes = {name: self._reader.nbytes(name) for name in names}
        return lambda: writer.link_shard(file.stem, file, sizes, self._sha256(file))

    def _sha256(self, file: Path) -> str:
        return self._recorded.get(file.name) or sha256_file(file)

    def _changes(self, name: str) -> bool:
        return name in self._owners or (is_cache_scale(name) and self.target.cache is not None)

    def _tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """What takes the place of a file's tensors; a layer that of its first."""
        for name in names:
            if not self._changes(name):
                yield name, self._reader.get(name)
            elif name not in self._owners:
                assert self.target.cache is not None
                yield from self.target.cache(name, self._reader.get(name)).items()
            elif self._first[self._owners[name]] == name:
                yield from self._layer(self._owners[name])

    def _layer(self, module: str) -> Iterator[tuple[str, Tensor]]:
        read = self._packed.read(module)
        self._refuse_layer(module, read)
        quantized = self._nearest(module, read)
        try:
            tensors = self.target.pack(module, quantized)
        except ValueError as error:
            raise ConversionError(f"{module}: {error}. {self._instead()}") from error
        yield from ((f"{module}.{suffix}", tensor) for suffix, tensor in tensors.items())

    def _refuse_layer(self, module: str, read: QuantizedLinear) -> None:
        """What no format is written from, and headers do not tell."""
        if read.column_groups is not None:
            count = out_of_order(read.column_groups, read.scheme)
            raise ConversionError(
                f"{module}: {count} of {read.shape[1]} columns are in another group than that of their place "
                "(act-order without static groups), as no format is written. Quantize again with static "
                "groups, or without desc_act."
            )
        if read.scheme.needs_data and read.input_scale is None:
            raise ConversionError(
                f"{module} is {read.scheme.describe()}, whose inputs have one scale, and has none. Stay with "
                f"{self.source.name}."
            )

    def _nearest(self, module: str, quantized: QuantizedLinear) -> QuantizedLinear:
        """With the target's scales, which must be the layer's own unless they may be rounded."""
        found = self.target.nearest(quantized)
        pairs = [
            (before.float().flatten(), after.float().flatten())
            for before, after in (
                (quantized.scales, found.scales),
                (quantized.divisor, found.divisor),
                (quantized.input_scale, found.input_scale),
            )
            if before is not None and after is not None
        ]
        before, after = (torch.cat(part) for part in zip(*pairs, strict=True))
        wrong = before != after
        count = int(wrong.sum())
        if count and not (self._round and after.isfinite().all()):
            raise ConversionError(
                f"{module}: {count} of {len(before)} scales are not exact in {self.target.name}, the first "
                f"{float(before[wrong][0]):.9g}, which becomes {float(after[wrong][0]):.9g}. "
                f"Give --allow-scale-rounding to round them, or stay with {self.source.name}."
            )
        self._rounded[module] = count
        return found

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {**self._reader.config, "quantization_config": self._config.block}

    def beside(self) -> Mapping[str, Mapping[str, Any]]:
        """Files that older readers want."""
        return self._config.beside

    def manifest(self) -> dict[str, Any] | None:
        """qdeploy.json; None where there was none."""
        manifest = load_manifest(self._reader.folder)
        if manifest is None:
            return None
        done = Conversion(
            source=self.source.name,
            target=self.target.name,
            sha256=self._reader.sha256_from({file: self._sha256(file) for file in self._reader.files}),
            rounded_scales=self.rounded,
        )
        return manifest.converted(done)
