"""Writing so that a reader never sees half a file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from qdeploy.errors import disk_errors


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to disk, rename over `path`."""
    with disk_errors(path):
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def link_file(file: Path, link: Path) -> None:
    """Make `link` a hard link to the file itself, or a copy where the file system allows none.

    A file of that name is replaced. Both names are of one file from then on: only for files that nobody
    writes into.
    """
    link.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), link)
    except OSError:
        shutil.copyfile(file, link)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_text(text: str) -> str:
    """Hex SHA-256 of the UTF-8 bytes of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
