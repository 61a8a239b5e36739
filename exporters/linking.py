"""A model's files in another folder: weights as hard links, the rest as copies."""

from __future__ import annotations

import shutil
from pathlib import Path

from qdeploy.checkpoint.companions import copy_companions
from qdeploy.checkpoint.manifest import MANIFEST
from qdeploy.files import link_file
from qdeploy.formats.packed import BESIDE
from qdeploy.modeling.checkpoint import INDEX, CheckpointReader


def link_model(source: Path, folder: Path) -> None:
    """Make `folder` with weights, configuration, manifest and companions; never code or pickles.

    What people edit where it lies is copied, so that an edit changes one folder.
    """
    folder.mkdir(parents=True)
    for file in CheckpointReader(source).files:
        link_file(file, folder / file.name)
    for name in ("config.json", INDEX, MANIFEST, *BESIDE):
        if (source / name).is_file():
            shutil.copy2(source / name, folder / name)  # its date tells which weights are older
    copy_companions(source, folder)
