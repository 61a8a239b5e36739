"""Where a run may be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from qdeploy.errors import OutputError


def check_free(folder: Path) -> None:
    """Make sure, before anything is measured, that the run can be written to `folder`.

    Raises:
        OutputError: it holds something, or cannot be made.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"Cannot write {folder}: {nearest} is not a folder that this user may write to.")
    if nearest == folder and any(folder.iterdir()):
        raise OutputError(f"{folder} is in use. Choose another folder with -o, or remove it.")


def resume(folder: Path, keep: Collection[str]) -> Path:
    """The folder in which the run is made until it is whole; of an earlier try it holds what is to `keep`."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for entry in partial.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return partial
