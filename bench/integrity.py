"""Whether a checkpoint is still what `quantize` made: every layer's numbers, every file's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qdeploy.checkpoint.manifest import Manifest, Module, load_manifest
from qdeploy.errors import VerificationError
from qdeploy.files import sha256_file
from qdeploy.fingerprint import fingerprint
from qdeploy.formats.packed import Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.reference_linear import ReferenceLinear

SHOWN = 8


@dataclass(frozen=True, slots=True)
class Integrity:
    """What was compared with the manifest.

    Attributes:
        layers: quantized layers whose decoded numbers were compared with their recorded fingerprint.
        files: weight files whose SHA-256 was compared.
        changed_layers, changed_files: those that differ, with how.
    """

    layers: int
    files: int
    changed_layers: dict[str, str]
    changed_files: dict[str, str]

    def require(self, folder: Path) -> None:
        """Refuse a checkpoint that changed.

        Raises:
            VerificationError: names the layers that decode to something else, or else the files.
        """
        if not self.changed_layers and not self.changed_files:
            return
        if self.changed_layers:
            what = f"{len(self.changed_layers)} of {self.layers} quantized layers do not decode to what"
            listed = self.changed_layers
        else:
            what = f"{len(self.changed_files)} of {self.files} weight files are not byte for byte what"
            listed = self.changed_files
        names = "".join(f"\n  {name}: {how}" for name, how in list(listed.items())[:SHOWN])
        more = f"\n  and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise VerificationError(
            f"{folder} is not the checkpoint that was quantized: {what} `qdeploy quantize` recorded in "
            f"qdeploy.json:{names}{more}\nCopy the folder again, or quantize again."
        )


def check_integrity(folder: Path) -> Integrity:
    """Decode every quantized layer and hash every weight file, and compare with the manifest.

    Compares nothing where there is no manifest, as for a 16-bit or third-party checkpoint.

    Raises:
        CheckpointError: the folder or its manifest cannot be read.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        return Integrity(0, 0, {}, {})
    files = {name: how for name, how in _files(folder, manifest) if how}
    layers = {name: how for name, how in _layers(folder, manifest) if how}
    recorded = sum(module.fingerprint is not None for module in manifest.modules)
    return Integrity(recorded, len(manifest.files), layers, files)


def _layers(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str | None]]:
    packed = Packed(CheckpointReader(folder))
    for module in manifest.modules:
        if module.fingerprint is not None:
            yield module.name, _difference(packed, module, module.fingerprint)


def _difference(packed: Packed, module: Module, recorded: str) -> str | None:
    if module.name in packed.schemes:
        found = fingerprint(packed.read(module.name))
    elif module.without_kernel is not None:
        weight = packed.reader.get(f"{module.name}.weight").bfloat16()
        found = fingerprint(ReferenceLinear(weight, module.bits or 16))
    else:
        return "has no quantized tensors"
    return None if found == recorded else f"fingerprint {found[:8]}…, recorded {recorded[:8]}…"


def _files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str | None]]:
    for name, recorded in manifest.files.items():
        path = folder / name
        found = sha256_file(path) if path.is_file() else None
        how = "is missing" if found is None else f"SHA-256 {found[:8]}…, recorded {recorded[:8]}…"
        yield name, None if found == recorded else how
