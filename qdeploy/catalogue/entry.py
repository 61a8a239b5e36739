"""What the catalogue knows of a run folder, read from the folder itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdeploy.catalogue.digest import digest
from qdeploy.checkpoint.manifest import MANIFEST
from qdeploy.files import read_json, sha256_file, write_json

KINDS = ("quantize", "convert", "export", "bench", "eval", "verify", "campaign")
RECORDS = ("campaign.json", "run.json", "export.json", MANIFEST)
"""The file that tells what a folder is; the first that is there decides."""

UNFINISHED = (".partial", ".staged", ".reference", ".converted")
"""Endings of folders that are there while a run is in the making."""

TAGS = "tags.json"


@dataclass(frozen=True)
class Entry:
    """One run folder.

    Attributes:
        path: absolute.
        identity: SHA-256 of the record that tells what the folder is; the same after a move.
        kind: one of KINDS.
        name: of the folder.
        model: what was quantized, exported, or served under which name.
        created: when, UTC, ISO 8601.
        summary: its main figures in a line.
        tags: as `tags.json` in the folder has them, sorted.
    """

    path: Path
    identity: str
    kind: str
    name: str
    model: str
    created: str
    summary: str
    tags: tuple[str, ...] = field(default=())

    @property
    def short(self) -> str:
        """Enough of the identity to name the run by."""
        return self.identity[:8]

    @property
    def is_there(self) -> bool:
        """Whether the folder is still where it was."""
        return record_file(self.path) is not None

    def record(self) -> dict[str, Any]:
        """The record in the folder; empty where it is gone."""
        path = record_file(self.path)
        return dict(read_json(path)) if path else {}

    def command(self) -> str | None:
        """The command line that made the run, where its record says."""
        said = self.record().get("provenance", {}).get("command")
        return None if said is None else str(said)


def read_entry(folder: Path) -> Entry | None:
    """The entry of a run folder; None for a folder that is none.

    Raises:
        OSError, ValueError: its record cannot be read.
    """
    folder = folder.resolve()
    path = record_file(folder)
    if path is None:
        return None
    try:
        return _entry(folder, path, read_json(path))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of qdeploy ({error!r})") from error


def _entry(folder: Path, path: Path, content: dict[str, Any]) -> Entry:
    kind = _kind(path.name, content)
    return Entry(
        path=folder,
        identity=sha256_file(path),
        kind=kind,
        name=folder.name,
        model=_model(kind, content, folder),
        created=_created(path, content),
        summary=digest(kind, content, folder),
        tags=read_tags(folder),
    )


def record_file(folder: Path) -> Path | None:
    """The record of a run folder; None for a folder that is none, or not whole yet."""
    if folder.name.endswith(UNFINISHED):
        return None
    return next((folder / name for name in RECORDS if (folder / name).is_file()), None)


def scan_folders(root: Path) -> Iterator[Path]:
    """Every run folder at or below `root`; links are not followed, hidden folders not entered."""
    for parent, folders, _ in os.walk(root):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not n.endswith(UNFINISHED))
        if record_file(Path(parent)) is not None:
            yield Path(parent)


def read_tags(folder: Path) -> tuple[str, ...]:
    """The tags of a folder."""
    path = folder / TAGS
    return tuple(sorted(map(str, read_json(path)))) if path.is_file() else ()


def write_tags(folder: Path, tags: tuple[str, ...]) -> None:
    """Replace the tags of a folder."""
    if tags:
        write_json(folder / TAGS, list(tags))
    else:
        (folder / TAGS).unlink(missing_ok=True)


def _kind(name: str, content: dict[str, Any]) -> str:
    if name == "run.json":
        return str(content["kind"])
    if name == MANIFEST:
        return "convert" if content.get("conversions") else "quantize"
    return name.removesuffix(".json")


def _model(kind: str, content: dict[str, Any], folder: Path) -> str:
    if kind == "campaign":
        return Path(str(content.get("plan", {}).get("model", ""))).name
    if kind in ("bench", "eval", "verify"):
        return str(content["engine"]["model"])
    if kind == "export":
        manifest = folder / MANIFEST
        if not manifest.is_file():
            return Path(str(content["source"])).name
        content = read_json(manifest)
    return Path(str(content["model"]["source"])).name


def _created(path: Path, content: dict[str, Any]) -> str:
    """By the record itself or, where it does not say, by the file."""
    said = content.get("provenance", {}).get("created")
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return str(said or written.isoformat(timespec="seconds"))
