"""Rebuilding the catalogue from folders."""

from __future__ import annotations

from pathlib import Path

from qdeploy.catalogue.entry import read_entry, scan_folders
from qdeploy.catalogue.store import Catalogue
from qdeploy.progress import warn


def scan(catalogue: Catalogue, root: Path) -> int:
    """Enter every run folder at or below `root`; one whose record is broken is told and left out.

    Returns:
        How many were entered.
    """
    entries = []
    for folder in scan_folders(root):
        try:
            entry = read_entry(folder)
        except (OSError, ValueError) as error:
            warn(f"{folder} is left out: its record cannot be read ({error}).")
            continue
        if entry is not None:
            entries.append(entry)
    catalogue.add(entries)
    return len(entries)
