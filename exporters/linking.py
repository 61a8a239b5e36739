"""A model's files in another folder, as hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from qdeploy.checkpoint.companions import companions
from qdeploy.checkpoint.manifest import MANIFEST
from qdeploy.formats.packed import BESIDE
from qdeploy.modeling.checkpoint import INDEX, CheckpointReader


def link_model(source: Path, folder: Path) -> None:
    """Make `folder` with weights, configuration, manifest and companions; never code or pickles."""
    folder.mkdir(parents=True)
    for file in _model_files(source):
        link = folder / file.relative_to(source)
        link.parent.mkdir(exist_ok=True)
        _link(file, link)


def _model_files(source: Path) -> Iterator[Path]:
    yield from CheckpointReader(source).files
    for name in ("config.json", INDEX, MANIFEST, *BESIDE):
        if (source / name).is_file():
            yield source / name
    yield from companions(source)


def _link(file: Path, link: Path) -> None:
    """A hard link to the file itself; a copy where the file system allows no link."""
    try:
        os.link(file.resolve(), link)
    except OSError:
        shutil.copyfile(file, link)
