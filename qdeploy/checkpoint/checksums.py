"""SHA256SUMS: the hash of every other file of a folder, as `sha256sum -c SHA256SUMS` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from qdeploy.checkpoint.manifest import MANIFEST, load_manifest
from qdeploy.files import sha256_file, write_text

SUMS = "SHA256SUMS"


def write_checksums(folder: Path, known: Mapping[str, str]) -> None:
    """Write SHA256SUMS over all files in `folder` and below.

    Args:
        folder: the folder, in which nothing else changes from here on.
        known: file → hex SHA-256 that need not be computed again.

    Raises:
        OutputError: the disk is full or read-only.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    lines = [f"{known.get(name) or sha256_file(folder / name)}  {name}\n" for name in names if name != SUMS]
    write_text(folder / SUMS, "".join(lines))


def recorded_hashes(folder: Path) -> dict[str, str]:
    """What SHA256SUMS and qdeploy.json say of files that have not been written to since: file → hex SHA-256.

    A file whose bytes changed although its date says otherwise keeps the hash that it had. So a hash from
    here can make a check fail that should, and never makes one pass that should not.

    Raises:
        CheckpointError: qdeploy.json is not a manifest of this version.
    """
    found = dict(_unchanged(folder, SUMS, _read(folder / SUMS)))
    manifest = load_manifest(folder)
    return found | dict(_unchanged(folder, MANIFEST, manifest.files if manifest else {}))


def _read(sums: Path) -> dict[str, str]:
    """What another tool wrote under that name, in another form, says nothing."""
    if not sums.is_file():
        return {}
    lines = [line.split("  ", 1) for line in sums.read_text(errors="replace").splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2 and len(line[0]) == 64}


def _unchanged(folder: Path, record: str, hashes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, digest in hashes.items():
        path = folder / name
        if path.is_file() and path.stat().st_mtime_ns <= (folder / record).stat().st_mtime_ns:
            yield name, digest
