"""File formats as rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Splits = dict[str, list[Row]]
"""Name of a split → its rows."""


def text_lines(path: Path) -> list[str]:
    """Without their ends; text has other characters than line feeds at which str.splitlines would cut."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def json_lines(path: Path) -> list[Row]:
    """One JSON object a line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def json_folder(folder: Path) -> list[Row]:
    """One JSON object a `.txt` file, in the order of the numbers in their names."""
    files = sorted(folder.glob("*.txt"), key=lambda path: (len(path.name), path.name))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def comma_separated(path: Path, names: Sequence[str] | None = None) -> list[Row]:
    """CSV; with its own header unless `names` are given."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [dict(row) for row in csv.DictReader(file, fieldnames=names)]


def tab_separated(path: Path, names: Sequence[str] | None = None) -> list[Row]:
    """Tabs between fields, no quoting; the first line names them unless `names` are given."""
    lines = [line.split("\t") for line in text_lines(path) if line]
    names = names or lines.pop(0)
    return [dict(zip(names, fields, strict=True)) for fields in lines]
