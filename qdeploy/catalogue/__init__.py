"""An index of the folders that runs have left: what each is, where it lies, and under which tags.

The folders hold everything; the index is rebuilt from them by `qdeploy runs scan`.
"""

from __future__ import annotations

from pathlib import Path

from qdeploy.catalogue.entry import read_entry
from qdeploy.catalogue.store import Catalogue
from qdeploy.errors import QDeployError
from qdeploy.progress import warn

__all__ = ["record"]


def record(folder: Path) -> None:
    """Enter a folder that a run has just finished; where that cannot be done, warn: the run is whole."""
    try:
        entry = read_entry(folder)
        if entry is not None:
            with Catalogue() as catalogue:
                catalogue.add([entry])
    except (OSError, QDeployError, ValueError) as error:
        warn(
            f"{folder} is whole, but is not in the catalogue: {str(error).rstrip('.')}. "
            f"`qdeploy runs scan {folder}` enters it later."
        )
